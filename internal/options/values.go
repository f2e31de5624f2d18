package options

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/secret"
)

// maxSeconds keeps a number of seconds inside a time.Duration.
const maxSeconds = int64(math.MaxInt64 / time.Second)

func text(p *string) func(string) error { return func(v string) error { *p = v; return nil } }

func hidden(p *secret.Text) func(string) error {
	return func(v string) error { *p = secret.New(v); return nil }
}

func discard(string) error { return nil }

func appendTo(p *[]string) func(string) error {
	return func(v string) error { *p = append(*p, v); return nil }
}

func prefixes(p *[]netip.Prefix) func(string) error {
	return func(v string) error {
		prefix, err := netip.ParsePrefix(v)
		if err != nil {
			return fmt.Errorf("%q is not a range such as 10.96.0.0/12", v)
		}
		*p = append(*p, prefix.Masked())
		return nil
	}
}

func file(p *string) func(string) error {
	return func(v string) error {
		if v == "" {
			return errors.New("must name a file")
		}
		*p = v
		return nil
	}
}

func boolean(p *bool) func(string) error {
	return func(v string) (err error) {
		if *p, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
		return nil
	}
}

func negated(p *bool) func(string) error {
	return func(v string) error {
		var not bool
		err := boolean(&not)(v)
		*p = !not
		return err
	}
}

// number reads an integer as the flag package does: decimal, 0x.., 0o.., 0b...
func number(v string, lowest, highest int64) (int64, error) {
	n, err := strconv.ParseInt(v, 0, 64)
	if err != nil || n < lowest || n > highest {
		if highest == maxSeconds || highest == math.MaxInt32 {
			return 0, fmt.Errorf("%q is not a number from %d", v, lowest)
		}
		return 0, fmt.Errorf("%q is not a number from %d to %d", v, lowest, highest)
	}
	return n, nil
}

func units(p *time.Duration, unit time.Duration, lowest, highest int64) func(string) error {
	return func(v string) error {
		n, err := number(v, lowest, highest)
		*p = time.Duration(n) * unit
		return err
	}
}

func atLeast(p *time.Duration, lowest time.Duration) func(string) error {
	return func(v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < lowest {
			return fmt.Errorf("%q is not a duration of at least %s, such as 30s or 5m", v, lowest)
		}
		*p = d
		return nil
	}
}

func oneOf(p *string, allowed ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("%q is not one of %s", v, strings.Join(allowed, ", "))
		}
		*p = v
		return nil
	}
}

func expressions(p *[]*regexp.Regexp) func(string) error {
	return func(v string) error {
		re, err := regexp.Compile(v)
		if err != nil {
			return fmt.Errorf("%q is not a regular expression: %w", v, err)
		}
		*p = append(*p, re)
		return nil
	}
}

// anyAddress accepts an address of either family. Empty is none.
func anyAddress(p *netip.Addr) func(string) error {
	return func(v string) error {
		if v == "" {
			return nil
		}
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("%q is not an IP address", v)
		}
		*p = a.Unmap()
		return nil
	}
}

func address4(p *netip.Addr) func(string) error {
	return reachable(p, "an IPv4 address", netip.Addr.Is4)
}

func address6(p *netip.Addr) func(string) error {
	return reachable(p, "an IPv6 address", netip.Addr.Is6)
}

// reachable accepts an address of one family that a peer could send to.
func reachable(p *netip.Addr, what string, family func(netip.Addr) bool) func(string) error {
	return func(v string) error {
		var a netip.Addr
		if err := anyAddress(&a)(v); err != nil || a.IsValid() && !family(a) {
			return fmt.Errorf("%q is not %s", v, what)
		}
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return fmt.Errorf("%s is not an address that peers can send to", a)
		}
		*p = a
		return nil
	}
}

// endpoints accepts what etcd's client does: URLs, and host:port for plain HTTP.
func endpoints(p *[]string) func(string) error {
	return func(v string) error {
		for e := range strings.SplitSeq(v, ",") {
			e = strings.TrimSpace(e)
			if e == "" {
				continue
			}
			if !endpoint(e) {
				return fmt.Errorf("%q is not an etcd endpoint such as https://10.0.0.1:2379", redactURL(e))
			}
			*p = append(*p, e)
		}
		if len(*p) == 0 {
			return errors.New("names no endpoint")
		}
		return nil
	}
}

func endpoint(e string) bool {
	if !strings.Contains(e, "://") {
		host, port, err := net.SplitHostPort(e)
		_, perr := number(port, 1, math.MaxUint16)
		return err == nil && perr == nil && host != ""
	}
	u, err := url.Parse(e)
	if err != nil {
		return false
	}
	switch u.Scheme {
	case "http", "https":
		return u.Host != ""
	case "unix", "unixs":
		return u.Host != "" || u.Path != ""
	}
	return false
}

func keyPrefix(p *string) func(string) error {
	return func(v string) error {
		if v == "" {
			return errors.New("must not be empty")
		}
		*p = path.Clean(v)
		return nil
	}
}

func apiURL(p **url.URL) func(string) error {
	return func(v string) error {
		if v == "" {
			return nil
		}
		u, err := url.Parse(v)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%q is not a URL such as https://10.0.0.1:6443", redactURL(v))
		}
		*p = u
		return nil
	}
}

// domainAndName is a lower-case domain with a dot, a slash, and perhaps a name.
var domainAndName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+/[a-z0-9_-]*$`)

// annotationPrefix completes the prefix as interop 3.2 says: example.net/blue begins keys with
// example.net/blue-.
func annotationPrefix(p *string) func(string) error {
	return func(v string) error {
		prefix := v
		if !strings.Contains(prefix, "/") {
			prefix += "/"
		}
		if !domainAndName.MatchString(prefix) {
			return fmt.Errorf("%q is not a lower-case domain with a dot, optionally followed by / and a name of a-z, 0-9, _ and -", v)
		}
		if !strings.HasSuffix(prefix, "/") && !strings.HasSuffix(prefix, "-") {
			prefix += "-"
		}
		*p = prefix
		return nil
	}
}

// processValues sets fields that take more than one flag or another form.
type processValues struct{ o *Options }

func (p *processValues) healthzIP(v string) error {
	a := netip.IPv6Unspecified() // both families, as an empty address means to net.Listen
	if err := anyAddress(&a)(v); err != nil {
		return err
	}
	p.o.Healthz = netip.AddrPortFrom(a, p.o.Healthz.Port())
	return nil
}

func (p *processValues) healthzPort(v string) error {
	n, err := number(v, 0, math.MaxUint16)
	p.o.Healthz = netip.AddrPortFrom(p.o.Healthz.Addr(), uint16(n))
	return err
}

func (p *processValues) verbosity(v string) error {
	n, err := number(v, 0, math.MaxInt32)
	p.o.LogLevel = slog.LevelInfo
	if n > 0 {
		p.o.LogLevel = slog.LevelDebug
	}
	return err
}

func redactURLs(vs []string) []string {
	out := make([]string, len(vs))
	for i, v := range vs {
		parts := strings.Split(v, ",")
		for j := range parts {
			parts[j] = redactURL(parts[j])
		}
		out[i] = strings.Join(parts, ",")
	}
	return out
}

// redactURL hides the password of a URL that has one, readable or not.
func redactURL(v string) string {
	at := strings.LastIndex(v, "@")
	if scheme, _, ok := strings.Cut(v, "://"); ok && at > 0 {
		return scheme + "://" + secret.Hidden + v[at:]
	}
	return v
}
