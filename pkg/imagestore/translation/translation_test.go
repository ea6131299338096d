package translation_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/pkg/imagestore/translation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVirtletExamples runs the configurations of Virtlet's documentation.
func TestVirtletExamples(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"1.yaml": `
prefix: my-prefix
translations:
- name: cirros
  url: https://download.example/0.3.5/cirros-0.3.5-x86_64-disk.img
- name: ubuntu/16.04
  url: https://cloud.example/xenial-server-cloudimg-amd64-disk1.img
- regexp: 'cirros/(\d\.\d\.\d)'
  url: 'https://download.example/$1/cirros-$1-x86_64-disk.img'
- regexp: 'centos/(\d+)-(\d+)'
  url: 'https://cloud.example/centos/$1/images/CentOS-$1-x86_64-GenericCloud-$2.qcow2'
`,
		"2.yaml": `
translations:
- name: mySmallImage
  url: https://my.host.loc/small.qcow2
  transport: my-server
- name: plain
  url: my.host.loc/plain.qcow2
transports:
  my-server:
    timeout: 30000  # in ms. 0 = no timeout (default)
    maxRedirects: 1
    proxy: http://my-proxy.loc:8080
    tls:
      serverName: my.host.com
      insecure: false
  "":
    maxRedirects: null
    proxy: http://other-proxy.loc:8080
`,
		"3-crd.yaml": `
apiVersion: "virtlet.k8s/v1"
kind: VirtletImageMapping
metadata:
  name: primary
  namespace: kube-system
spec:
  translations:
  - name: from-object
    url: https://my.host.loc/object.qcow2
`,
	})
	table, problems, _ := translation.NewSource([]string{dir}).Table()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for name, want := range map[string]string{
		"my-prefix/cirros":       "https://download.example/0.3.5/cirros-0.3.5-x86_64-disk.img",
		"my-prefix/ubuntu/16.04": "https://cloud.example/xenial-server-cloudimg-amd64-disk1.img",
		"my-prefix/cirros/0.4.0": "https://download.example/0.4.0/cirros-0.4.0-x86_64-disk.img",
		"my-prefix/centos/7-01":  "https://cloud.example/centos/7/images/CentOS-7-x86_64-GenericCloud-01.qcow2",
		"my-prefix/fedora":       "",
		"cirros":                 "",
		"mySmallImage":           "https://my.host.loc/small.qcow2",
		"plain":                  "my.host.loc/plain.qcow2",
		"from-object":            "https://my.host.loc/object.qcow2",
		"":                       "",
	} {
		if got, ok := table.Translate(name); got.URL != want || ok != (want != "") {
			t.Errorf("Translate(%q) = %q, %v; want %q", name, got.URL, ok, want)
		}
	}
	named, _ := table.Translate("mySmallImage")
	if tr := named.Transport; tr == nil || tr.Timeout != 30*time.Second || tr.MaxRedirects != 1 ||
		tr.Proxy.String() != "http://my-proxy.loc:8080" || tr.TLS.ServerName != "my.host.com" || tr.TLS.InsecureSkipVerify {
		t.Errorf("transport of mySmallImage = %+v", tr)
	}
	unnamed, _ := table.Translate("plain")
	if tr := unnamed.Transport; tr == nil || tr.MaxRedirects != -1 || tr.Proxy.Host != "other-proxy.loc:8080" || tr.TLS != nil {
		t.Errorf("transport of plain = %+v; want that of the empty profile", tr)
	}
	if other, _ := table.Translate("from-object"); other.Transport != nil {
		t.Errorf("transport of from-object = %+v; profiles of other files must not count", other.Transport)
	}
}

func TestPrecedence(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	one := func(rule string) string { return "translations: [" + rule + "]\n" }
	write(t, first, map[string]string{
		"b.yaml": one("{name: x, url: 'http://b'}, {name: x, url: 'http://b2'}, {name: late, url: 'http://b'}"),
		"c.yaml": one("{name: x, url: 'http://c'}, {regexp: '.*e.*', url: 'http://c'}, {regexp: 'team', url: 'http://c2'}"),
		"d.yaml": "prefix: team\n" + one("{regexp: 'x', url: 'http://d'}, {name: y, url: 'http://d'}"),
	})
	write(t, second, map[string]string{
		"a.yaml": one("{name: x, url: 'http://a'}, {name: late2, url: 'http://a'}, {name: team/y, url: 'http://a'}"),
	})
	table, problems, _ := translation.NewSource([]string{first, second}).Table()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for name, want := range map[string]string{
		"x":      "http://b", // earlier folder, earlier file, earlier rule
		"late":   "http://b", // exact before regexp
		"late2":  "http://a", // exact of a later folder before regexp of an earlier one
		"team/y": "http://d", // longer prefix
		"team/x": "http://d", // also among regexps
		"team/z": "http://c", // earlier regexp of a file
	} {
		if got, _ := table.Translate(name); got.URL != want {
			t.Errorf("Translate(%q) = %q; want %q", name, got.URL, want)
		}
	}
}

