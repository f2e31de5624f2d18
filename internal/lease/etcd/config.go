package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/secret"
)

// DefaultPrefix is where flannel keeps a network in etcd.
const DefaultPrefix = "/coreos.com/network"

// A Config says how to reach etcd and where the network is. Zero durations stand for the defaults.
type Config struct {
	Endpoints []string // "http://127.0.0.1:2379"; without a scheme TLS is used if any TLS file is given
	Prefix    string   // DefaultPrefix if empty; a trailing slash is harmless

	CAFile, CertFile, KeyFile string // PEM; each of CA and certificate with key counts alone
	Username                  string // empty: none, whatever the password
	Password                  secret.Text

	RequestTimeout time.Duration // of a single request; 5 s

	// RenewMargin is the time left at which a lease is renewed at the latest; 60 min. Normally that is
	// done once a third of the lifetime has passed, so that most of a day is left for an outage.
	RenewMargin time.Duration

	// LivenessTTL is how long after its last sign of life a node counts as alive; 30 s. etcd may take up
	// to a second more, and rounds it to whole seconds.
	LivenessTTL time.Duration
}

// withDefaults fills in what is unset.
func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	c.Prefix = strings.TrimSuffix(path.Clean(c.Prefix), "/") // no slash is put in front: nor does the original
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 5 * time.Second
	}
	if c.RenewMargin == 0 {
		c.RenewMargin = time.Hour
	}
	if c.LivenessTTL == 0 {
		c.LivenessTTL = 30 * time.Second
	}
	return c
}

// check returns everything that is wrong with c after withDefaults.
func (c Config) check() error {
	var errs []error
	if len(c.Endpoints) == 0 {
		errs = append(errs, errors.New("endpoints: none given"))
	}
	schemes := map[string]bool{}
	for _, e := range c.Endpoints {
		scheme, host, ok := strings.Cut(e, "://")
		if !ok {
			scheme, host = "", e
		}
		if scheme != "" && scheme != "http" && scheme != "https" && scheme != "unix" && scheme != "unixs" || host == "" {
			errs = append(errs, fmt.Errorf("endpoints: %q is not like http://host:port", e))
		}
		schemes[scheme] = true
	}
	if schemes["http"] && schemes["https"] {
		errs = append(errs, errors.New("endpoints: http and https are mixed; the client takes one for all"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("TLS: certificate and key file go together, one is missing"))
	}
	if c.Username != "" && c.Password == (secret.Text{}) {
		errs = append(errs, errors.New("user name: its password is missing"))
	}
	if c.RequestTimeout < 0 {
		errs = append(errs, fmt.Errorf("request timeout: %s is negative", c.RequestTimeout))
	}
	if c.RenewMargin < 0 || c.RenewMargin >= leaseTTL {
		errs = append(errs, fmt.Errorf("renew margin: %s is not between 0 and %s", c.RenewMargin, leaseTTL))
	}
	if c.LivenessTTL < time.Second {
		errs = append(errs, fmt.Errorf("liveness TTL: %s is less than a second", c.LivenessTTL))
	}
	return errors.Join(errs...)
}

// plaintext says whether the endpoints ask for no TLS although files for it are given.
func (c Config) plaintext() bool {
	return c.CAFile+c.CertFile != "" && strings.HasPrefix(c.Endpoints[0], "http://")
}

// tls reads the TLS files. It returns nil where there are none; https endpoints then use the system's
// certificate authorities. The client certificate is read again for every connection, so a renewed one
// is used without a restart.
func (c Config) tls() (*tls.Config, error) {
	if c.CAFile == "" && c.CertFile == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("TLS CA file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("TLS CA file: %s holds no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &cert, err
		}
		if _, err := load(nil); err != nil {
			return nil, fmt.Errorf("TLS client certificate: %w", err)
		}
		t.GetClientCertificate = load
	}
	return t, nil
}
