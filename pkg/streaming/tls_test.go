package streaming_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	server "k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/ambipod/ambipod/pkg/streaming"
	"github.com/ambipod/ambipod/tests/certificate"
)

// writeCertificate makes a certificate and returns it, its own authority.
func writeCertificate(t *testing.T, dir string) (certificate.Files, []byte) {
	t.Helper()
	files, err := certificate.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(files.Cert)
	if err != nil {
		t.Fatal(err)
	}
	return files, authority
}

// TestTLS: with a certificate, streams are encrypted and nothing else is served; a
// renewed certificate counts from the next connection on.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	files, trusted := writeCertificate(t, dir)
	o := streaming.Options{CertFile: files.Cert, KeyFile: files.Key, Runtime: &runtime{
		exec: func(_ context.Context, _ []string, _ io.Reader, out, _ io.Writer, _ bool, _ <-chan server.TerminalSize) error {
			_, err := io.WriteString(out, "hello")
			return err
		},
	}}
	s, _ := serveWith(t, o)
	secure := func(authority []byte) *rest.Config {
		return &rest.Config{Host: "https://" + s.Address(), TLSClientConfig: rest.TLSClientConfig{CAData: authority}}
	}
	for name, connect := range map[string]func(*rest.Config, *url.URL) (remotecommand.Executor, error){
		"spdy": func(config *rest.Config, at *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(config, http.MethodPost, at)
		},
		"websocket": func(config *rest.Config, at *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, at.String(), "v4.channel.k8s.io")
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(config *rest.Config, scheme string) (string, error) {
				at := execURL(t, s, false)
				if at.Scheme != "https" {
					t.Errorf("the ticket is %s", at)
				}
				at.Scheme = scheme
				client, err := connect(config, at)
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				err = client.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: bytes.NewReader(nil), Stdout: &out, Stderr: io.Discard})
				return out.String(), err
			}
			if out, err := run(secure(trusted), "https"); err != nil || out != "hello" {
				t.Errorf("%q %v", out, err)
			}
			if out, err := run(&rest.Config{Host: s.Address()}, "http"); err == nil || out != "" {
				t.Errorf("in clear text: %q %v", out, err)
			}
			_, renewed := writeCertificate(t, dir)
			if out, err := run(secure(trusted), "https"); err == nil || out != "" {
				t.Errorf("with the old certificate's authority: %q %v", out, err)
			}
			trusted = renewed
			if out, err := run(secure(trusted), "https"); err != nil || out != "hello" {
				t.Errorf("renewed: %q %v", out, err)
			}
		})
	}
}

func TestBadCertificateIsRefused(t *testing.T) {
	files, _ := writeCertificate(t, t.TempDir())
	for name, o := range map[string]streaming.Options{
		"no key":         {CertFile: files.Cert},
		"no certificate": {KeyFile: files.Key},
		"swapped":        {CertFile: files.Key, KeyFile: files.Cert},
		"missing":        {CertFile: files.Cert + ".no", KeyFile: files.Key},
	} {
		o.Address, o.Runtime, o.Logger = "127.0.0.1:0", &runtime{}, slog.New(slog.DiscardHandler)
		if s, err := streaming.Listen(t.Context(), o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
			if s != nil {
				_ = s.Close()
			}
		}
	}
}
