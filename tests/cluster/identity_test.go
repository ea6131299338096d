package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambipod/ambipod/tests/node"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// withIdentities is a cluster of which there are only the files of its members,
// on a node that has only an address.
func withIdentities(t *testing.T) *Cluster {
	t.Helper()
	dir := t.TempDir()
	record := `{"config": {"name": "node"}, "network": {"pods": "10.64.0.0/24"}}`
	if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := node.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := Of(n)
	if err := c.makeIdentities(); err != nil {
		t.Fatal(err)
	}
	return c
}

// certificateOf reads a certificate with its key: they must fit.
func certificateOf(t *testing.T, c *Cluster, name string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.certificate(name), c.key(name))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestIdentities(t *testing.T) {
	c := withIdentities(t)
	roots, front := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(certificateOf(t, c, authority))
	front.AddCert(certificateOf(t, c, frontAuthority))
	for _, who := range c.identities() {
		got := certificateOf(t, c, who.name)
		if got.Subject.CommonName != who.user {
			t.Errorf("certificate of %s speaks for %q, want %q", who.name, got.Subject.CommonName, who.user)
		}
		if _, err := got.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s as a client: %v", who.name, err)
		}
		_, err := got.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if serves := len(who.ips) > 0; serves != (err == nil) {
			t.Errorf("%s as a server: %v, want it to be one: %t", who.name, err, serves)
		}
	}
	// Whoever the aggregator's authority signs may say that he is anybody.
	clientUse := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := certificateOf(t, c, frontProxy).Verify(x509.VerifyOptions{Roots: front, KeyUsages: clientUse}); err != nil {
		t.Error(err)
	}
	if _, err := certificateOf(t, c, admin).Verify(x509.VerifyOptions{Roots: front, KeyUsages: clientUse}); err == nil {
		t.Error("the aggregator's authority vouches for the admin")
	}
}

func TestFilesAreForRootAlone(t *testing.T) {
	c := withIdentities(t)
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", e.Name(), info.Mode(), err)
		}
	}
}

func TestKubeconfigsStandAlone(t *testing.T) {
	c := withIdentities(t)
	for _, name := range c.clients() {
		config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig(name))
		if err != nil {
			t.Fatal(err)
		}
		if config.Host != c.server() || len(config.CAData) == 0 || len(config.CertData) == 0 || len(config.KeyData) == 0 {
			t.Errorf("kubeconfig of %s lacks something: %s", name, config.Host)
		}
	}
}
