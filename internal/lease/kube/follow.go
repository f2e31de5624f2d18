package kube

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/weftnet/weft/internal/lease/storehealth"
)

const (
	// pageSize keeps a page of a list at about 3 MB.
	pageSize = 200

	// silence is how long a watch may say nothing once the server has sent a bookmark, which it does every
	// minute or so.
	silence = 3 * time.Minute
)

// A feed receives Nodes. No two calls overlap; n is the receiver's to keep. What comes between begin and
// listed is gathered aside, and takes the place of what was known when it is complete.
type feed struct {
	begin   func()               // a complete listing begins
	put     func(n *node)        // a Node is there, or has changed
	drop    func(name string)    // a Node is gone
	listed  func()               // the listing is complete
	synced  func(version string) // all changes up to version were handed over
	stopped func(err error)      // listing or watching broke and will be tried again
}

var (
	// errRelist means that a watch cannot go on where it stopped.
	errRelist = errors.New("the watch must begin with a new listing")

	// errEnded means that the server has ended a watch in order.
	errEnded = errors.New("the watch has ended")
)

// follow hands the Nodes that match the field selector to f, and their changes, until ctx ends.
func (s *Store) follow(ctx context.Context, op, selector string, f feed) error {
	p := storehealth.Pause{First: firstRetry, Last: lastRetry}
	w := watch{store: s, selector: selector, feed: f}
	for {
		w.stood = time.Time{}
		w.standing = func() { s.health.Worked(op); w.stood = time.Now() }
		err := w.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errRelist) {
			w.version = ""
		}
		if !w.stood.IsZero() && time.Since(w.stood) > lastRetry {
			p.Reset()
		}
		if errors.Is(err, errEnded) && !w.stood.IsZero() {
			if err := storehealth.Sleep(ctx, p.Next()); err != nil { // a server that ends watches at once gets no storm
				return err
			}
			continue
		}
		f.stopped(err)
		s.health.Failed(ctx, op, err)
		if err := storehealth.Sleep(ctx, max(p.Next(), retryAfter(err))); err != nil {
			return err
		}
	}
}

// A watch is a listing and watch in progress.
type watch struct {
	store    *Store
	selector string
	feed     feed
	version  string // everything up to here was handed over; empty: nothing was
	due      bool   // the last watch ended when it should

	standing func() // called when the watch stands
	stood    time.Time
}

// once lists, if need be, and watches until something breaks.
func (w *watch) once(ctx context.Context) error {
	if w.version != "" {
		if !w.due {
			if err := w.reached(ctx); err != nil {
				return err
			}
		}
		return w.stream(ctx, false)
	}
	err := w.stream(ctx, true)
	if !isCode(err, http.StatusUnprocessableEntity, http.StatusBadRequest, http.StatusInternalServerError) {
		return err
	}
	// Servers without the feature WatchList refuse to begin a watch with what is there already. Those that have
	// it over an etcd that cannot report progress (3.4) fail, in words that differ from version to version.
	if err := w.pages(ctx); err != nil {
		return err
	}
	return w.stream(ctx, false)
}

// reached asks whether the API server is at our version. After a break its etcd may have been set back to a backup, and
// a watch from our version would say nothing of what is written before it is reached again.
func (w *watch) reached(ctx context.Context) error {
	q := w.query()
	q.Set("limit", "1")
	raw, err := w.store.do(ctx, call{method: http.MethodGet, path: "api/v1/nodes", query: q}, maxPage)
	if err != nil {
		return fmt.Errorf("ask for the version: %w", err)
	}
	version, _, err := decodeList(raw, w.store.keys, func(*node) {})
	if err != nil {
		return fmt.Errorf("ask for the version: %w", err)
	}
	if older(version, w.version) {
		return fmt.Errorf("%w: the API server is at version %s, before %s", errRelist, version, w.version)
	}
	return nil
}

// pages lists page by page, all as of one version.
func (w *watch) pages(ctx context.Context) error {
	w.feed.begin()
	version, next := "", ""
	for {
		q := w.query()
		q.Set("limit", strconv.Itoa(pageSize))
		if next != "" {
			q.Set("continue", next)
		}
		// A page of megabytes is no sign of trouble on a slow line; a server that says nothing is noticed earlier.
		raw, err := w.store.do(ctx, call{method: http.MethodGet, path: "api/v1/nodes", query: q, within: 12 * w.store.cfg.RequestTimeout}, maxPage)
		if isCode(err, http.StatusGone) {
			return fmt.Errorf("list: %w: %w", errRelist, err)
		} else if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		if version, next, err = decodeList(raw, w.store.keys, w.feed.put); err != nil {
			return fmt.Errorf("list: %w", err)
		}
		if next == "" {
			break
		}
	}
	w.feed.listed()
	w.version = version
	return nil
}

