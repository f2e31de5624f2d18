//go:build !node

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestManifestCommand(t *testing.T) {
	dir := t.TempDir()
	values := filepath.Join(dir, "values.yaml")
	if err := os.WriteFile(values, []byte("podCidr: 10.1.0.0/16\nflannel: {backend: host-gw, image: {tag: v9}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args  []string
		stdin string
		want  []string // parts of the output
		file  string   // where to look for them; empty: standard output
		fail  string
	}{
		"plain":           {want: []string{"kind: DaemonSet", "kind: ValidatingAdmissionPolicy", "10.244.0.0/16"}},
		"values":          {args: []string{"-f", values, "--set", "podCidr=10.2.0.0/16"}, want: []string{"10.2.0.0/16", "host-gw", "weft:v9"}},
		"values on stdin": {args: []string{"-f", "-"}, stdin: "podCidr: 10.3.0.0/16", want: []string{"10.3.0.0/16"}},
		"net-conf of a running cluster": {args: []string{"install", "--net-conf", "-"}, stdin: `{"Network": "10.4.0.0/16", "Backend": {"Type": "vxlan", "VNI": 4096}}`,
			want: []string{`"VNI": 4096`}},
		"uninstall":         {args: []string{"uninstall"}, want: []string{"kube-flannel-uninstall", "/opt/bin/weft, cleanup"}},
		"kustomize":         {args: []string{"kustomize", "-o", filepath.Join(dir, "k")}, file: "k/kustomization.yaml", want: []string{"- daemonset.yaml"}},
		"chart":             {args: []string{"chart", "-o", filepath.Join(dir, "c")}, file: "c/templates/daemonset.yaml", want: []string{"{{- range $args }}"}},
		"chart to nowhere":  {args: []string{"chart"}, fail: "--output"},
		"something else":    {args: []string{"remove"}, fail: "remove"},
		"bad value":         {args: []string{"--set", "podCidr"}, fail: "--set"},
		"bad configuration": {args: []string{"--net-conf", "-"}, stdin: `{"Network": "10.4.0.0/16", "Backend": {"Type": "vxlan", "VNI": -1}}`, fail: "VNI"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := newManifestCommand()
			var out bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetErr(&out)
			cmd.SetIn(strings.NewReader(c.stdin))
			cmd.SetArgs(append([]string{}, c.args...))
			err := cmd.Execute()
			if c.fail != "" {
				if err == nil || !strings.Contains(err.Error(), c.fail) {
					t.Errorf("%v; want an error with %q", err, c.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text := out.String()
			if c.file != "" {
				raw, err := os.ReadFile(filepath.Join(dir, c.file))
				if err != nil {
					t.Fatal(err)
				}
				text = string(raw)
			}
			for _, part := range c.want {
				if !strings.Contains(text, part) {
					t.Errorf("%q is missing in\n%s", part, text)
				}
			}
		})
	}
}
