package imagestore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// TestTLSOfTransportProfiles pulls from a server with an authority of its own, which
// wants to see a client's certificate and has another name than its address.
func TestTLSOfTransportProfiles(t *testing.T) {
	certificate, key := clientCertificate(t)
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM([]byte(certificate))
	server := httptest.NewUnstartedServer(serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")}).Config.Handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.StartTLS()
	t.Cleanup(server.Close)
	indent := func(text string) string {
		return "|\n          " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n          ")
	}
	authority := "      - cert: " + indent(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	client := "      - cert: " + indent(certificate) + "\n        key: " + indent(key)

	dir := t.TempDir()
	var rules, profiles strings.Builder
	for name, profile := range map[string]string{
		"both":      "serverName: example.com\n      certificates:\n" + authority + "\n" + client,
		"address":   "certificates:\n" + authority + "\n" + client,
		"noclient":  "certificates:\n" + authority,
		"noca":      "certificates:\n" + client,
		"insecure":  "insecure: true\n      certificates:\n" + client,
		"othername": "serverName: other.example\n      certificates:\n" + authority + "\n" + client,
	} {
		fmt.Fprintf(&rules, "- {name: %s, url: '%s/d', transport: %s}\n", name, server.URL, name)
		fmt.Fprintf(&profiles, "  %s:\n    tls:\n      %s\n", name, profile)
	}
	writeTranslation(t, dir, "translations:\n"+rules.String()+"transports:\n"+profiles.String())
	for name, want := range map[string]struct {
		class func(error) bool
		why   string
	}{
		"both": {}, "address": {}, "insecure": {},
		"noclient":  {errdefs.IsUnavailable, "certificate required"},
		"noca":      {errdefs.IsFailedPrecondition, "TLS certificate is not valid"},
		"othername": {errdefs.IsFailedPrecondition, "TLS certificate is not valid"},
	} {
		s := openStore(t, func(o *Options) { o.TranslationDirs = []string{dir} })
		if problems := s.TranslationProblems(); len(problems) > 0 {
			t.Fatal(problems)
		}
		_, err := s.Pull(t.Context(), Prefix+name, Credentials{})
		switch {
		case want.class == nil && err != nil:
			t.Errorf("%s: %v", name, err)
		case want.class != nil && (!want.class(err) || !strings.Contains(err.Error(), want.why)):
			t.Errorf("%s: %v; want %q", name, err, want.why)
		}
	}
}

// clientCertificate is a certificate that signs itself and its key, in PEM.
func clientCertificate(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey}))
}

// proxiedName is the image that the test binary pulls in a process of its own: proxies
// are read from the environment once.
const proxiedName = "IMAGESTORE_PROXIED_NAME"

// TestProxiedProcess is that process; alone it does nothing.
func TestProxiedProcess(t *testing.T) {
	if name := os.Getenv(proxiedName); name != "" {
		fmt.Println("ID", pull(t, openStore(t), name).ID)
	}
}

func TestProxyOfTheEnvironment(t *testing.T) {
	disk := imagetest.QCOW2("a")
	asked := make(chan string, 9)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		_, _ = w.Write(disk)
	}))
	t.Cleanup(proxy.Close)
	// The server need not exist: only the proxy looks for it.
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxiedProcess$")
	cmd.Env = append(os.Environ(), "HTTP_PROXY="+proxy.URL, "NO_PROXY=", proxiedName+"="+Prefix+"http/server.invalid/d")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ID "+sum(disk)) {
		t.Fatalf("%v: %s", err, out)
	}
	if got := <-asked; got != "http://server.invalid/d" {
		t.Errorf("the proxy was asked for %s", got)
	}
}
