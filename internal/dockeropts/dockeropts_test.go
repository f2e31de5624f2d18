package dockeropts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/weftnet/weft/internal/netnstest"
)

const sample = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"

// cases hold for the function and for the script alike.
var cases = []struct {
	name    string
	file    string
	environ []string
	flags   []string
	options Options
	want    string
	refused bool
}{
	{name: "both forms", file: sample,
		want: "DOCKER_OPT_BIP=\"--bip=10.244.7.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n" +
			"DOCKER_OPTS=\" --bip=10.244.7.1/24 --ip-masq=true --mtu=1450\"\n"},
	{name: "both forms asked for", file: sample, flags: []string{"-i", "-c"}, options: Options{Individual: true, Combined: true},
		want: "DOCKER_OPT_BIP=\"--bip=10.244.7.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n" +
			"DOCKER_OPTS=\" --bip=10.244.7.1/24 --ip-masq=true --mtu=1450\"\n"},
	{name: "single variables only", file: sample, flags: []string{"-i"}, options: Options{Individual: true},
		want: "DOCKER_OPT_BIP=\"--bip=10.244.7.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n"},
	{name: "the combined variable only", file: sample, flags: []string{"-c"}, options: Options{Combined: true},
		want: "DOCKER_OPTS=\" --bip=10.244.7.1/24 --ip-masq=true --mtu=1450\"\n"},
	{name: "another name", file: sample, flags: []string{"-ck", "DOCKER_NETWORK_OPTIONS"}, options: Options{Combined: true, Key: "DOCKER_NETWORK_OPTIONS"},
		want: "DOCKER_NETWORK_OPTIONS=\" --bip=10.244.7.1/24 --ip-masq=true --mtu=1450\"\n"},
	{name: "without masquerading", file: sample, flags: []string{"-m"}, options: Options{NoIPMasq: true},
		want: "DOCKER_OPT_BIP=\"--bip=10.244.7.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=10.244.7.1/24 --mtu=1450\"\n"},
	{name: "flannel masquerades", file: "FLANNEL_IPMASQ=true\n", flags: []string{"-i"}, options: Options{Individual: true},
		want: "DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n"},
	{name: "masquerading is neither true nor false", file: "FLANNEL_IPMASQ=yes\n", refused: true},
	{name: "masquerading is nonsense and not asked for", file: "FLANNEL_IPMASQ=yes\nFLANNEL_MTU=1\n", flags: []string{"-mc"},
		options: Options{NoIPMasq: true, Combined: true}, want: "DOCKER_OPTS=\" --mtu=1\"\n"},
	{name: "an empty file", file: "", want: "DOCKER_OPTS=\"\"\n"},
	{name: "options from the environment join in, in order", file: sample,
		environ: []string{"DOCKER_OPT_DNS=--dns=10.0.0.2 --dns=10.0.0.3", "DOCKER_OPT_ZZ=--debug", "DOCKER_OPT_MTU=--mtu=9000", "MY_DOCKER_OPT_X=1"},
		want: "DOCKER_OPT_BIP=\"--bip=10.244.7.1/24\"\nDOCKER_OPT_DNS=\"--dns=10.0.0.2 --dns=10.0.0.3\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n" +
			"DOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPT_ZZ=\"--debug\"\n" +
			"DOCKER_OPTS=\" --bip=10.244.7.1/24 --dns=10.0.0.2 --dns=10.0.0.3 --ip-masq=true --mtu=1450 --debug\"\n"},
	{name: "a value of the combined variable stays in front", file: "FLANNEL_MTU=1450\n", environ: []string{"DOCKER_OPTS=--debug"}, flags: []string{"-c"},
		options: Options{Combined: true}, want: "DOCKER_OPTS=\"--debug  --mtu=1450\"\n"},
	{name: "the environment stands in for the file", file: "FLANNEL_MTU=1450\n", environ: []string{"FLANNEL_SUBNET=10.1.2.1/24", "FLANNEL_MTU=9000"}, flags: []string{"-c"},
		options: Options{Combined: true}, want: "DOCKER_OPTS=\" --bip=10.1.2.1/24 --mtu=1450\"\n"},
	{name: "a value that a shell would take apart", file: "", environ: []string{`DOCKER_OPT_X=--x=a\n$(false)`}, flags: []string{"-i"},
		options: Options{Individual: true}, want: "DOCKER_OPT_X=\"--x=a\\n$(false)\"\n"},
	{name: "a name that is none", flags: []string{"-k", "X;reboot"}, options: Options{Key: "X;reboot"}, refused: true},
}

