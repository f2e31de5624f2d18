package kube_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/internal/lease/kube"
)

// TestManifestRights applies the manifest as operators do and runs the store with the tokens that its pods get:
// they suffice, and the stolen token of one node cannot touch another one.
func TestManifestRights(t *testing.T) {
	server := startAPIServer(t)
	server.apply(t, "../../../deploy/kube-flannel.yml")
	for i, name := range []string{"n1", "n2"} {
		server.createNode(t, name, fmt.Sprintf("10.244.%d.0/24", i+1))
		server.setStatus(t, name, `{"conditions":[{"type":"NetworkUnavailable","status":"True"},{"type":"Ready","status":"True"}]}`)
	}
	steal := func(token, node, patch string) (int, string) {
		code, answer := server.try(t, http.MethodPatch, "/api/v1/nodes/"+node+"/status", token, []byte(patch))
		return code, string(answer)
	}
	own, stolen := server.podToken(t, "n1"), server.podToken(t, "n2")
	if name := kube.NodeOfToken(own); name != "n1" {
		t.Errorf("the token names node %q", name)
	}
	eventually(t, "the policy is in force", func() bool { // and the role, without which all is forbidden
		code, answer := steal(stolen, "n1", `{"metadata":{"annotations":{"flannel.alpha.coreos.com/x":"y"}}}`)
		return code == http.StatusForbidden && strings.Contains(answer, "may not change node n1")
	})
	before := server.node(t, "n1")
	s, out := newStore(t, server, "n1", func(c *kube.Config) {
		c.Kubeconfig, c.SetCondition = server.kubeconfig(t, server.url, own), true
	})
	v := view(t, s)
	me := self("192.0.2.1")
	l := acquire(t, s, me)
	hold(t, s, me, l)
	s.SetReady()
	v.see(t, l)
	eventually(t, "the condition is set", func() bool {
		status, _, _ := server.node(t, "n1").condition("NetworkUnavailable")
		return status == "False"
	})
	server.annotate(t, "n1", prefix, map[string]*string{"public-ip": new("192.0.2.66")})
	eventually(t, "the public address is written back", func() bool {
		return server.node(t, "n1").Metadata.Annotations[prefix+"public-ip"] == "192.0.2.1"
	})
	v.see(t, l)
	if n := out.count("forbidden"); n != 0 {
		t.Errorf("%d requests were refused", n)
	}
	for name, patch := range map[string]string{
		"public address": `{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"192.0.2.2"}}}`,
		"backend data":   `{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-data":"{}"}}}`,
		"membership":     `{"metadata":{"annotations":{"flannel.alpha.coreos.com/kube-subnet-manager":null}}}`,
		"condition":      `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`,
		"addresses":      `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"}]}}`,
	} {
		if code, _ := steal(stolen, "n1", patch); code != http.StatusForbidden {
			t.Errorf("%s: another node's token got %d", name, code)
		}
	}
	if after := server.node(t, "n1"); after.Metadata.Annotations[prefix+"public-ip"] != "192.0.2.1" || before.Metadata.Name != after.Metadata.Name {
		t.Errorf("got %+v", after)
	}
}

// apply makes the objects of a manifest.
func (a *apiServer) apply(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		body, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		var o struct {
			APIVersion, Kind string
			Metadata         struct{ Namespace string }
		}
		if err := json.Unmarshal(body, &o); err != nil {
			t.Fatal(err)
		}
		base := "/apis/" + o.APIVersion
		if o.APIVersion == "v1" {
			base = "/api/v1"
		}
		if o.Metadata.Namespace != "" {
			base += "/namespaces/" + o.Metadata.Namespace
		}
		kind := strings.ToLower(o.Kind) + "s"
		if strings.HasSuffix(o.Kind, "Policy") {
			kind = strings.TrimSuffix(kind, "ys") + "ies"
		}
		a.do(t, http.MethodPost, base+"/"+kind, string(body))
	}
}

// podToken makes a pod of the manifest's account on a node and returns the token that the kubelet would give it.
func (a *apiServer) podToken(t *testing.T, node string) string {
	t.Helper()
	const base = "/api/v1/namespaces/kube-flannel"
	pod := "kube-flannel-ds-" + node
	a.do(t, http.MethodPost, base+"/pods", fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"nodeName":%q,"serviceAccountName":"flannel",
		"containers":[{"name":"c","image":"i"}]}}`, pod, node))
	var made struct{ Status struct{ Token string } }
	answer := a.do(t, http.MethodPost, base+"/serviceaccounts/flannel/token", fmt.Sprintf(
		`{"spec":{"expirationSeconds":3600,"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":%q}}}`, pod))
	if err := json.Unmarshal(answer, &made); err != nil {
		t.Fatal(err)
	}
	return made.Status.Token
}
