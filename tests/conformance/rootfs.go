package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// file is one entry of a layer; the owner is root.
type file struct {
	path string // without the leading slash
	mode int64  // as in chmod, with the setuid bit
	kind byte   // tar.TypeReg, TypeDir, TypeLink or TypeSymlink
	link string // what a link points to
	text []byte
}

func dir(path string, mode int64) file { return file{path: path, mode: mode, kind: tar.TypeDir} }

func text(path, content string) file {
	return file{path: path, mode: 0o644, kind: tar.TypeReg, text: []byte(content)}
}

// packLayer makes the tar archive of a layer; equal files give equal bytes.
func packLayer(files []file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		header := &tar.Header{
			Typeflag: f.kind, Name: f.path, Linkname: f.link, Mode: f.mode,
			Size: int64(len(f.text)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("pack %s into a layer: %w", f.path, err)
		}
		if _, err := w.Write(f.text); err != nil {
			return nil, fmt.Errorf("pack %s into a layer: %w", f.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack a layer: %w", err)
	}
	return out.Bytes(), nil
}

// Accounts that critest expects: it runs containers as nobody and finds
// default-user in a group that only the image knows.
const (
	accounts = `root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	groups = `root:x:0:
www-data:x:33:
nogroup:x:65534:
`
	predefinedUser  = "default-user:x:1000:1000::/home/default-user:/bin/sh\n"
	predefinedGroup = "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
)

// extras are the machine's programs that critest runs in containers and that
// Debian's busybox has not.
var extras = []string{"/usr/bin/ipcs", "/usr/bin/pgrep"}

// userlandFiles are a small userland: busybox from Debian's package of that name
// under all its names, the extras, and the libraries that they need. Debian's
// static busybox will not do: its shell runs ls without looking at the file
// /bin/ls, which critest hides and then expects to be missing. The names are
// hard links for the same reason: hiding a symbolic link hides busybox itself.
func userlandFiles(ctx context.Context, busybox string) ([]file, error) {
	binary, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("read busybox: %w", err)
	}
	names, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the names of busybox: %w", err)
	}
	files := []file{
		dir("bin/", 0o755), dir("etc/", 0o755), dir("home/", 0o755), dir("lib/", 0o755), dir("lib64/", 0o755),
		dir("root/", 0o700), dir("tmp/", 0o1777), dir("usr/", 0o755), dir("usr/bin/", 0o755), dir("usr/sbin/", 0o755),
		dir("var/", 0o755), dir("var/run/", 0o755), dir("proc/", 0o755), dir("sys/", 0o755), dir("dev/", 0o755),
		text("etc/passwd", accounts), text("etc/group", groups),
		{path: "bin/busybox", mode: 0o755, kind: tar.TypeReg, text: binary},
	}
	for name := range strings.FieldsSeq(string(names)) {
		files = append(files, file{path: "bin/" + name, mode: 0o755, kind: tar.TypeLink, link: "bin/busybox"})
	}
	copies := slices.Clone(extras)
	for _, program := range append([]string{busybox}, extras...) {
		libraries, err := librariesOf(ctx, program)
		if err != nil {
			return nil, err
		}
		copies = append(copies, libraries...)
	}
	slices.Sort(copies)
	for _, path := range slices.Compact(copies) {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("copy a program or library into the userland: %w", err)
		}
		files = append(files, file{path: strings.TrimPrefix(path, "/"), mode: 0o755, kind: tar.TypeReg, text: content})
	}
	return files, nil
}

// librariesOf are the paths of the shared libraries that the program needs.
func librariesOf(ctx context.Context, program string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("find the libraries of %s: %w", program, err)
	}
	var paths []string
	for _, m := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllSubmatch(out, -1) {
		paths = append(paths, string(m[1]))
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("ldd names no library of %s: %w", program, errdefs.ErrDataLoss)
	}
	return paths, nil
}

// fetchBusybox unpacks Debian's busybox below work and returns its path. The
// package is not installed: it would replace busybox-static.
func fetchBusybox(ctx context.Context, work string) (string, error) {
	// apt's own user must be able to write into the folder, or it complains.
	if err := os.Chmod(work, 0o755); err != nil { //nolint:gosec // holds a public package
		return "", fmt.Errorf("fetch busybox: %w", err)
	}
	if err := runIn(ctx, work, "apt-get", "-q", "download", "busybox"); err != nil {
		return "", fmt.Errorf("fetch Debian's package busybox (run apt-get update if it is not found): %w", err)
	}
	packages, err := filepath.Glob(filepath.Join(work, "busybox_*.deb"))
	if err != nil || len(packages) != 1 {
		return "", fmt.Errorf("apt-get download busybox made %q: %w", packages, errdefs.ErrDataLoss)
	}
	if err := runIn(ctx, work, "dpkg-deb", "-x", packages[0], "busybox"); err != nil {
		return "", fmt.Errorf("unpack Debian's package busybox: %w", err)
	}
	return filepath.Join(work, "busybox", "bin", "busybox"), nil
}

// buildStandin compiles the stand-in for web servers and returns its file.
func buildStandin(ctx context.Context, checkout, work string) ([]byte, error) {
	out := filepath.Join(work, "standin.bin")
	err := runIn(ctx, checkout, "env", "CGO_ENABLED=0",
		"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./tests/conformance/standin")
	if err != nil {
		return nil, fmt.Errorf("build the stand-in program: %w", err)
	}
	binary, err := os.ReadFile(out)
	if err != nil {
		return nil, fmt.Errorf("read the stand-in program: %w", err)
	}
	return binary, nil
}

// runIn runs a program in a folder; the error has what it printed.
func runIn(ctx context.Context, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
