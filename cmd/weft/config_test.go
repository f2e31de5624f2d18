package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/netnstest"
)

// configCommand runs weft config with stdin and returns what it prints and its error.
func configCommand(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	c := newConfigCommand()
	c.SilenceErrors, c.SilenceUsage = true, true
	var out strings.Builder
	c.SetIn(strings.NewReader(stdin))
	c.SetOut(&out)
	c.SetArgs(args)
	err := c.Execute()
	return out.String(), err
}

func TestConfigCheckShowsWhatIsInEffect(t *testing.T) {
	out, err := configCommand(t, `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":1500,"vlan":1}}`, "check", "-")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"SubnetLen": 24`, `"VNI": 1`, "capacity:\n  10.244.0.0/16 in /24s: 255 nodes, 253 pods each\n  MTU of pods: 1450",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%s is missing in\n%s", want, out)
		}
	}
}

func TestConfigCheckShowsAllRanges(t *testing.T) {
	const in = `{"Network":"10.244.0.0/16","AdditionalNetworks":["10.248.0.0/22","172.17.0.0/16"],"Backend":{"Type":"vxlan"}}`
	out, err := configCommand(t, in, "check", "-", "--service-range", "172.17.9.0/24")
	if err == nil || err.Error() != "configuration: 1 problem" {
		t.Errorf("error %v", err)
	}
	for _, want := range []string{
		"\"AdditionalNetworks\": [\n    \"10.248.0.0/22\",\n    \"172.17.0.0/16\"\n  ],",
		"capacity:\n  10.244.0.0/16 in /24s: 255 nodes, 253 pods each\n  10.248.0.0/22 in /24s: 3 nodes, 253 pods each\n" +
			"  172.17.0.0/16 in /24s: 255 nodes, 253 pods each\n  10.244.0.0/16,10.248.0.0/22,172.17.0.0/16 together: 513 nodes\n",
		"clashes:\n  pod network 172.17.0.0/16 overlaps the service range 172.17.9.0/24: choose another range for AdditionalNetworks[1]",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%s is missing in\n%s", want, out)
		}
	}
}

func TestConfigCheckFailsOnProblems(t *testing.T) {
	const in = `{"Network":"10.244.0.0/16","SubnetLen":31,"Backend":{"Type":"vxlan","Port":70000}}`
	out, err := configCommand(t, in, "check", "-")
	if err == nil || err.Error() != "configuration: 2 problems" {
		t.Errorf("error %v", err)
	}
	want := "problems:\n  SubnetLen: 31 must be from 18 (network length + 2) to 30\n" +
		"  Backend.Port: 70000 is not a port (1 to 65535, or 0: the kernel's choice, 8472)\n"
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	out, err = configCommand(t, in, "check", "-", "-o", "json", "--store", "kube")
	if err == nil {
		t.Error("no error")
	}
	var r configReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Problems) != 1 || r.Problems[0].Field != "Backend.Port" {
		t.Errorf("%v in %s", err, out)
	}
}

func TestConfigCheckNamesClashes(t *testing.T) {
	const in = `{"Network":"10.96.0.0/16","Backend":{"Type":"vxlan"}}`
	out, err := configCommand(t, in, "check", "-", "--service-range", "10.96.0.0/12")
	if err == nil || !strings.Contains(out, "clashes:\n  pod network 10.96.0.0/16 overlaps the service range 10.96.0.0/12") {
		t.Errorf("error %v, printed\n%s", err, out)
	}
	netnstest.Need(t, "ip", "iproute2")
	netnstest.Run(t, func(t *testing.T) {
		netnstest.Command(t, "ip", "link", "add", "docker0", "type", "bridge")
		netnstest.Command(t, "ip", "addr", "add", "10.96.3.1/24", "dev", "docker0")
		out, err := configCommand(t, in, "check", "-", "--host", "--subnet-file", filepath.Join(t.TempDir(), "subnet.env"))
		if err == nil || !strings.Contains(out, "overlaps the address 10.96.3.1/24 of docker0") {
			t.Errorf("error %v, printed\n%s", err, out)
		}
	})
}

func TestConfigCheckRefusesWrongFlags(t *testing.T) {
	for _, args := range [][]string{
		{"check"}, {"check", "-", "--store", "consul"}, {"check", "-", "-o", "yaml"}, {"check", "-", "--service-range", "x"},
		{"check", filepath.Join(t.TempDir(), "none.json")},
	} {
		if out, err := configCommand(t, `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`, args...); err == nil || out != "" {
			t.Errorf("%v: error %v, printed %q", args, err, out)
		}
	}
}
