package vmctl

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/layout"
)

// members unpacks an archive; names are without its folder.
func members(t *testing.T, packed io.Reader) map[string]string {
	t.Helper()
	unzipped, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for files := tar.NewReader(unzipped); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		folder, name, _ := strings.Cut(header.Name, "/")
		if folder != "ambipod-20260102T030405Z" || header.Mode != 0o600 {
			t.Errorf("%s has mode %o", header.Name, header.Mode)
		}
		all[name] = string(content)
	}
}

// A bug report is needed most when the daemons are away.
func TestDiagnoseWithoutDaemons(t *testing.T) {
	const secret = "hunter2hunter2"
	dir := t.TempDir()
	config, logs, outside := filepath.Join(dir, "etc"), filepath.Join(dir, "log"), filepath.Join(dir, "outside")
	for file, content := range map[string]string{
		filepath.Join(config, "a", "criproxy.yaml"): "listen: " + dir + "/none.sock\nbackends:\n- {name: containerd, default: true, socket: /none}\n",
		filepath.Join(config, "images.yaml"):        "token: " + secret + "\nurl: http://u:" + secret + "@h/\n",
		filepath.Join(logs, "long.log"):             "cut off\n" + strings.Repeat("0123456789abcde\n", maxTail/16) + "password=" + secret + "\nend\n",
		outside:                                     "not to be followed",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// What a less trusted user could put into a folder of logs.
	if err := errors.Join(os.Symlink(outside, filepath.Join(logs, "link")), unix.Mkfifo(filepath.Join(logs, "pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	problems, err := Diagnose(t.Context(), Diagnosis{
		Settings: Settings{Layout: layout.Layout{State: dir, Run: filepath.Join(dir, "run")}},
		Version:  "v1", Config: []string{config, filepath.Join(dir, "absent")}, Logs: []string{logs, filepath.Join(dir, "missing")},
		Proxy: filepath.Join(config, "a", "criproxy.yaml"), Now: epoch, Logger: slog.New(slog.DiscardHandler),
	}, &out)
	if err != nil {
		t.Fatal(err)
	}
	got := members(t, &out)
	for name, want := range map[string]string{
		"README.txt": "Secrets are removed", "config" + config + "/images.yaml": "http://[redacted]@h/",
		"logs" + logs + "/long.log": "\nend\n", "host/facts.json": dir, "problems.txt": "vmruntime: neither ",
	} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s lacks %q: %.200q", name, want, got[name])
		}
	}
	for name, content := range got {
		if strings.Contains(content, secret) || strings.Contains(content, "not to be followed") || strings.Contains(content, "cut off") {
			t.Errorf("%s has what it should not: %.200q", name, content)
		}
		if len(content) > maxTail+100 {
			t.Errorf("%s has %d bytes", name, len(content))
		}
	}
	text := strings.Join(problems, "\n")
	for _, want := range []string{"vmruntime: ", "criproxy: ", filepath.Join(dir, "missing")} {
		if !strings.Contains(text, want) {
			t.Errorf("no problem %q: %s", want, text)
		}
	}
	if strings.Contains(text, "absent") {
		t.Errorf("configuration that nobody needs is missed: %s", text)
	}
}

// broken fails when it has taken some bytes.
type broken struct{ left int }

func (b *broken) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}

func TestArchiveOnAFullDisk(t *testing.T) {
	a := newArchive(&broken{left: 10}, "x", epoch)
	a.text("a", strings.Repeat("text ", 1000))
	if err := a.close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("close: %v", err)
	}
}

func TestFileName(t *testing.T) {
	for name, want := range map[string]string{"web": "web", "../../etc/passwd": "passwd", "..": "/", "a/b": "b"} {
		if got := fileName(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}
