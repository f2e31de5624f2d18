package etcd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftnet/weft/internal/etcdserver"
	"github.com/weftnet/weft/internal/family"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/lease/etcd"
	"github.com/weftnet/weft/internal/lease/leasetest"
	"github.com/weftnet/weft/internal/secret"
)

// An authority issues certificates into files.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.file, _ = a.issue(t, "ca")
	return a
}

// issue writes a certificate for 127.0.0.1 and its key, the authority's own first.
func (a *authority) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	if a.cert == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		a.cert, a.key = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if template.IsCA {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+"-key.pem")
	write := func(file, kind string, der []byte) {
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(certFile, "CERTIFICATE", der)
	write(keyFile, "PRIVATE KEY", keyDER)
	return certFile, keyFile
}

func acquire(t *testing.T, s *etcd.Store, self lease.Self) lease.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l, err := s.Acquire(ctx, self)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	var server etcdserver.TLS
	server.CertFile, server.KeyFile = ca.issue(t, "server")
	https := []string{"https://127.0.0.1:0"}

	t.Run("a CA file alone is enough where no client certificate is asked for", func(t *testing.T) {
		s, _ := start(t, etcdserver.Options{Client: server, ListenClient: https})
		cfg := config(s.Endpoints()[0])
		cfg.CAFile = ca.file
		acquire(t, open(t, cfg, nil), leasetest.Self(1, family.V4))
	})
	t.Run("an unknown authority is told and not accepted", func(t *testing.T) {
		s, _ := start(t, etcdserver.Options{Client: server, ListenClient: https})
		cfg := config(s.Endpoints()[0])
		cfg.CAFile = newAuthority(t).file
		out := &logs{}
		store := open(t, cfg, out.logger())
		ended := run(t, func(ctx context.Context) error {
			_, err := store.Acquire(ctx, leasetest.Self(1, family.V4))
			return err
		})
		eventually(t, "the log says why", func() bool { return out.count("certificate") > 0 })
		select {
		case err := <-ended:
			t.Errorf("Acquire ended: %v", err)
		default:
		}
	})
	t.Run("a client certificate", func(t *testing.T) {
		mutual := server
		mutual.CAFile = ca.file
		s, _ := start(t, etcdserver.Options{Client: mutual, ListenClient: https})
		cfg := config(s.Endpoints()[0])
		cfg.CAFile = ca.file
		cfg.CertFile, cfg.KeyFile = ca.issue(t, "client")
		acquire(t, open(t, cfg, nil), leasetest.Self(1, family.V4))

		cfg.CertFile, cfg.KeyFile = "", ""
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if l, err := open(t, cfg, nil).Acquire(ctx, leasetest.Self(2, family.V4)); err == nil {
			t.Errorf("without a certificate: got %+v", l)
		}
	})
}

// enableAuth makes a user "flannel" with the rights that the original needs and no more.
func enableAuth(t *testing.T, c *clientv3.Client, prefix string) {
	t.Helper()
	ctx := t.Context()
	grant := func(key string, r clientv3.PermissionType, end string) {
		_, err := c.RoleGrantPermission(ctx, "flannel", key, end, r)
		must(t, err)
	}
	_, err := c.RoleAdd(ctx, "flannel")
	must(t, err)
	grant(prefix+"/config", clientv3.PermissionType(clientv3.PermRead), "")
	grant(prefix+"/subnets", clientv3.PermissionType(clientv3.PermReadWrite), clientv3.GetPrefixRangeEnd(prefix+"/subnets"))
	for _, user := range []string{"root", "flannel"} {
		_, err = c.UserAdd(ctx, user, "secret-"+user)
		must(t, err)
		_, err = c.UserGrantRole(ctx, user, user)
		must(t, err)
	}
	_, err = c.AuthEnable(ctx)
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestARoleWithTheOriginalsRightsIsEnough(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	put(t, client, etcd.DefaultPrefix+"/config", "configuration")
	enableAuth(t, client, etcd.DefaultPrefix)
	cfg := config(server.Endpoints()[0])
	cfg.Username, cfg.Password = "flannel", secret.New("secret-flannel")
	out := &logs{}
	s := open(t, cfg, out.logger())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	self := leasetest.Self(1, family.V4)
	l := acquire(t, s, self)
	sets, configs, ended := make(chan []lease.Lease, 100), make(chan string, 1), make(chan error, 1)
	go s.Watch(ctx, func(set []lease.Lease) { sets <- set })
	go s.WatchConfig(ctx, func(raw []byte) { configs <- string(raw) })
	go func() { ended <- s.Hold(ctx, self, l) }()
	if set := <-sets; len(set) != 1 || set[0].Subnet != l.Subnet {
		t.Errorf("got set %v", set)
	}
	if got := <-configs; got != "configuration" {
		t.Errorf("got configuration %q", got)
	}
	acquire(t, open(t, cfg, nil), leasetest.Self(2, family.V4))
	eventually(t, "the other node's lease is seen", func() bool { return len(<-sets) == 2 })
	select {
	case err := <-ended:
		t.Errorf("Hold ended: %v", err)
	default:
	}
	if out.count("level=WARN") != 1 || out.count("will not be noticed") != 1 || out.count("secret") != 0 {
		t.Errorf("want one warning, that the check is off:\n%s", out)
	}
}

func TestAWrongPasswordIsToldAndTriedAgain(t *testing.T) {
	t.Parallel()
	server, client := start(t, etcdserver.Options{})
	enableAuth(t, client, etcd.DefaultPrefix)
	cfg := config(server.Endpoints()[0])
	cfg.Username, cfg.Password = "flannel", secret.New("secret-wrong")
	out := &logs{}
	s := open(t, cfg, out.logger())
	got := make(chan error, 1)
	go func() {
		_, err := s.Acquire(t.Context(), leasetest.Self(1, family.V4))
		got <- err
	}()
	eventually(t, "the log says why", func() bool { return strings.Contains(out.String(), "invalid user ID or password") })
	root := dial(t, clientv3.Config{Endpoints: server.Endpoints(), Username: "root", Password: "secret-root"})
	_, err := root.UserChangePassword(t.Context(), "flannel", "secret-wrong")
	must(t, err)
	must(t, <-got)
	if out.count("secret") != 0 {
		t.Errorf("the password is in the log:\n%s", out)
	}
}
