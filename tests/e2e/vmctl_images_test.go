//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambipod/ambipod/tests/e2e/fixture"
	"github.com/ambipod/ambipod/tests/node"
)

// images pulls another copy of the guest from a server that is slow.
func (v vmctl) images(t *testing.T) {
	if table := v.run(t, "images"); !strings.Contains(table, node.VMImage) || !strings.Contains(table, v.name()) || !strings.Contains(table, "112Mi") {
		t.Errorf("images are:\n%s", table)
	}
	name, release := v.slowSite(t)
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	watch := v.command(ctx, "images", "--watch")
	var watched syncBuffer
	watch.Stdout, watch.Stderr = &watched, &watched
	pull := v.command(deadline(t), "images", "pull", name)
	var progress, id syncBuffer
	pull.Stdout, pull.Stderr = &id, &progress
	for _, cmd := range []*exec.Cmd{watch, pull} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for what, shown := range map[string]*syncBuffer{"pull": &progress, "images --watch": &watched} {
		eventually(t, what+" shows that half of it is here", func(context.Context) error {
			if text := shown.String(); !strings.Contains(text, name+"  [###############...............]  50%") {
				return fmt.Errorf("it shows %q", text)
			}
			return nil
		})
	}
	release()
	if err := pull.Wait(); err != nil {
		t.Errorf("pull: %v: %s", err, progress.String())
	}
	cancel()
	_ = watch.Wait()
	if code := watch.ProcessState.ExitCode(); code != 0 {
		t.Errorf("watching ended with %d: %s", code, watched.String())
	}
	image := strings.TrimSpace(id.String())
	if got := v.run(t, "images", "-o", "json"); !strings.Contains(got, image) {
		t.Errorf("%q is not among the images: %s", image, got)
	}
	v.run(t, "images", "rm", name)
	if r := v.try(t, "images", "rm", name); r.code != 1 || !strings.Contains(r.err, name) {
		t.Errorf("an image that is gone: %+v", r)
	}
	if r := v.try(t, "images", "pull", "docker.io/nginx"); r.code != 1 || !strings.Contains(r.err, "docker.io/nginx") {
		t.Errorf("a container image: %+v", r)
	}
}

// slowSite serves an image of which the second half comes when release is called, at
// an address that the node reaches.
func (v vmctl) slowSite(t *testing.T) (name string, release func()) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(v.n.SiteDir(), "tiny.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	content = append(content, make([]byte, 512)...) // other content than the VM's image
	wait := make(chan struct{})
	release = sync.OnceFunc(func() { close(wait) })
	t.Cleanup(release)
	site := fixture.ServeInNode(t, v.n, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		half := len(content) / 2
		_, _ = w.Write(content[:half])
		_ = http.NewResponseController(w).Flush()
		<-wait
		_, _ = w.Write(content[half:])
	})
	t.Cleanup(release)
	return "vm.ambipod.io/http/" + site + "/slow.qcow2:latest", release
}

// secretImages pulls an image that takes a password.
func (v vmctl) secretImages(t *testing.T) {
	disk, err := os.ReadFile(filepath.Join(v.n.SiteDir(), "tiny.qcow2"))
	must(t, err)
	disk = append(disk, make([]byte, 1024)...) // other content than other images
	site := fixture.ServeInNode(t, v.n, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != planted {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, r, "disk.img", time.Unix(0, 0), bytes.NewReader(disk))
	})
	name := "vm.ambipod.io/http/" + site + "/disk.img:latest"
	pull := func(password string, args ...string) result {
		t.Helper()
		cmd := v.command(deadline(t), append([]string{"images", "pull", name}, args...)...)
		var out, complaints bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(password), &out, &complaints
		if err := cmd.Run(); cmd.ProcessState == nil {
			t.Fatal(err)
		}
		r := result{cmd.ProcessState.ExitCode(), out.String(), complaints.String()}
		if strings.Contains(r.out+r.err, planted) {
			t.Errorf("the password is shown: %+v", r)
		}
		return r
	}
	if r := pull(""); r.code != 1 || !strings.Contains(r.err, name) || !strings.Contains(r.err, "401") {
		t.Errorf("without a password: %+v", r)
	}
	if r := pull("wrong\n", "--user", "me"); r.code != 1 || !strings.Contains(r.err, "401") {
		t.Errorf("with a wrong password: %+v", r)
	}
	r := pull(planted+"\n", "--user", "me")
	if r.code != 0 || !strings.Contains(v.run(t, "images", "-o", "json"), strings.TrimSpace(r.out)) {
		t.Errorf("with the password: %+v", r)
	}
	v.run(t, "images", "rm", name)
}
