package cluster

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/weftnet/weft/test/k8s/archive"
)

// Tools are the programs of this machine that the images for Kubernetes' own tests are made of, and the
// Debian packages that have them.
var Tools = map[string]string{
	"busybox": "busybox-static", "dash": "dash", "curl": "curl", "dig": "bind9-dnsutils", "iperf": "iperf",
	"getent": "libc-bin", "hostname": "hostname", "nc": "netcat-openbsd", "wget": "wget",
}

// PackTestImages packs stand-ins for the images that Kubernetes' network tests start, under the names by which
// the tests ask for them, and returns the archives. agnhost is the real program; the tools around it are this
// machine's.
func PackTestImages(ctx context.Context, cache string) ([]string, error) {
	list, err := command(ctx, ".", filepath.Join(cache, "bin", "e2e.test"), "--list-images")
	if err != nil {
		return nil, err
	}
	names := map[string][]string{}
	for name := range strings.FieldsSeq(list) {
		switch short, tag, _ := strings.Cut(path.Base(name), ":"); {
		case short == "agnhost" && tag != "2.9": // the tests of old versions ask for that one
			names["agnhost"] = append(names["agnhost"], name)
		case short == "jessie-dnsutils" || short == "busybox":
			names["tools"] = append(names["tools"], name)
		case short == "pause":
			names["test-pause"] = append(names["test-pause"], name)
		}
	}
	images := map[string]*archive.Image{
		"agnhost":    {Names: names["agnhost"], Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}},
		"tools":      {Names: names["tools"], Cmd: []string{"/bin/sh"}},
		"test-pause": {Names: names["test-pause"], Entrypoint: []string{"/pause"}},
	}
	bin := func(name string) string { return filepath.Join(cache, "bin", name) }
	for _, name := range []string{"agnhost", "tools"} {
		if err := addTools(images[name]); err != nil {
			return nil, err
		}
	}
	if err := images["agnhost"].Add(bin("agnhost"), "/agnhost"); err != nil {
		return nil, err
	}
	if err := addCertificate(images["agnhost"]); err != nil {
		return nil, err
	}
	if err := images["test-pause"].Add(bin("pause"), "/pause"); err != nil {
		return nil, err
	}
	var files []string
	for name, img := range images {
		file := Image(cache, name)
		if err := img.Save(file); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		files = append(files, file)
	}
	return files, nil
}

// addTools adds a small system: a shell, what the tests call in it, and busybox for the rest.
func addTools(img *archive.Image) error {
	for _, d := range []string{"/proc", "/sys", "/dev", "/root", "/run"} {
		img.Dir(d, 0o755)
	}
	img.Dir("/tmp", 0o777|fs.ModeSticky)
	img.Text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	img.Text("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
	img.Text("/etc/nsswitch.conf", "hosts: files dns\n")
	applets, err := exec.Command("busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	for a := range strings.FieldsSeq(string(applets)) {
		img.Link("busybox", "/bin/"+a)
	}
	for tool := range Tools {
		to := "/usr/bin/" + tool
		switch tool {
		case "busybox", "nc", "wget", "hostname":
			to = "/bin/" + tool // in place of busybox's
		case "dash":
			to = "/bin/sh" // busybox's shell prefers its own applets to programs
		}
		if err := img.Program(tool, to); err != nil {
			return err
		}
	}
	return nil
}

// addCertificate adds what agnhost serves TLS with.
func addCertificate(img *archive.Image) error {
	dir, err := os.MkdirTemp("", "weft-k8s-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	a, err := newAuthority(dir, "")
	if err != nil {
		return err
	}
	if err := a.serve("localhost", []string{"127.0.0.1"}, "localhost"); err != nil {
		return err
	}
	for _, suffix := range []string{".crt", ".key"} {
		raw, err := os.ReadFile(a.path("localhost" + suffix))
		if err != nil {
			return err
		}
		img.Text("/localhost"+suffix, string(raw))
	}
	return nil
}

// RunTests runs those of Kubernetes' own tests whose names match focus, and returns what they print. Reports
// go to dir.
func (c *Cluster) RunTests(ctx context.Context, focus, skip, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	o := c.Options
	return c.controlPlane().run(ctx, "", "env", "HOME=/root", "PATH="+filepath.Join(o.Cache, "bin")+":"+os.Getenv("PATH"),
		o.program("ginkgo"), "run", "--procs=4", "--no-color", "--focus="+focus, "--skip="+skip, "--timeout=40m",
		o.program("e2e.test"), "--",
		"--kubeconfig="+c.kubeconfig(adminUser), "--provider=local", "--dns-domain=cluster.local",
		"--allowed-not-ready-nodes=0", "--system-pods-startup-timeout=2m", "--report-dir="+dir)
}
