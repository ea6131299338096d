package imagestore

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

const secret = "geheim-3141592653589793"

func TestCredentials(t *testing.T) {
	for _, tc := range []struct {
		name  string
		given Credentials
		want  string // Authorization header
	}{
		{"none", Credentials{}, ""},
		{"user and password", Credentials{Username: "u", Password: secret}, basicAuth("u")},
		{"auth field", Credentials{Auth: base64.StdEncoding.EncodeToString([]byte("u:" + secret))}, basicAuth("u")},
		{"bearer token", Credentials{RegistryToken: secret}, "Bearer " + secret},
		{"for this host", Credentials{Username: "u", Password: secret, ServerAddress: "HOST"}, basicAuth("u")},
		{"for this host by URL", Credentials{Username: "u", Password: secret, ServerAddress: "http://HOST/v1/"}, basicAuth("u")},
		{"for the image prefix", Credentials{Username: "u", Password: secret, ServerAddress: "vm.ambipod.io"}, basicAuth("u")},
		{"for another host", Credentials{Username: "u", Password: secret, ServerAddress: "example.org"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
			s := openStore(t)
			tc.given.ServerAddress = strings.ReplaceAll(tc.given.ServerAddress, "HOST", strings.TrimPrefix(srv.URL, "http://"))
			if _, err := s.Pull(t.Context(), srv.name("/d"), tc.given); err != nil {
				t.Fatal(err)
			}
			if got := srv.requests[0].Header.Get("Authorization"); got != tc.want {
				t.Errorf("Authorization %q, want %q", got, tc.want)
			}
		})
	}
}

func basicAuth(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))
}

func TestUselessCredentials(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	s := openStore(t)
	for _, tc := range []struct {
		given Credentials
		why   string
	}{
		{Credentials{Auth: "%%%" + secret}, "not base64"},
		{Credentials{Auth: base64.StdEncoding.EncodeToString([]byte(secret))}, "no colon"},
		{Credentials{IdentityToken: secret}, "OCI registries only"},
	} {
		_, err := s.Pull(t.Context(), srv.name("/d"), tc.given)
		checkRefusal(t, err, errdefs.IsInvalidArgument, tc.why)
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error tells a secret: %v", err)
		}
	}
}

