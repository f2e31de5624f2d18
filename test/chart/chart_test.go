// Package chart compares what Helm makes of our chart with what weft manifest makes of it, and decodes the
// result as strictly as an API server can. It is a module of its own because of Helm's dependencies.
package chart

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/internal/manifest"
)

const chartDir = "../../deploy/chart"

// cases are values files; Helm and weft manifest have to make the same of each.
func cases() map[string]string {
	return map[string]string{
		"defaults":              "",
		"dual stack, vxlan":     "podCidrv6: fd24::/48\nflannel: {backendPort: 4789, vni: 16777215, GBP: true, directRouting: true, mtu: 1500, macPrefix: 0E-2B, enableNFTables: true}",
		"IPv6 alone":            `{podCidr: "", podCidrv6: "fd24::/48"}`,
		"udp":                   "flannel: {backend: udp, backendPort: 8285, vni: 7}",
		"zeros":                 "flannel: {backend: udp, backendPort: 0, mtu: 0, vni: null}",
		"own net-conf":          "netConf: |\n  {\"Network\": \"10.1.0.0/16\", \"Backend\": {\"Type\": \"host-gw\"}}\n",
		"no healthz":            "flannel: {healthz: {port: 0}}",
		"other folders":         "flannel: {cniBinDir: /usr/libexec/cni, cniConfDir: /etc/cni/multus/net.d, skipCNIConfigInstallation: true}",
		"scheduling":            "global: {imagePullSecrets: [{name: s}]}\nflannel: {nodeSelector: {a: b}, tolerations: [], resources: {limits: {memory: 100Mi}}}",
		"images":                "flannel: {image: {repository: r/a, tag: '1.10'}, flannel_cni: {image: {repository: r/b, tag: v2}}}",
		"args that need quotes": "flannel: {args: ['--iface-regex=^eth[0-9]: \"x\"', '--kube-subnet-mgr']}",
		"NetworkPolicy":         "netpol: {enabled: true}",
		"no policy":             "admissionPolicy: {enabled: false}",
	}
}

func TestHelmAndWeftManifestAgree(t *testing.T) {
	for name, text := range cases() {
		t.Run(name, func(t *testing.T) {
			values, err := manifest.ParseValues([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			values = manifest.Values{"flannel": map[string]any{"separateArgs": false}}.With(values) // as in the chart
			if !strings.Contains(text, "tolerations") {
				values = manifest.Values{"flannel": map[string]any{"tolerations": []any{
					map[string]any{"effect": "NoExecute", "operator": "Exists"}, map[string]any{"effect": "NoSchedule", "operator": "Exists"},
				}}}.With(values)
			}
			ours, err := manifest.Kustomize(manifest.Options{Namespace: "net", Values: values})
			if err != nil {
				t.Fatal(err)
			}
			helms := render(t, text, "v1.34.0")
			for _, f := range ours {
				if f.Name == "namespace.yaml" || f.Name == "kustomization.yaml" {
					continue
				}
				if diff := cmp.Diff(strings.TrimSpace(helms[f.Name]), strings.TrimSpace(string(f.Content))); diff != "" {
					t.Errorf("%s (-helm +weft manifest):\n%s", f.Name, diff)
				}
				delete(helms, f.Name)
			}
			for name, text := range helms {
				if strings.TrimSpace(text) != "" {
					t.Errorf("weft manifest leaves %s out", name)
				}
			}
			for _, f := range ours {
				if f.Name != "kustomization.yaml" {
					decode(t, f.Name, f.Content)
				}
			}
		})
	}
}

// The original's chart renders the mode without quotes, which is not JSON.
func TestWireGuardConfigurationIsJSON(t *testing.T) {
	text := render(t, `flannel: {backend: wireguard, backendPort: 51820, backendPortv6: 51821, psk: "a\"b", tunnelMode: auto, keepaliveInterval: 25}`, "v1.34.0")["config.yaml"]
	var c core.ConfigMap
	if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	var have any
	if err := json.Unmarshal([]byte(c.Data["net-conf.json"]), &have); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"EnableNFTables": false, "Network": "10.244.0.0/16", "Backend": map[string]any{
		"Type": "wireguard", "ListenPort": 51820.0, "ListenPortV6": 51821.0, "PSK": `a"b`, "Mode": "auto", "PersistentKeepaliveInterval": 25.0,
	}}
	if diff := cmp.Diff(any(want), have); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOldServersGetNoPolicy(t *testing.T) {
	if text := render(t, "", "v1.29.9+k3s1")["policy.yaml"]; strings.TrimSpace(text) != "" {
		t.Errorf("for 1.29:\n%s", text)
	}
	if text := render(t, "", "v1.30.1-eks-1234")["policy.yaml"]; !strings.Contains(text, "ValidatingAdmissionPolicy") {
		t.Error("none for 1.30")
	}
}

func TestCheckedInManifestsDecodeStrictly(t *testing.T) {
	for _, name := range []string{"kube-flannel.yml", "kube-flannel-uninstall.yml"} {
		raw, err := os.ReadFile(filepath.Join("../../deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		decode(t, name, raw)
	}
}

// render returns what Helm makes of the chart, by the name of the template.
func render(t *testing.T, values, kube string) map[string]string {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	vals, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	version, err := chartutil.ParseKubeVersion(kube)
	if err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(c, vals, chartutil.ReleaseOptions{Name: "flannel", Namespace: "net"},
		&chartutil.Capabilities{KubeVersion: *version})
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.Render(c, all)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for name, text := range files {
		out[filepath.Base(name)] = text
	}
	return out
}

// decode fails on fields that the API does not have, on doubled keys and on wrong types.
func decode(t *testing.T, name string, text []byte) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, apps.AddToScheme, rbac.AddToScheme, admission.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	for i, doc := range bytes.Split(text, []byte("\n---\n")) {
		if err := yaml.UnmarshalStrict(doc, &map[string]any{}); err != nil {
			t.Errorf("%s, document %d: %v", name, i, err)
		}
		if _, _, err := decoder.Decode(doc, nil, nil); err != nil {
			t.Errorf("%s, document %d: %v\n%s", name, i, err, doc)
		}
	}
}

func TestKustomizeBaseIsTheManifest(t *testing.T) {
	built, err := exec.Command(tool(t, "kubectl"), "kustomize", "../../deploy/kustomize/base").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, built)
	}
	plain, err := os.ReadFile("../../deploy/kube-flannel.yml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(objects(t, plain), objects(t, built)); diff != "" {
		t.Errorf("(-manifest +kustomize):\n%s", diff)
	}
}

// objects returns what is in a manifest, by kind: there is one of each.
func objects(t *testing.T, text []byte) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var o map[string]any
		if err := yaml.Unmarshal(append(doc[:len(doc):len(doc)], '\n'), &o); err != nil {
			t.Fatal(err)
		}
		all[o["kind"].(string)] = o
	}
	return all
}
