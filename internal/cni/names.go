package cni

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/cni/conf"
	"github.com/weftnet/weft/internal/cni/hostlocal"
)

// The plugins that do one part of the work when another plugin, or a conflist, names them.

func bridgeFuncs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: func(args *skel.CmdArgs) error {
			c, err := conf.ParseBridge(args.StdinData, args.Args)
			if err != nil {
				return err
			}
			r, err := attach(c, args, reclaimer(c, ""))
			if err != nil {
				return err
			}
			return printResult(r, c.CNIVersion)
		},
		Del: func(args *skel.CmdArgs) error {
			c, err := conf.ReadBridge(args.StdinData)
			if err != nil {
				return err
			}
			return detach(c, args)
		},
		Check: func(args *skel.CmdArgs) error {
			c, err := conf.ParseBridge(args.StdinData, args.Args)
			if err != nil {
				return err
			}
			return checkBridge(c, args)
		},
		GC: func(args *skel.CmdArgs) error {
			c, err := conf.ReadBridge(args.StdinData)
			if err != nil {
				return err
			}
			if err := gcBridge(c); err != nil || !c.OtherIPAM() {
				return err
			}
			_, err = run(c.IPAMType, "GC", args.Path, args.StdinData)
			return err
		},
		Status: func(args *skel.CmdArgs) error {
			c, err := conf.ParseBridge(args.StdinData, args.Args)
			if err == nil && c.OtherIPAM() {
				_, err = run(c.IPAMType, "STATUS", args.Path, args.StdinData)
			}
			return notAvailable(err)
		},
	}
}

func hostLocalFuncs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: addHostLocal,
		Del: func(args *skel.CmdArgs) error {
			c, err := conf.ReadHostLocal(args.StdinData, args.Args)
			if c.Dir == "" {
				return err
			}
			return freeLocal(c, ownerOf(args))
		},
		Check: checkHostLocal,
		GC: func(args *skel.CmdArgs) error {
			c, err := conf.ReadHostLocal(args.StdinData, args.Args)
			if c.Dir == "" {
				return err
			}
			return gcHostLocal(c)
		},
		Status: func(args *skel.CmdArgs) error {
			c, err := conf.ReadHostLocal(args.StdinData, args.Args)
			if err == nil {
				err = c.Check()
			}
			return notAvailable(err)
		},
	}
}

func addHostLocal(args *skel.CmdArgs) error {
	c, err := conf.ReadHostLocal(args.StdinData, args.Args)
	if err == nil {
		err = c.Check()
	}
	if err != nil {
		return err
	}
	given, hold, err := allocateLocal(c, ownerOf(args), reclaimOlder)
	if err != nil {
		return err
	}
	defer hold.Close()
	if len(hold.Fresh) < len(given.IPs) {
		// The caller would free what it takes for a new address when something else fails.
		return errors.Join(fmt.Errorf("%s holds an address of %s already: DEL comes before another ADD", ownerOf(args), c.Dir),
			freeThese(c, hold.Fresh))
	}
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: given.Routes, DNS: given.DNS}
	for _, ip := range given.IPs {
		r.IPs = append(r.IPs, ipConfig(ip))
	}
	return printResult(r, c.CNIVersion)
}

func checkHostLocal(args *skel.CmdArgs) error {
	c, err := conf.ReadHostLocal(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	dir, err := hostlocal.OpenExisting(c.Dir)
	if err != nil {
		return err
	}
	var held int
	if dir != nil {
		defer dir.Close()
		all, err := dir.Held(ownerOf(args))
		if err != nil {
			return err
		}
		held = len(all)
	}
	if held == 0 {
		return differs([]string{"no address entry in " + c.Dir})
	}
	return nil
}

// gcHostLocal frees the entries that no valid attachment holds. The devices are another plugin's.
func gcHostLocal(c conf.HostLocal) error {
	dir, err := hostlocal.OpenExisting(c.Dir)
	if dir == nil || err != nil {
		return err
	}
	defer dir.Close()
	entries, err := dir.Entries()
	if err != nil {
		return err
	}
	valid := validOwners(c.Valid)
	for a, o := range entries {
		if valid.has(o) {
			delete(entries, a)
		}
	}
	_, err = freeDead(dir, slices.Collect(maps.Keys(entries)))
	return err
}