// TestSecretsStayHidden pulls with every kind of secret from servers that fail in
// several ways, and searches log, errors and all files of the store.
func TestSecretsStayHidden(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	good := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	host := strings.TrimPrefix(good.URL, "http://")
	writeTranslation(t, dir, fmt.Sprintf(`
translations:
- {name: good, url: 'http://user:%[1]s@%[2]s/d?sig=%[1]s'}
- {name: none, url: 'http://user:%[1]s@%[2]s/none?sig=%[1]s'}
- {name: dead, url: 'http://user:%[1]s@127.0.0.1:1/d?sig=%[1]s'}
- {name: bad, url: 'http://user:%[1]s@[::/d'}
- {name: oci, url: 'oci://user:%[1]s@%[2]s/repo:v1'}
`, secret, host))
	s := openStore(t, func(o *Options) {
		o.TranslationDirs = []string{dir}
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	c := Credentials{Username: "u", Password: secret, Auth: secret, RegistryToken: secret}
	for _, name := range []string{"good", "none", "dead", "bad", "oci"} {
		_, err := s.Pull(t.Context(), Prefix+name, c)
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error tells a secret: %v", err)
		}
		if (err == nil) != (name == "good") {
			t.Errorf("pull of %s: %v", name, err)
		}
	}
	if got := good.requests[0].Header.Get("Authorization"); got != basicAuth("user") {
		t.Errorf("Authorization %q; want user and password of the URL", got)
	}
	if got := good.requests[0].URL.Query().Get("sig"); got != secret {
		t.Errorf("query %q", got)
	}
	if text := fmt.Sprintf("%s%v%+v%#v", log.String(), c, c, c); strings.Contains(text, secret) {
		t.Errorf("the log tells a secret:\n%s", text)
	}
	for _, file := range append(files(t, s), "index.db") {
		content, err := os.ReadFile(s.opts.Dir + "/" + file)
		if err != nil || bytes.Contains(content, []byte(secret)) {
			t.Errorf("%s contains a secret (%v)", file, err)
		}
	}
}

// TestPullSecretsStayHidden pulls with every kind of pull secret from servers that fail
// in several ways, of which some repeat what they are told.
func TestPullSecretsStayHidden(t *testing.T) {
	disk := imagetest.QCOW2("a")
	srv := serveOCI(t)
	srv.front = func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_ = r.ParseForm()
		told := fmt.Sprint(r.Header.Get("Authorization"), r.PostForm)
		switch {
		case r.URL.Path == "/token":
			_ = json.NewEncoder(w).Encode(map[string]string{"refresh_token": told, "sorry": secret})
		case r.URL.Path == "/d":
			_, _ = w.Write(disk)
		case r.URL.Path == "/gone":
			http.Redirect(w, r, "/no?"+url.Values{"told": {told}}.Encode(), http.StatusFound)
		case r.Header.Get("Authorization") != "":
			http.Error(w, told, http.StatusForbidden)
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
			http.Error(w, told, http.StatusUnauthorized)
		}
	}
	var log bytes.Buffer
	s := openStore(t, func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	encoded := strings.TrimPrefix(basicAuth("u"), "Basic ")
	site := Prefix + "http/" + srv.host()
	for _, c := range []Credentials{
		{Username: "u", Password: secret}, {Auth: encoded}, {IdentityToken: secret}, {RegistryToken: secret},
	} {
		for _, name := range []string{site + "/d", site + "/gone", Prefix + "http/127.0.0.1:1/none", srv.name("repo:v1")} {
			_, err := s.Pull(t.Context(), name, c)
			if text := fmt.Sprint(err); strings.Contains(text, secret) || strings.Contains(text, encoded) {
				t.Errorf("the error tells a secret: %s", text)
			}
			if err == nil && !strings.HasSuffix(name, "/d") {
				t.Errorf("%s was pulled", name)
			}
		}
	}
	for _, told := range []string{secret, encoded} {
		if strings.Contains(log.String(), told) {
			t.Errorf("the log tells a secret:\n%s", log.String())
		}
		for _, file := range append(files(t, s), "index.db") {
			if content, err := os.ReadFile(s.opts.Dir + "/" + file); err != nil || bytes.Contains(content, []byte(told)) {
				t.Errorf("%s contains a secret (%v)", file, err)
			}
		}
	}
}

// TestIdentityTokenStaysWithItsServer has a token server redirect to another one.
func TestIdentityTokenStaysWithItsServer(t *testing.T) {
	told := false
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		told = told || bytes.Contains(body, []byte(secret))
	}))
	t.Cleanup(other.Close)
	srv := serveOCI(t)
	srv.front = func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		if r.URL.Path == "/token" {
			http.Redirect(w, r, strings.Replace(other.URL, "127.0.0.1", "localhost", 1), http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
		w.WriteHeader(http.StatusUnauthorized)
	}
	s := openStore(t)
	_, err := s.Pull(t.Context(), srv.name("repo:v1"), Credentials{IdentityToken: secret})
	checkRefusal(t, err, errdefs.IsFailedPrecondition, "must not see the credentials")
	if told {
		t.Error("the other server was told the token")
	}
}

func TestCredentialsDoNotFollowRedirects(t *testing.T) {
	target := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	other := strings.Replace(target.URL, "127.0.0.1", "localhost", 1)
	redirector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other+r.URL.Path, http.StatusFound)
	}))
	t.Cleanup(redirector.Close)
	s := openStore(t)
	if _, err := s.Pull(t.Context(), imageName(redirector, "/d"), Credentials{Username: "u", Password: secret}); err != nil {
		t.Fatal(err)
	}
	if got := target.requests[0].Header.Get("Authorization"); got != "" {
		t.Errorf("another host was shown %q", got)
	}
}

// TestRedirectsTellOtherServersNothing has a proxy play all servers, so that their
// names need not exist.
func TestRedirectsTellOtherServersNothing(t *testing.T) {
	var seen *http.Request // the second one of a pull
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, "http://"+to+"/d", http.StatusFound)
			return
		}
		seen = r
		_, _ = w.Write(imagetest.QCOW2("a"))
	}))
	t.Cleanup(proxy.Close)
	dir := t.TempDir()
	writeTranslation(t, dir, fmt.Sprintf(`
translations: [{regexp: 'to/(.*)/d', url: 'http://user:%[1]s@site.test/d?sig=%[1]s&to=$1', transport: proxy}]
transports: {proxy: {proxy: '%[2]s'}}
`, secret, proxy.URL))
	for host, trusted := range map[string]bool{
		"site.test": true, "site.test:80": true,
		"other.test": false, "sub.site.test": false, "site.test:8080": false,
	} {
		s := openStore(t, func(o *Options) { o.TranslationDirs = []string{dir} })
		pull(t, s, Prefix+"to/"+host+"/d")
		want := ""
		if trusted {
			want = basicAuth("user")
		}
		if got := seen.Header.Get("Authorization"); got != want || seen.URL.Host != host {
			t.Errorf("%s, asked as %s, was shown %q; want %q", host, seen.URL.Host, got, want)
		}
		if referer := seen.Header.Get("Referer"); referer != "" {
			t.Errorf("%s was told %q", host, referer)
		}
	}
}

