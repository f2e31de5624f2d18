package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/cni/statefile"
	"github.com/weftnet/weft/internal/subnetfile"
)

// How long an ADD waits for the agent, and how often it looks.
const (
	patience = 10 * time.Second
	interval = 50 * time.Millisecond

	agentPatience = 5 * time.Second // for its answer when it says why there is nothing to wait for
)

// flannel is the plugin that the conflist names.
type flannel struct{}

func (p flannel) funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, Status: p.status, GC: p.gc}
}

func (flannel) add(args *skel.CmdArgs) error {
	c, err := conf.ParseFlannel(args.StdinData)
	if err != nil {
		return err
	}
	kind, err := c.DelegateType()
	if err != nil {
		return err
	}
	env, err := waitForEnv(c.SubnetFile, patience)
	if err != nil {
		return err
	}
	delegate, err := c.DelegateConfig(env)
	if err != nil {
		return err
	}
	var b conf.Bridge
	if kind == "bridge" {
		if b, err = conf.ParseBridge(delegate, args.Args); err != nil {
			return err
		}
	}
	state, key := statefile.Dir(c.DataDir), keyOf(args)
	had := state.Has(key)
	onDisk, err := state.Save(key, delegate)
	if err != nil {
		return err
	}
	if kind != "bridge" {
		if err := onDisk(); err != nil {
			return err
		}
		return passThrough(kind, "ADD", args, delegate)
	}
	r, err := attach(b, args, reclaimer(b, state))
	if err == nil {
		if err = onDisk(); err != nil {
			err = errors.Join(err, detach(b, args))
		}
	}
	if err != nil && had {
		return err // what an ADD before made may be there still, and DEL needs the file for it
	}
	if err != nil {
		return errors.Join(err, state.Remove(key))
	}
	return printResult(r, c.CNIVersion)
}

// passThrough calls the plugin that delegate.type names and prints its answer as it is.
func passThrough(kind, verb string, args *skel.CmdArgs, delegate []byte) error {
	out, err := run(kind, verb, args.Path, delegate)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out)
	return err
}

func (flannel) del(args *skel.CmdArgs) error {
	c, err := conf.ParseFlannel(args.StdinData)
	if err != nil {
		return err
	}
	state, key := statefile.Dir(c.DataDir), keyOf(args)
	stored, err := state.Load(key)
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	var d struct{ Name string }
	if json.Unmarshal(stored, &d) == nil && d.Name != "" && d.Name != c.Name {
		// The original's file, which the container's interface in another network has overwritten.
		return delStored(c, nil, args)
	}
	if err := delStored(c, stored, args); err != nil {
		return err
	}
	return state.Remove(key)
}

// delStored deletes with the configuration that ADD stored. Without one, or with one that is torn, what
// can be named without it goes: an ADD of this plugin left nothing else.
func delStored(c conf.Flannel, stored []byte, args *skel.CmdArgs) error {
	var d struct{ Name, Type string }
	if json.Unmarshal(stored, &d) != nil || d.Name == "" || d.Type == "" {
		stored = nil
		d.Type, _ = c.DelegateType()
	}
	if d.Type != "bridge" {
		if stored == nil {
			return nil
		}
		_, err := run(d.Type, "DEL", args.Path, stored)
		return err
	}
	b, err := bare(c)
	if full, fullErr := conf.ReadBridge(stored); stored != nil && fullErr == nil {
		b, err = full, nil
	}
	if err != nil {
		return nil // with such a configuration nothing was ever added
	}
	if err := detach(b, args); err != nil {
		return err
	}
	return drainOwn(c, b)
}

// bare returns what is known of the work without subnet.env and without a state file.
func bare(c conf.Flannel) (conf.Bridge, error) {
	raw, err := c.Bare()
	if err != nil {
		return conf.Bridge{}, err
	}
	return conf.ReadBridge(raw)
}

// waitForEnv reads subnet.env, and gives the agent some time to write it.
func waitForEnv(path string, patience time.Duration) (subnetfile.Lists, error) {
	env, err := subnetfile.ReadLists(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return env, err
	}
	deadline := time.After(patience)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if env, err = subnetfile.ReadLists(path); !errors.Is(err, fs.ErrNotExist) {
				return env, err
			}
		case <-deadline:
			return env, types.NewError(types.ErrTryAgainLater, notReady(path)+fmt.Sprintf(" (waited %s)", patience), "")
		}
	}
}

// notReady says what is missing and, if the agent answers on its socket, why.
func notReady(path string) string {
	msg := path + " is not there: flanneld writes it once this node has a subnet and its data path is up; " +
		"look at flanneld's log and its /readyz"
	reasons, err := askAgent(subnetfile.Socket(path))
	if err != nil {
		return msg + "; it does not answer: " + err.Error()
	}
	return msg + "; flanneld says: " + strings.Join(reasons, "; ")
}

// askAgent asks for /readyz, whose first line is a heading. HTTP/1.0 has no chunks, so no client is needed,
// which would make the program half as large again.
func askAgent(socket string) ([]string, error) {
	conn, err := net.DialTimeout("unix", socket, agentPatience)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(agentPatience)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "GET /readyz HTTP/1.0\r\n\r\n"); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(conn, 8192))
	if err != nil {
		return nil, err
	}
	_, body, _ := strings.Cut(string(raw), "\r\n\r\n")
	heading, reasons, _ := strings.Cut(strings.TrimSpace(body), "\n")
	if reasons == "" {
		reasons = heading
	}
	return strings.Split(reasons, "\n"), nil
}

// status says why an ADD would fail now. A full range is no reason: pods of the node would be evicted for
// want of an address that only a new one needs.
func (flannel) status(args *skel.CmdArgs) error {
	c, err := conf.ParseFlannel(args.StdinData)
	if err != nil {
		return err
	}
	env, err := subnetfile.ReadLists(c.SubnetFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New(notReady(c.SubnetFile))
	}
	var delegate []byte
	if err == nil {
		delegate, err = c.DelegateConfig(env)
	}
	if err != nil {
		return notAvailable(err)
	}
	kind, err := c.DelegateType()
	if err != nil {
		return notAvailable(err)
	}
	if kind == "bridge" {
		b, err := conf.ParseBridge(delegate, "")
		if err != nil || !b.OtherIPAM() {
			return notAvailable(err)
		}
		kind = b.IPAMType
	}
	_, err = run(kind, "STATUS", args.Path, delegate)
	return notAvailable(err)
}

// notAvailable is the code with which STATUS says that ADD would fail, whatever the reason. That a plugin
// called says it would succeed, with less to show for it, is passed on.
func notAvailable(err error) error {
	var e *types.Error
	if err == nil || errors.As(err, &e) && e.Code == types.ErrLimitedConnectivity {
		return err
	}
	return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
}

func keyOf(args *skel.CmdArgs) statefile.Key {
	return statefile.Key{ContainerID: args.ContainerID, IfName: args.IfName}
}
