package k8s

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	authn "k8s.io/api/authentication/v1"
	authz "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weftnet/weft/test/k8s/cluster"
)

// TestRights takes the token of one node's agent and tries what a thief would.
func TestRights(t *testing.T) {
	net := ours(t)
	o := cluster.Options{Segments: [][]string{{"cp", "n1", "n2"}}}
	ctx, c := up(t, 15*time.Minute, o, net)
	net.installed(ctx, t, c, netConf(o, `{"Type": "vxlan"}`))
	pods, err := c.Pods(ctx, flannelNamespace, "app=flannel")
	must(t, err)
	thief := as(ctx, t, c, &authn.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pods["n1"].Name})
	unbound := as(ctx, t, c, nil)

	const note = "flannel.alpha.coreos.com/public-ip"
	annotate := func(key string) string { return fmt.Sprintf(`{"metadata":{"annotations":{%q:"172.31.0.99"}}}`, key) }
	// Policies take effect some time after they are there.
	eventually(ctx, t, time.Minute, "the policy takes effect", func() error {
		_, err := thief.CoreV1().Nodes().Patch(ctx, "n2", types.StrategicMergePatchType, []byte(annotate(note)), meta.PatchOptions{DryRun: []string{meta.DryRunAll}}, "status")
		if apierrors.IsForbidden(err) {
			return nil
		}
		return fmt.Errorf("not refused: %v", err)
	})
	for _, tc := range []struct {
		name, node, patch string
		client            *kubernetes.Clientset
		allowed           bool
	}{
		{"its own annotation of its own node", "n1", annotate(note), thief, true},
		{"the same of another node", "n2", annotate(note), thief, false},
		{"the same with a token that is bound to no node", "n1", annotate(note), unbound, false},
		{"somebody else's annotation of its own node", "n1", annotate("example.net/owner"), thief, false},
		{"a label of its own node", "n1", `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`, thief, false},
		{"another condition of its own node", "n1", `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`, thief, false},
		{"the addresses of its own node", "n1", `{"status":{"addresses":[{"type":"InternalIP","address":"172.31.0.99"}]}}`, thief, false},
		{"the capacity of its own node", "n1", `{"status":{"capacity":{"cpu":"99"}}}`, thief, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := kubectl(ctx, t, c, "get", "node", tc.node, "-o", "jsonpath={.metadata.annotations}{.metadata.labels}")
			_, err := tc.client.CoreV1().Nodes().Patch(ctx, tc.node, types.StrategicMergePatchType, []byte(tc.patch), meta.PatchOptions{}, "status")
			after := kubectl(ctx, t, c, "get", "node", tc.node, "-o", "jsonpath={.metadata.annotations}{.metadata.labels}")
			switch {
			case tc.allowed && err != nil:
				t.Error(err)
			case !tc.allowed && err == nil && before != after:
				t.Errorf("it is allowed: %s became %s", before, after)
			case !tc.allowed && err != nil && !apierrors.IsForbidden(err):
				t.Errorf("refused, but as %v", err)
			}
		})
	}
	rulesAreThose(ctx, t, thief)
}

// rulesAreThose wants the account to have the rights of existing deployments and no others.
func rulesAreThose(ctx context.Context, t *testing.T, client *kubernetes.Clientset) {
	t.Helper()
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx,
		&authz.SelfSubjectRulesReview{Spec: authz.SelfSubjectRulesReviewSpec{Namespace: flannelNamespace}}, meta.CreateOptions{})
	must(t, err)
	want := map[string]string{"pods": "get", "nodes": "get list watch", "nodes/status": "patch"}
	for _, r := range review.Status.ResourceRules {
		group, resources, verbs := strings.Join(r.APIGroups, " "), strings.Join(r.Resources, " "), strings.Join(r.Verbs, " ")
		// Everybody may ask what they may do.
		if group == "authorization.k8s.io" || group == "authentication.k8s.io" {
			continue
		}
		if group != "" || want[resources] != verbs {
			t.Errorf("the account may also %s %s in %q", verbs, resources, group)
		}
		delete(want, resources)
	}
	if len(want) > 0 {
		t.Errorf("the account may not: %v", want)
	}
}

// as returns a client with a token of the agent's account.
func as(ctx context.Context, t *testing.T, c *cluster.Cluster, bound *authn.BoundObjectReference) *kubernetes.Clientset {
	t.Helper()
	seconds := int64(3600)
	request := &authn.TokenRequest{Spec: authn.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: bound}}
	token, err := c.Client.CoreV1().ServiceAccounts(flannelNamespace).CreateToken(ctx, "flannel", request, meta.CreateOptions{})
	must(t, err)
	admin, err := c.Config()
	must(t, err)
	cfg := rest.AnonymousClientConfig(admin)
	cfg.Dial, cfg.BearerToken = admin.Dial, token.Status.Token
	client, err := kubernetes.NewForConfig(cfg)
	must(t, err)
	return client
}