// TestProxyThatRefuses answers a request for a tunnel with an error.
func TestProxyThatRefuses(t *testing.T) {
	for code, class := range map[int]func(error) bool{
		http.StatusProxyAuthRequired: errdefs.IsUnauthorized,
		http.StatusForbidden:         errdefs.IsPermissionDenied,
		http.StatusBadGateway:        errdefs.IsUnavailable,
	} {
		proxy := httptest.NewServer(status(code))
		dir := t.TempDir()
		writeTranslation(t, dir, fmt.Sprintf(`
translations: [{name: d, url: 'https://site.test/d', transport: proxy}]
transports: {proxy: {proxy: 'http://user:%s@%s'}}
`, secret, strings.TrimPrefix(proxy.URL, "http://")))
		s := openStore(t, func(o *Options) { o.TranslationDirs = []string{dir} })
		_, err := s.Pull(t.Context(), Prefix+"d", Credentials{})
		checkRefusal(t, err, class, fmt.Sprintf("the proxy answers %d %s", code, http.StatusText(code)))
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error tells a secret: %v", err)
		}
		proxy.Close()
	}
}

// TestOCICredentialsStayWithTheRegistry has blobs lie on another server.
func TestOCICredentialsStayWithTheRegistry(t *testing.T) {
	srv := serveOCI(t)
	srv.push(t, "repo:v1", ociImage(t, tarball(t, entry{name: "disk/d", content: imagetest.QCOW2("a")})))
	var shown []http.Header
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown = append(shown, r.Header.Clone())
		forward := r.Clone(r.Context())
		forward.Host = srv.host()
		srv.Config.Handler.ServeHTTP(w, forward)
	}))
	t.Cleanup(elsewhere.Close)
	wants := map[string]string{"basic": basicAuth("u"), "bearer": "Bearer granted"}
	for kind, want := range wants {
		srv.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			challenge := map[string]string{"basic": `Basic realm="x"`, "bearer": `Bearer realm="` + srv.URL + `/token"`}
			blob := strings.Contains(r.URL.Path, "/blobs/")
			switch {
			case r.URL.Path == "/token":
				fmt.Fprint(w, `{"token":"granted"}`)
			case len(shown) > 0 && blob:
				next.ServeHTTP(w, r)
			case r.Header.Get("Authorization") != want:
				w.Header().Set("WWW-Authenticate", challenge[kind])
				w.WriteHeader(http.StatusUnauthorized)
			case blob:
				http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
			default:
				next.ServeHTTP(w, r)
			}
		}
		shown = nil
		s := openStore(t)
		if _, err := s.Pull(t.Context(), srv.name("repo:v1"), Credentials{Username: "u", Password: secret}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if len(shown) != 1 || shown[0].Get("Authorization") != "" || shown[0].Get("Referer") != "" {
			t.Errorf("%s: the other server was shown %q", kind, shown)
		}
	}
}

func TestDifferentCredentialsDoNotShareADownload(t *testing.T) {
	disk := imagetest.QCOW2("a")
	entered, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, _, _ := r.BasicAuth(); user != "good" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		close(entered)
		<-release
		_, _ = w.Write(disk)
	}))
	t.Cleanup(server.Close)
	s := openStore(t)
	good := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), imageName(server, "/d"), Credentials{Username: "good"})
		good <- err
	}()
	<-entered
	bad := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), imageName(server, "/d"), Credentials{Username: "bad"})
		bad <- err
	}()
	close(release)
	if err := <-good; err != nil {
		t.Error(err)
	}
	if err := <-bad; !errdefs.IsUnauthorized(err) {
		t.Errorf("pull with wrong credentials: %v", err)
	}
}