func (w *watch) query() url.Values {
	q := url.Values{}
	if w.selector != "" {
		q.Set("fieldSelector", w.selector)
	}
	return q
}

// stream watches from w.version on, or begins with all that is there. It returns only with an error.
func (w *watch) stream(ctx context.Context, listing bool) error {
	w.due = false
	limit := 5*time.Minute + rand.N(5*time.Minute) // nodes that started at once do not come back at once
	q := w.query()
	q.Set("watch", "true")
	q.Set("allowWatchBookmarks", "true")
	q.Set("timeoutSeconds", strconv.Itoa(int(limit/time.Second)))
	if listing {
		q.Set("sendInitialEvents", "true")
		q.Set("resourceVersionMatch", "NotOlderThan")
	} else {
		q.Set("resourceVersion", w.version)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit+w.store.cfg.RequestTimeout, errors.New("the server does not end the watch when it should"))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	idle := time.AfterFunc(2*w.store.cfg.RequestTimeout, func() { stop(errors.New("the API server is silent")) })
	defer idle.Stop()

	resp, err := w.store.send(ctx, call{method: http.MethodGet, path: "api/v1/nodes", query: q, accept: protobuf + ";stream=watch"})
	if isCode(err, http.StatusGone) {
		return fmt.Errorf("watch: %w: %w", errRelist, err)
	} else if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	defer resp.Body.Close()
	if listing {
		w.feed.begin()
	} else {
		w.stands(idle)
	}
	frames := frameReader{r: bufio.NewReaderSize(resp.Body, 16<<10)}
	began, heard := time.Now(), listing
	for {
		kind, object, err := frames.next()
		if err == nil && listing {
			idle.Reset(2 * w.store.cfg.RequestTimeout)
		}
		if errors.Is(err, io.EOF) && !listing {
			if !heard && time.Since(began) > silence {
				// A server whose etcd was set back says nothing before it has reached our version.
				return fmt.Errorf("%w: not even a bookmark came after version %s", errRelist, w.version)
			}
			w.due = time.Since(began) > limit-2*time.Second // the server counts whole seconds, from a little earlier
			return errEnded
		}
		if heard = true; err == nil {
			err = w.event(kind, object, &listing, idle)
		}
		if err != nil {
			return fmt.Errorf("watch: %w", because(ctx, err))
		}
	}
}

// stands notes that the watch stands and is complete.
func (w *watch) stands(idle *time.Timer) {
	idle.Stop()
	w.standing()
	w.feed.synced(w.version)
}

// event hands over one event.
func (w *watch) event(kind string, object []byte, listing *bool, idle *time.Timer) error {
	if kind == "ERROR" {
		return watchError(object)
	}
	n, err := decodeNode(object, w.store.keys)
	if err != nil {
		return err
	}
	if !*listing && older(n.version, w.version) {
		// etcd was set back to a backup: what we know never happened.
		return fmt.Errorf("%w: the API server is at version %s, before %s", errRelist, n.version, w.version)
	}
	switch kind {
	case "ADDED", "MODIFIED":
		w.feed.put(n)
	case "DELETED":
		w.feed.drop(n.name)
	case "BOOKMARK":
		if *listing && n.initialEnd {
			w.version, *listing = n.version, false
			w.feed.listed()
			w.stands(idle)
			return nil
		}
		if !*listing {
			idle.Reset(silence)
		}
	default:
		return fmt.Errorf("unknown event %q", printable([]byte(kind), 20))
	}
	if !*listing {
		w.version = n.version
		w.feed.synced(w.version)
	}
	return nil
}

// watchError returns what a watch's ERROR event says.
func watchError(object []byte) error {
	st, err := decodeStatus(object)
	if err != nil {
		return err
	}
	refused := &APIError{Code: st.code, Message: st.message}
	if st.code == http.StatusGone {
		return fmt.Errorf("%w: %w", errRelist, refused)
	}
	return refused
}

// older says whether version a comes before b. Versions of Nodes are etcd revisions; one that is no number
// cannot be compared.
func older(a, b string) bool {
	x, err1 := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	return err1 == nil && err2 == nil && x < y
}