func TestBrokenFilesAreNamedAndDoNotDisableOthers(t *testing.T) {
	_, certificate, key := selfSigned(t, false)
	_, _, otherKey := selfSigned(t, false)
	indent := func(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n          ") }
	for _, tc := range []struct{ name, content, want string }{
		{"syntax", "translations:\n- name: 'x\n", "line 2"},
		{"no mapping", "- a\n- b\n", "line 1, document: fields are expected"},
		{"unknown field", "translations: []\ntranslation: []\n", "line 2, translation: there is no such field"},
		{"unknown field of a rule", "translations:\n- name: x\n  uri: http://x\n", "line 3, translations[0].uri: there is no such field"},
		{"field twice", "prefix: a\nprefix: b\n", "line 2, prefix: the field is given twice"},
		{"no list", "translations: 5\n", "line 1, translations: a list"},
		{"neither name nor regexp", "translations:\n- url: http://x\n", "line 2, translations[0]: neither name nor regexp"},
		{"no url", "translations:\n- name: x\n", "line 2, translations[0]: no url"},
		{"bad regexp", "translations:\n- name: ok\n  url: http://x\n- regexp: '('\n  url: http://x\n", "line 4, translations[1].regexp"},
		{"bad protocol", "translations:\n- name: x\n  url: gopher://x\n", "line 3, translations[0].url: the protocol"},
		{"name is a list", "translations:\n- name: [x]\n  url: http://x\n", "line 2, translations[0].name: text"},
		{"no such transport", "translations:\n- name: x\n  url: http://x\n  transport: gone\n", `line 4, translations[0].transport: there is no transport "gone"`},
		{"bad timeout", "transports:\n  a:\n    timeout: soon\n", "line 3, transports.a.timeout: a whole number"},
		{"bad redirects", "transports:\n  a: {maxRedirects: 1.5}\n", "line 2, transports.a.maxRedirects: a whole number"},
		{"bad flag", "transports:\n  a:\n    tls:\n      insecure: maybe\n", "line 4, transports.a.tls.insecure: true or false"},
		{"bad proxy", "transports:\n  a:\n    proxy: 'http://user:geheim@[::'\n", "line 3, transports.a.proxy: the proxy is no URL"},
		{"no certificate", "transports:\n  a:\n    tls:\n      certificates:\n      - cert: hello\n", "line 5, transports.a.tls.certificates[0]: there is no PEM block"},
		{"certificate without key", "transports:\n  a:\n    tls:\n      certificates:\n      - cert: |\n          " + indent(certificate) + "\n", "neither that of an authority"},
		{"other key", "transports:\n  a:\n    tls:\n      certificates:\n      - cert: |\n          " + indent(certificate) + "\n        key: |\n          " + indent(otherKey) + "\n", "does not belong"},
		{"broken key", "transports:\n  a:\n    tls:\n      certificates:\n      - cert: |\n          " + indent(certificate) + "\n        key: |\n          " + indent(strings.Replace(key, "\nM", "\nA", 1)) + "\n", "private key cannot be read"},
		{"prefix with slash", "prefix: prod/\ntranslations:\n- name: x\n  url: http://x\n", "line 1, prefix: the prefix ends with a slash"},
		{"second document", "translations: []\n---\n# more\ntranslations:\n- name: x\n  url: http://x\n", "line 4, document: a file can have one document only"},
		{"spec in itself", "spec: &a\n  spec: *a\n", "line 2, spec.spec: there is no such field"},
		{"too long", strings.Repeat("#", 1<<20+1), "longer than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"broken.yaml": tc.content, "good.yaml": "translations: [{name: good, url: 'http://good'}]"})
			table, problems, _ := translation.NewSource([]string{dir}).Table()
			if len(problems) != 1 || !strings.Contains(problems[0].Error(), tc.want) || !strings.Contains(problems[0].Error(), dir+"/broken.yaml") {
				t.Errorf("problems %v; want one that names the file and says %q", problems, tc.want)
			}
			if strings.Contains(problems[0].Error(), "geheim") {
				t.Errorf("a password is told: %v", problems[0])
			}
			if _, ok := table.Translate("good"); !ok {
				t.Error("the good file is not used")
			}
			if _, ok := table.Translate("x"); ok {
				t.Error("the broken file is used")
			}
		})
	}
}

func TestFilesAreReadAgainWhenTheyChange(t *testing.T) {
	dir := t.TempDir()
	source := translation.NewSource([]string{dir, dir + "/missing"})
	translate := func() (string, bool) {
		table, problems, changed := source.Table()
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		got, _ := table.Translate("x")
		return got.URL, changed
	}
	for i, step := range []struct {
		change  func()
		want    string
		changed bool
	}{
		{func() {}, "", true},
		{func() {}, "", false},
		{func() { write(t, dir, map[string]string{"a": "translations: [{name: x, url: 'http://1'}]"}) }, "http://1", true},
		{func() {}, "http://1", false},
		{func() { write(t, dir, map[string]string{"a": "translations: [{name: x, url: 'http://twenty'}]"}) }, "http://twenty", true},
		{func() { write(t, dir, map[string]string{".hidden": "nonsense: 1"}) }, "http://twenty", false},
		{func() { _ = os.Mkdir(dir+"/folder", 0o700) }, "http://twenty", false},
		{func() { _ = os.Remove(dir + "/a") }, "", true},
	} {
		step.change()
		if got, changed := translate(); got != step.want || changed != step.changed {
			t.Errorf("step %d: %q, changed %v; want %q, %v", i, got, changed, step.want, step.changed)
		}
	}
}

