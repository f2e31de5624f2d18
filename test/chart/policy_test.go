package chart

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestOnARealServer applies the manifest as it lies there and looks at what the agents' account may do.
func TestOnARealServer(t *testing.T) {
	s := startServer(t)
	s.kubectl(t, "apply", "-f", "../../deploy/kube-flannel.yml")
	if out := s.kubectl(t, "apply", "-f", "../../deploy/kube-flannel.yml"); strings.Contains(out, "configured") || strings.Contains(out, "created") {
		t.Errorf("applied again:\n%s", out)
	}
	s.kubectl(t, "apply", "-f", "../../deploy/kube-flannel-uninstall.yml")
	for _, node := range []string{"n1", "n2"} {
		s.must(t, "POST", "/api/v1/nodes", "application/json", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"`+node+
			`","labels":{"zone":"a"},"annotations":{"someone.else/key":"value"}},"spec":{"podCIDR":"10.244.1.0/24"}}`)
		s.must(t, "PATCH", "/api/v1/nodes/"+node+"/status", "application/merge-patch+json", `{"status":{"capacity":{"cpu":"4"},"allocatable":{"cpu":"4"},
			"addresses":[{"type":"InternalIP","address":"192.0.2.7"}],"nodeInfo":{"kubeletVersion":"v1.34.0"},
			"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady"}]}}`)
	}
	own := s.agentToken(t, "n1")
	const mine = `{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"192.0.2.7","flannel.alpha.coreos.com/backend-data":"null"}}}`
	// Policies take effect some time after they are there, and so do the rights without which all is refused.
	if !poll(t, 2*time.Minute, func() bool {
		code, answer, _ := s.patch("n2", own, mine)
		return code == http.StatusForbidden && strings.Contains(string(answer), "may not change node n2")
	}) {
		t.Fatal("the policy does not take effect")
	}
	for name, c := range map[string]struct {
		node, token, patch, path string
		refused                  string // empty: allowed
	}{
		"own annotations":           {patch: mine},
		"own condition":             {patch: condition("NetworkUnavailable", "False")},
		"own condition again":       {patch: condition("NetworkUnavailable", "True")},
		"own annotation removed":    {patch: `{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-data":null}}}`},
		"another node's annotation": {node: "n2", patch: mine, refused: "the flannel of node n1 may not change node n2"},
		"another node's condition":  {node: "n2", patch: condition("NetworkUnavailable", "True"), refused: "may not change node n2"},
		"token of no node":          {token: s.token(t, ""), patch: mine, refused: "bound to its node"},
		"foreign annotation":        {patch: `{"metadata":{"annotations":{"someone.else/key":"x"}}}`, refused: "its own annotations"},
		"new foreign annotation":    {patch: `{"metadata":{"annotations":{"new":"x"}}}`, refused: "its own annotations"},
		"foreign annotation gone":   {patch: `{"metadata":{"annotations":{"someone.else/key":null}}}`, refused: "its own annotations"},
		"label":                     {patch: `{"metadata":{"labels":{"zone":"b"}}}`, refused: "annotations in the metadata"},
		"label gone":                {patch: `{"metadata":{"labels":null}}`, refused: "annotations in the metadata"},
		"finalizer":                 {patch: `{"metadata":{"finalizers":["example.net/stay"]}}`, refused: "annotations in the metadata"},
		"condition Ready":           {patch: condition("Ready", "False"), refused: "condition NetworkUnavailable"},
		"condition of its own":      {patch: condition("Pressure", "True"), refused: "condition NetworkUnavailable"},
		"capacity":                  {patch: `{"status":{"capacity":{"cpu":"400"}}}`, refused: "conditions in the status"},
		"extended resource":         {patch: `{"status":{"capacity":{"example.net/gpu":"1"}}}`, refused: "conditions in the status"},
		"address":                   {patch: `{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.8"}]}}`, refused: "conditions in the status"},
		"node info":                 {patch: `{"status":{"nodeInfo":{"kubeletVersion":"v1.0.0"}}}`, refused: "conditions in the status"},
		"the node, not its status":  {path: "/api/v1/nodes/n1", patch: mine, refused: `cannot patch resource "nodes"`},
	} {
		t.Run(name, func(t *testing.T) {
			node, token := "n1", own
			if c.node != "" {
				node = c.node
			}
			if c.token != "" {
				token = c.token
			}
			path := "/api/v1/nodes/" + node + "/status"
			if c.path != "" {
				path = c.path
			}
			code, answer, err := s.do("PATCH", path, token, "application/strategic-merge-patch+json", []byte(c.patch))
			if err != nil {
				t.Fatal(err)
			}
			if c.refused == "" {
				if code != http.StatusOK {
					t.Errorf("%d: %s", code, answer)
				}
				return
			}
			if code != http.StatusForbidden || !strings.Contains(strings.ReplaceAll(string(answer), `\"`, `"`), c.refused) {
				t.Errorf("%d: %s; want it refused with %q", code, answer, c.refused)
			}
		})
	}
	t.Run("others may still", func(t *testing.T) {
		if code, answer, err := s.patch("n2", adminToken, `{"metadata":{"labels":{"zone":"c"}}}`); err != nil || code != http.StatusOK {
			t.Errorf("%d, %v: %s", code, err, answer)
		}
	})
	t.Run("delete", func(t *testing.T) { s.kubectl(t, "delete", "--wait=false", "-f", "../../deploy/kube-flannel.yml") })
}

func (s *server) patch(node, token, patch string) (int, []byte, error) {
	return s.do("PATCH", "/api/v1/nodes/"+node+"/status", token, "application/strategic-merge-patch+json", []byte(patch))
}

func condition(kind, status string) string {
	return `{"status":{"conditions":[{"type":"` + kind + `","status":"` + status + `","reason":"FlannelIsUp","message":"m",` +
		`"lastHeartbeatTime":"2026-01-02T03:04:05Z","lastTransitionTime":"2026-01-02T03:04:05Z"}]}}`
}
