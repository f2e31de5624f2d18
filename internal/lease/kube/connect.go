package kube

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"

	"github.com/weftnet/weft/internal/version"
)

// tokenFile is where the kubelet keeps a pod's token up to date.
const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// connect returns the API server's URL and a client with the credentials. The transport is our own: a
// connection that died in silence is noticed within the two ping times, not after minutes of TCP retries.
func connect(cfg Config) (*url.URL, *http.Client, error) {
	rc, err := restConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	base, _, err := rest.DefaultServerUrlFor(rc)
	if err != nil {
		return nil, nil, err
	}
	rc.UserAgent = "flanneld/" + version.String()
	tc, err := rc.TransportConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("credentials: %w", err)
	}
	tls, err := transport.TLSConfigFor(tc)
	if err != nil {
		return nil, nil, fmt.Errorf("TLS: %w", err)
	}
	proxy := http.ProxyFromEnvironment
	if tc.Proxy != nil {
		proxy = tc.Proxy
	}
	var rt http.RoundTripper = &http.Transport{
		Proxy:                 proxy,
		DialContext:           (&net.Dialer{Timeout: cfg.RequestTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       tls,
		TLSHandshakeTimeout:   cfg.RequestTimeout,
		ResponseHeaderTimeout: 2 * cfg.RequestTimeout,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // lists would cost the server more than the bytes are worth
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second,
			MaxReceiveBufferPerStream: 1 << 20, // a list that comes faster than it is read waits in the server's memory, not here
		},
	}
	if rt, err = transport.HTTPWrappersForConfig(tc, rt); err != nil {
		return nil, nil, fmt.Errorf("credentials: %w", err)
	}
	return base, &http.Client{Transport: rt}, nil
}

// restConfig reads where the API server is and how to log in there: --kube-api-url, the kubeconfig file, or
// what a pod is given. A pod that is sent to another URL logs in there as itself, unless that is plain HTTP.
func restConfig(cfg Config) (*rest.Config, error) {
	if cfg.Kubeconfig == "" && (cfg.APIURL == nil || cfg.APIURL.Scheme == "https") {
		rc, err := rest.InClusterConfig()
		switch {
		case err == nil && cfg.APIURL != nil:
			rc.Host = cfg.APIURL.String()
			return rc, nil
		case err == nil:
			return rc, nil
		case cfg.APIURL != nil: // not in a pod, or without an account: whatever the URL lets anybody do
		case errors.Is(err, rest.ErrNotInCluster):
			return nil, errors.New("this is no pod (no KUBERNETES_SERVICE_HOST): say with --kube-api-url or --kubeconfig-file where the API server is")
		default:
			return nil, err
		}
	}
	overrides := &clientcmd.ConfigOverrides{}
	if cfg.APIURL != nil {
		overrides.ClusterInfo.Server = cfg.APIURL.String()
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
}

// TokenNode returns the name of the node that this pod's token is bound to, as API servers of 1.30 and
// later write it there, or "". It needs no API server, so a node that boots while that is down knows its name.
func TokenNode() string {
	raw, err := os.ReadFile(tokenFile)
	if err != nil {
		return ""
	}
	return nodeOfToken(string(raw))
}

// nodeOfToken reads the node claim of a token (RFC 7519) that the kubelet has put there: it is not checked,
// since it decides nothing but which Node we ask for.
func nodeOfToken(token string) string {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return ""
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct {
		Kubernetes struct {
			Node struct{ Name string }
		} `json:"kubernetes.io"`
	}
	if json.Unmarshal(raw, &claims) != nil {
		return ""
	}
	return claims.Kubernetes.Node.Name
}