func TestRender(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Render(Environment(tc.environ, []byte(tc.file)), tc.options)
			if (err != nil) != tc.refused {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// script runs mk-docker-opts.sh in a shell and returns what it wrote.
func script(t *testing.T, shell []string, file string, environ, flags []string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	input, output := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "docker_opts.env")
	for path, content := range map[string]string{input: file, output: "from before\n"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name, err := filepath.Abs("../../deploy/docker/mk-docker-opts.sh")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name); err != nil { // so that go test runs again when the script changes
		t.Fatal(err)
	}
	args := append(shell[1:len(shell):len(shell)], name, "-f", input, "-d", output)
	c := exec.Command(shell[0], append(args, flags...)...)
	c.Env = append([]string{"PATH=/nowhere"}, environ...) // it needs no program
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Logf("%s", out)
		return "", err
	}
	written, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	return string(written), nil
}

// shells returns the shells of this machine that the script can be tested in.
func shells(t *testing.T) map[string][]string {
	found := map[string][]string{}
	for name, args := range map[string][]string{"sh": nil, "dash": nil, "bash": nil, "busybox": {"sh"}} {
		if path, err := exec.LookPath(name); err == nil {
			found[name] = append([]string{path}, args...)
		}
	}
	if len(found) == 0 {
		netnstest.Unavailable(t, "a shell")
	}
	return found
}

func TestScript(t *testing.T) {
	for shell, args := range shells(t) {
		for _, tc := range cases {
			t.Run(shell+"/"+tc.name, func(t *testing.T) {
				got, err := script(t, args, tc.file, tc.environ, tc.flags)
				if (err != nil) != tc.refused {
					t.Fatalf("error %v", err)
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
			})
		}
		t.Run(shell+"/an unknown flag", func(t *testing.T) {
			if _, err := script(t, args, sample, nil, []string{"-x"}); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestASubnetThatIsRoutedAway(t *testing.T) {
	netnstest.Need(t, "ip", "iproute2")
	netnstest.Run(t, func(t *testing.T) {
		ip := func(args ...string) { t.Helper(); netnstest.Command(t, "ip", args...) }
		ip("link", "add", "eth0", "type", "bridge")
		ip("link", "set", "eth0", "up")
		ip("addr", "add", "192.168.1.7/24", "dev", "eth0")
		ip("route", "add", "10.244.7.0/24", "dev", "eth0")                     // no gateway
		ip("route", "add", "10.244.0.0/16", "via", "192.168.1.9")              // wider
		ip("route", "add", "10.244.7.0/25", "via", "192.168.1.9")              // narrower
		ip("route", "add", "10.9.7.0/24", "via", "192.168.1.9")                // this one
		ip("route", "add", "10.8.7.0/24", "via", "192.168.1.9", "table", "99") // elsewhere
		ip("route", "add", "blackhole", "10.7.7.0/24")                         // no gateway
		h, err := netlink.NewHandle()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for subnet, want := range map[string]bool{
			"10.244.7.1/24": false, "10.9.7.1/24": true, "10.8.7.1/24": false, "10.7.7.1/24": false,
			"": false, "nonsense": false, "10.9.7.1": false, "10.9.7.1/240": false, "fd24::1/64": false, "0.0.0.0/0": false,
		} {
			via, found, err := RoutedAway(h, subnet)
			if err != nil || found != want || found && via.String() != "192.168.1.9" {
				t.Errorf("%q: via %s, found %t, error %v", subnet, via, found, err)
			}
			for shell, args := range shells(t) {
				if _, err := script(t, args, "FLANNEL_SUBNET="+subnet+"\n", nil, nil); (err != nil) != want {
					t.Errorf("%q in %s: error %v", subnet, shell, err)
				}
			}
		}
	})
}

func TestScriptSaysWhatIsWrong(t *testing.T) {
	name, err := exec.LookPath("sh")
	if err != nil {
		netnstest.Unavailable(t, "sh")
	}
	out, err := exec.Command(name, "../../deploy/docker/mk-docker-opts.sh", "-x").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "usage: ") {
		t.Errorf("error %v, printed %s", err, out)
	}
}