// TestFileInTheTimeOfAnother puts a file in the place of another that is as long and
// as old.
func TestFileInTheTimeOfAnother(t *testing.T) {
	dir, old := t.TempDir(), time.Now().Add(-time.Hour)
	source := translation.NewSource([]string{dir})
	for _, want := range []string{"http://1", "http://2"} {
		write(t, dir, map[string]string{".new": "translations: [{name: x, url: '" + want + "'}]"})
		if err := errors.Join(os.Chtimes(dir+"/.new", old, old), os.Rename(dir+"/.new", dir+"/a")); err != nil {
			t.Fatal(err)
		}
		table, _, _ := source.Table()
		if got, _ := table.Translate("x"); got.URL != want {
			t.Errorf("Translate = %q, want %q", got.URL, want)
		}
	}
}

// TestEmptyDocuments reads files whose author was generous with separators.
func TestEmptyDocuments(t *testing.T) {
	for _, content := range []string{"", "# nothing\n", "---\n", "---\nprefix: a\n---\n", "---\n---\nprefix: a\n...\n---\n# end\n"} {
		dir := t.TempDir()
		write(t, dir, map[string]string{"a": content})
		if _, problems, _ := translation.NewSource([]string{dir}).Table(); len(problems) > 0 {
			t.Errorf("%q: %v", content, problems)
		}
	}
}

// TestConfigMapVolume reads files as kubelet projects them: links into a folder
// that is exchanged as a whole.
func TestConfigMapVolume(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, url string) {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version), map[string]string{"images.yaml": "translations: [{name: x, url: '" + url + "'}]"})
		if err := os.Symlink(version, filepath.Join(dir, "..new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("..v1", "http://1")
	if err := os.Symlink("..data/images.yaml", filepath.Join(dir, "images.yaml")); err != nil {
		t.Fatal(err)
	}
	source := translation.NewSource([]string{dir})
	for _, want := range []string{"http://1", "http://two"} {
		table, problems, _ := source.Table()
		if got, _ := table.Translate("x"); got.URL != want || len(problems) > 0 {
			t.Errorf("Translate = %q, problems %v; want %q", got.URL, problems, want)
		}
		if want == "http://1" {
			publish("..v2", "http://two")
		}
	}
}

func TestCertificates(t *testing.T) {
	authority, authorityPEM, authorityKey := selfSigned(t, true)
	_, clientPEM, clientKey := selfSigned(t, false)
	dir := t.TempDir()
	indent := func(s string) string {
		return "|\n" + strings.ReplaceAll("          "+strings.TrimSpace(s), "\n", "\n          ") + "\n"
	}
	write(t, dir, map[string]string{"a.yaml": `
translations: [{name: x, url: 'https://x/y', transport: p}]
transports:
  p:
    tls:
      certificates:
      - cert: ` + indent(authorityPEM) + `
      - cert: ` + indent(clientPEM) + `
        key: ` + indent(clientKey) + `
      - cert: ` + indent(clientPEM+clientKey) + `
      - cert: ` + indent(authorityPEM) + `
        key: ` + indent(authorityKey) + `
      - cert: ` + indent(clientPEM+authorityPEM) + `
        key: ` + indent(clientKey)})
	table, problems, _ := translation.NewSource([]string{dir}).Table()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	target, _ := table.Translate("x")
	var lengths []int
	for _, chain := range target.Transport.TLS.Certificates {
		lengths = append(lengths, len(chain.Certificate))
	}
	if want := []int{1, 1, 1, 2}; !slices.Equal(lengths, want) {
		t.Errorf("client certificates of lengths %v, want %v: the authority with its key, too, and a chain", lengths, want)
	}
	if _, err := authority.Verify(x509.VerifyOptions{Roots: target.Transport.TLS.RootCAs}); err != nil {
		t.Errorf("the authority is not trusted: %v", err)
	}
}

func selfSigned(t *testing.T, authority bool) (c *x509.Certificate, certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: authority, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	c, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return c, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

func FuzzParse(f *testing.F) {
	f.Add("translations: [{regexp: '(.*)', url: 'http://$1'}]\ntransports: {'': {timeout: 5}}", "x")
	f.Add("a: &a [*a]", "y")
	f.Add("spec: &a {spec: *a}", "y")
	f.Add("transports: &a {x: *a}", "y")
	f.Add("--- a\n--- b", "y")
	f.Fuzz(func(t *testing.T, content, name string) {
		dir := t.TempDir()
		write(t, dir, map[string]string{"a": content})
		table, problems, _ := translation.NewSource([]string{dir}).Table()
		if _, ok := table.Translate(name); ok && len(problems) > 0 {
			t.Error("a broken file is used")
		}
	})
}
