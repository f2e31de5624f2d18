package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDockerOptsTakesTheFlagsOfTheScript(t *testing.T) {
	dir := t.TempDir()
	input, output := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "docker_opts.env")
	if err := os.WriteFile(input, []byte("FLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := newDockerOptsCommand()
	c.SetArgs([]string{"-f", input, "-d", output, "-i", "-c", "-m", "-k", "WEFT_TEST_OPTS"})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(output)
	want := "DOCKER_OPT_BIP=\"--bip=10.244.7.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\nWEFT_TEST_OPTS=\" --bip=10.244.7.1/24 --mtu=1450\"\n"
	if err != nil || string(got) != want {
		t.Errorf("got\n%s\nwant\n%s\n%v", got, want, err)
	}
}
