package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// An authority signs the certificates of one cluster. Files lie in dir: NAME.crt, NAME.key, NAME.kubeconfig.
type authority struct {
	dir    string
	server string // URL of the API server
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
}

// lifetime of certificates is longer than any cluster lives.
const lifetime = 30 * 24 * time.Hour

func newAuthority(dir, server string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, server: server, key: key, cert: template(pkix.Name{CommonName: "weft-test-ca"})}
	a.cert.IsCA, a.cert.BasicConstraintsValid = true, true
	a.cert.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	return a, a.write("ca", a.cert, key)
}

func template(name pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // rand.Reader never fails
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: name, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime)}
}

// serve makes a server's certificate.
func (a *authority) serve(name string, addrs []string, names ...string) error {
	c := template(pkix.Name{CommonName: name})
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	c.DNSNames = names
	for _, s := range addrs {
		c.IPAddresses = append(c.IPAddresses, net.ParseIP(s))
	}
	return a.leaf(name, c)
}

// user makes a client's certificate and kubeconfig; groups is what Kubernetes takes the organization for.
func (a *authority) user(file, name string, groups ...string) error {
	c := template(pkix.Name{CommonName: name, Organization: groups})
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if err := a.leaf(file, c); err != nil {
		return err
	}
	return a.kubeconfig(file)
}

func (a *authority) leaf(file string, c *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return a.write(file, c, key)
}

// write signs a certificate and writes it and its key.
func (a *authority) write(file string, c *x509.Certificate, key *ecdsa.PrivateKey) error {
	raw, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", file, err)
	}
	if c == a.cert { // as others see it
		if a.cert, err = x509.ParseCertificate(raw); err != nil {
			return err
		}
	}
	return errors.Join(a.writePEM(file+".crt", "CERTIFICATE", raw), a.writeKey(file, key))
}

func (a *authority) writeKey(file string, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return a.writePEM(file+".key", "EC PRIVATE KEY", raw)
}

// serviceAccounts makes the key pair that tokens are signed with.
func (a *authority) serviceAccounts() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	return errors.Join(a.writeKey("sa", key), a.writePEM("sa.pub", "PUBLIC KEY", public))
}

func (a *authority) writePEM(file, kind string, raw []byte) error {
	return os.WriteFile(a.path(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600)
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

func (a *authority) kubeconfig(file string) error {
	var encoded [3]string
	for i, f := range []string{"ca.crt", file + ".crt", file + ".key"} {
		raw, err := os.ReadFile(a.path(f))
		if err != nil {
			return err
		}
		encoded[i] = base64.StdEncoding.EncodeToString(raw)
	}
	return os.WriteFile(a.path(file+".kubeconfig"), fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: test
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: me
  user: {client-certificate-data: %s, client-key-data: %s}
contexts:
- name: test
  context: {cluster: test, user: me}
current-context: test
`, a.server, encoded[0], encoded[1], encoded[2]), 0o600)
}

// files are the names below which the authority's files lie.
const (
	adminUser      = "admin"
	controllerUser = "controller-manager"
	schedulerUser  = "scheduler"
	proxyUser      = "proxy"
	apiCert        = "apiserver"
	kubeletClient  = "apiserver-kubelet"
)

// makePKI makes everything that the cluster's programs prove who they are with.
func (c *Cluster) makePKI() error {
	cp := c.controlPlane()
	a, err := newAuthority(c.file("pki"), c.server())
	if err != nil {
		return err
	}
	addrs := []string{"127.0.0.1", c.Options.serviceAddr(1)}
	for _, addr := range cp.Addrs() {
		addrs = append(addrs, addr.String())
	}
	const svc = "kubernetes.default.svc"
	errs := []error{
		a.serviceAccounts(),
		a.serve(apiCert, addrs, "localhost", "kubernetes", "kubernetes.default", svc, svc+".cluster.local"),
		a.user(kubeletClient, "kube-apiserver-kubelet", "system:masters"),
		a.user(adminUser, "admin", "system:masters"),
		a.user(controllerUser, "system:kube-controller-manager"),
		a.user(schedulerUser, "system:kube-scheduler"),
		a.user(proxyUser, "system:kube-proxy"),
	}
	for _, n := range c.Nodes {
		errs = append(errs, a.user("node-"+n.Name, "system:node:"+n.Name, "system:nodes"))
	}
	return errors.Join(errs...)
}
