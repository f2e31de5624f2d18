package manifest

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// What deployed clusters, their operators' patches and scripts know of the original's manifest. kubectl apply
// of ours over it is a rolling update only as long as this holds.
func TestInstallKeepsTheOriginalsNames(t *testing.T) {
	objects := parse(t, Options{})
	ds := objects["DaemonSet/kube-flannel-ds"]
	for path, want := range map[string]any{
		"metadata.namespace":                             "kube-flannel",
		"metadata.labels":                                labels("tier", "node", "app", "flannel", "k8s-app", "flannel"),
		"spec.selector":                                  map[string]any{"matchLabels": labels("app", "flannel")},
		"spec.template.metadata.labels":                  labels("tier", "node", "app", "flannel"),
		"spec.template.spec.hostNetwork":                 true,
		"spec.template.spec.priorityClassName":           "system-node-critical",
		"spec.template.spec.serviceAccountName":          "flannel",
		"spec.template.spec.tolerations":                 []any{labels("operator", "Exists", "effect", "NoSchedule")},
		"spec.template.spec.initContainers.0.name":       "install-cni-plugin",
		"spec.template.spec.initContainers.1.name":       "install-cni",
		"spec.template.spec.containers.0.name":           "kube-flannel",
		"spec.template.spec.containers.0.command":        []any{"/opt/bin/flanneld"},
		"spec.template.spec.containers.0.args":           []any{"--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"},
		"spec.template.spec.containers.0.ports.0":        map[string]any{"name": "healthz", "containerPort": 8081.0, "protocol": "TCP"},
		"spec.template.spec.containers.0.livenessProbe":  probe("/healthz", 10, 30),
		"spec.template.spec.containers.0.readinessProbe": probe("/readyz", 5, 10),
		"spec.template.spec.containers.0.resources":      map[string]any{"requests": labels("cpu", "100m", "memory", "50Mi")},
	} {
		if diff := cmp.Diff(want, at(ds, path)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
	for name, hostPath := range map[string]string{"run": "/run/flannel", "cni-plugin": "/opt/cni/bin", "cni": "/etc/cni/net.d", "state": "/var/lib/flannel"} {
		if got := at(named(ds, "spec.template.spec.volumes", name), "hostPath.path"); got != hostPath {
			t.Errorf("volume %s: %v, want %s", name, got, hostPath)
		}
	}
	if got := at(named(ds, "spec.template.spec.volumes", "flannel-cfg"), "configMap.name"); got != "kube-flannel-cfg" {
		t.Errorf("volume flannel-cfg: %v", got)
	}
	cm := objects["ConfigMap/kube-flannel-cfg"]
	if diff := cmp.Diff(any(labels("tier", "node", "k8s-app", "flannel", "app", "flannel")), at(cm, "metadata.labels")); diff != "" {
		t.Errorf("ConfigMap (-want +got):\n%s", diff)
	}
	equalJSON(t, at(cm, "data.net-conf\\.json"), `{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}`)
	equalJSON(t, at(cm, "data.cni-conf\\.json"), `{"name":"cbr0","cniVersion":"0.3.1","plugins":[
		{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	if got := at(objects["Namespace/kube-flannel"], "metadata.labels.pod-security\\.kubernetes\\.io/enforce"); got != "privileged" {
		t.Errorf("namespace: %v", got)
	}
}

// The rights are those that existing deployments grant, and no more.
func TestRights(t *testing.T) {
	want := []any{
		rule("pods", "get"), rule("nodes", "get", "list", "watch"), rule("nodes/status", "patch"),
	}
	if diff := cmp.Diff(any(want), at(parse(t, Options{})["ClusterRole/flannel"], "rules")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNoContainerHasMoreThanItNeeds(t *testing.T) {
	text, err := Uninstall(Options{})
	if err != nil {
		t.Fatal(err)
	}
	sets := []map[string]any{parse(t, Options{})["DaemonSet/kube-flannel-ds"], documents(t, text)["DaemonSet/kube-flannel-uninstall"]}
	needs := map[string]any{"kube-flannel": []any{"NET_ADMIN", "NET_RAW"}, "cleanup": []any{"NET_ADMIN"}}
	for _, ds := range sets {
		for _, list := range []string{"initContainers", "containers"} {
			for _, c := range at(ds, "spec.template.spec."+list).([]any) {
				c := c.(map[string]any)
				for path, want := range map[string]any{
					"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
					"capabilities.drop": []any{"ALL"}, "capabilities.add": needs[c["name"].(string)],
				} {
					if diff := cmp.Diff(want, at(c, "securityContext."+path)); diff != "" {
						t.Errorf("%s: %s (-want +got):\n%s", c["name"], path, diff)
					}
				}
				if privileged := at(c, "securityContext.privileged"); privileged == true {
					t.Errorf("%s is privileged", c["name"])
				}
			}
		}
	}
}

func TestOptions(t *testing.T) {
	for name, c := range map[string]struct {
		opts Options
		want map[string]any // by object and path
		none string         // an object that must not be there
		fail string         // part of the error
	}{
		"namespace": {opts: Options{Namespace: "net"}, want: map[string]any{
			"Namespace/net metadata.name": "net", "DaemonSet/kube-flannel-ds metadata.namespace": "net",
			"ClusterRoleBinding/flannel subjects.0.namespace":                                   "net",
			"ValidatingAdmissionPolicy/kube-flannel-own-node spec.matchConditions.0.expression": `request.userInfo.username == "system:serviceaccount:net:flannel"`,
		}},
		"server without the policy's kind": {opts: Options{KubeVersion: "v1.29.9-gke.1"}, none: "ValidatingAdmissionPolicy/kube-flannel-own-node"},
		"later server": {opts: Options{KubeVersion: "2.0"}, want: map[string]any{
			"ValidatingAdmissionPolicyBinding/kube-flannel-own-node spec.validationActions": []any{"Deny"}}},
		"CNI configuration from elsewhere": {opts: Options{Values: set("flannel.skipCNIConfigInstallation=true")}, want: map[string]any{
			"DaemonSet/kube-flannel-ds spec.template.spec.initContainers.1": nil,
		}},
		"zero stands for unset, as in the original's chart": {opts: Options{Values: Values{"flannel": map[string]any{"backend": "udp", "backendPort": 0.0}}}, want: map[string]any{
			"ConfigMap/kube-flannel-cfg data.net-conf\\.json": "{\n  \"Backend\": {\n    \"Type\": \"udp\"\n  },\n  \"EnableNFTables\": false,\n  \"Network\": \"10.244.0.0/16\"\n}",
		}},
		"no health port": {opts: Options{Values: set("flannel.healthz.port=0")}, want: map[string]any{
			"DaemonSet/kube-flannel-ds spec.template.spec.containers.0.args":          []any{"--ip-masq", "--kube-subnet-mgr"},
			"DaemonSet/kube-flannel-ds spec.template.spec.containers.0.ports":         nil,
			"DaemonSet/kube-flannel-ds spec.template.spec.containers.0.livenessProbe": nil,
		}},
		"network that no node accepts": {opts: Options{Values: set("podCidr=10.244.0.0/33")}, fail: "Network"},
		"no backend of that name":      {opts: Options{Values: set("flannel.backend=vlxan")}, fail: "vlxan"},
		"broken CNI configuration":     {opts: Options{Values: Values{"flannel": map[string]any{"cniConf": "{"}}}, fail: "flannel.cniConf"},
		"port that is none":            {opts: Options{Values: set("flannel.healthz.port=web")}, fail: "web"},
		"version that is none":         {opts: Options{KubeVersion: "latest"}, fail: "latest"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.fail != "" {
				if _, err := Install(c.opts); err == nil || !strings.Contains(err.Error(), c.fail) {
					t.Errorf("%v; want an error with %q", err, c.fail)
				}
				return
			}
			objects := parse(t, c.opts)
			for key, want := range c.want {
				object, path, _ := strings.Cut(key, " ")
				if diff := cmp.Diff(want, at(objects[object], path)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", key, diff)
				}
			}
			if _, ok := objects[c.none]; ok {
				t.Errorf("%s is there", c.none)
			}
		})
	}
}

func TestSetRefuses(t *testing.T) {
	for _, s := range []string{"", "a", "=1", "a..b=1", "a.b-c=1", "a={"} {
		if err := (Values{}).Set(s); err == nil {
			t.Errorf("%q: no error", s)
		}
	}
}

func set(s string) Values {
	v := Values{}
	if err := v.Set(s); err != nil {
		panic(err)
	}
	return v
}

func parse(t *testing.T, o Options) map[string]map[string]any {
	t.Helper()
	text, err := Install(o)
	if err != nil {
		t.Fatal(err)
	}
	return documents(t, text)
}

// documents returns the objects of a manifest by kind and name.
func documents(t *testing.T, text []byte) map[string]map[string]any {
	t.Helper()
	objects := map[string]map[string]any{}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var o map[string]any
		if err := yaml.UnmarshalStrict(doc, &o); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		objects[o["kind"].(string)+"/"+at(o, "metadata.name").(string)] = o
	}
	return objects
}

// at returns the value at a path such as spec.containers.0.name, nil where there is none.
func at(v any, path string) any {
	for _, key := range strings.Split(strings.ReplaceAll(path, `\.`, "\x00"), ".") {
		key = strings.ReplaceAll(key, "\x00", ".")
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			i := int(key[0] - '0')
			if i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

// named returns the member of a list that has that name.
func named(o map[string]any, path, name string) any {
	list, _ := at(o, path).([]any)
	for _, m := range list {
		if at(m, "name") == name {
			return m
		}
	}
	return nil
}

func labels(pairs ...any) map[string]any {
	m, err := dict(pairs...)
	if err != nil {
		panic(err)
	}
	return m
}

func probe(path string, delay, period float64) map[string]any {
	return map[string]any{"httpGet": labels("path", path, "port", "healthz"), "initialDelaySeconds": delay, "periodSeconds": period}
}

func rule(resource string, verbs ...any) map[string]any {
	return map[string]any{"apiGroups": []any{""}, "resources": []any{resource}, "verbs": verbs}
}

func equalJSON(t *testing.T, have any, want string) {
	t.Helper()
	var h, w any
	if err := json.Unmarshal([]byte(have.(string)), &h); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(w, h); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
