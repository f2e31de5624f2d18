// Package manifest renders what weft is installed with. The Helm chart is the one source: kube-flannel.yml,
// the kustomize base and the uninstall manifest are the chart's templates with some values of their own, so
// that they cannot drift apart.
package manifest

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/deploy"
	"github.com/weftnet/weft/internal/netconf"
)

// Namespace is where everything lives unless something else is asked for. The original's manifest has it.
const Namespace = "kube-flannel"

// KubeVersion is the version of Kubernetes that is assumed unless something else is asked for: any version
// that knows all kinds that the templates can make.
const KubeVersion = "v1.30.0"

//go:embed uninstall.yaml
var uninstall string

//go:embed namespace.yaml
var namespace string

// Options are what a manifest is rendered for. The zero value is a cluster as the original's manifest
// expects it.
type Options struct {
	Namespace   string // empty: Namespace
	KubeVersion string // of the API server, such as v1.29.4; empty: KubeVersion
	Values      Values // over those of the chart and of the manifest
}

// A File is one rendered file.
type File struct {
	Name    string // slash-separated
	Content []byte
}

// order is that of the chart's templates in a manifest. The policy comes last: an API server that does not
// know its kind takes everything before it.
func order() []string {
	return []string{"serviceaccount.yaml", "rbac.yaml", "config.yaml", "daemonset.yaml", "policy.yaml"}
}

// manifestValues are where the manifest differs from the chart, because the original's do.
func manifestValues() Values {
	return Values{"flannel": map[string]any{
		"separateArgs": true,
		"tolerations":  []any{map[string]any{"operator": "Exists", "effect": "NoSchedule"}},
	}}
}

// Install returns the manifest that installs weft, or takes over from a running flannel.
func Install(o Options) ([]byte, error) {
	files, err := resources(o)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for i, f := range files {
		if i > 0 {
			b.WriteString("---\n")
		}
		b.Write(f.Content)
	}
	return b.Bytes(), nil
}

// Kustomize returns a kustomize base: the documents of Install, a file for each of the chart's templates.
func Kustomize(o Options) ([]File, error) {
	files, err := resources(o)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n")
	for _, f := range files {
		b.WriteString("- " + f.Name + "\n")
	}
	return append(files, File{Name: "kustomization.yaml", Content: []byte(b.String())}), nil
}

// Uninstall returns the manifest that removes from all nodes what is left when the other one is deleted.
func Uninstall(o Options) ([]byte, error) {
	r, err := newRelease(o)
	if err != nil {
		return nil, err
	}
	return r.render("uninstall.yaml", uninstall)
}

// Chart returns the files of the Helm chart.
func Chart() ([]File, error) {
	var files []File
	err := fs.WalkDir(deploy.Chart, "chart", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := deploy.Chart.ReadFile(name)
		files = append(files, File{Name: strings.TrimPrefix(name, "chart/"), Content: content})
		return err
	})
	return files, err
}

// Image returns the name and tag of the image in the manifests.
func Image() (string, error) {
	r, err := newRelease(Options{})
	if err != nil {
		return "", err
	}
	image, err := r.render("image", "{{ .Values.flannel.image.repository }}:{{ .Values.flannel.image.tag | default .Chart.AppVersion }}")
	return strings.TrimSpace(string(image)), err
}

// resources renders the namespace and the chart's templates, and checks the configuration in them.
func resources(o Options) ([]File, error) {
	r, err := newRelease(o)
	if err != nil {
		return nil, err
	}
	content, err := r.render("namespace.yaml", namespace)
	if err != nil {
		return nil, err
	}
	files := []File{{Name: "namespace.yaml", Content: content}}
	for _, name := range order() {
		text, err := deploy.Chart.ReadFile(path.Join("chart/templates", name))
		if err != nil {
			return nil, err
		}
		content, err := r.render(name, string(text))
		if err != nil {
			return nil, err
		}
		if len(content) == 0 {
			continue // its values switch it off
		}
		if name == "config.yaml" {
			if err := checkConfig(content); err != nil {
				return nil, err
			}
		}
		files = append(files, File{Name: name, Content: content})
	}
	return files, nil
}

// checkConfig refuses a ConfigMap with which no node would get a network.
func checkConfig(configMap []byte) error {
	var c struct{ Data map[string]string }
	if err := yaml.Unmarshal(configMap, &c); err != nil {
		return fmt.Errorf("ConfigMap: %w", err)
	}
	var plugins struct{ Plugins []json.RawMessage }
	if err := json.Unmarshal([]byte(c.Data["cni-conf.json"]), &plugins); err != nil {
		return fmt.Errorf("flannel.cniConf: %w", err)
	}
	if len(plugins.Plugins) == 0 {
		return errors.New("flannel.cniConf: no plugins")
	}
	if _, _, err := netconf.Parse([]byte(c.Data["net-conf.json"]), netconf.Kubernetes); err != nil {
		return fmt.Errorf("net-conf.json: %w", err)
	}
	return nil
}

// A release is what templates see, under the names that Helm gives it.
type release struct {
	Values       Values
	Chart        struct{ Name, Version, AppVersion string }
	Release      struct{ Name, Namespace string }
	Capabilities struct{ KubeVersion struct{ Version string } }
}

func newRelease(o Options) (*release, error) {
	r := &release{Values: Values{}}
	for name, into := range map[string]any{"chart/values.yaml": &r.Values, "chart/Chart.yaml": &r.Chart} {
		text, err := deploy.Chart.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := yaml.Unmarshal(text, into); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	r.Values = r.Values.With(manifestValues()).With(o.Values)
	r.Release.Name, r.Release.Namespace = "flannel", Namespace
	if o.Namespace != "" {
		r.Release.Namespace = o.Namespace
	}
	r.Capabilities.KubeVersion.Version = KubeVersion
	if o.KubeVersion != "" {
		r.Capabilities.KubeVersion.Version = o.KubeVersion
	}
	return r, nil
}

// render returns the output of a template with one newline at the end, or nothing if it made nothing.
func (r *release) render(name, text string) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=zero").Funcs(functions()).Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, r); err != nil {
		return nil, err
	}
	out := bytes.TrimSpace(b.Bytes())
	if len(out) == 0 {
		return nil, nil
	}
	return append(out, '\n'), nil
}
