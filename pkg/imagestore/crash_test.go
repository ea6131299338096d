package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// The test binary runs itself as a process that dies at a step. These variables
// tell it where.
const (
	crashStep = "IMAGESTORE_CRASH_STEP"
	crashDir  = "IMAGESTORE_CRASH_DIR"
	crashDo   = "IMAGESTORE_CRASH_DO" // an operation and its arguments
)

// TestCrashingProcess is the process that dies; alone it does nothing.
func TestCrashingProcess(t *testing.T) {
	at := step(os.Getenv(crashStep))
	if at == "" {
		return
	}
	s, err := Open(t.Context(), testOptions(t, inDir(os.Getenv(crashDir))))
	if err != nil {
		t.Fatal(err)
	}
	s.reached = func(now step) error {
		if now == at {
			// As sudden as it gets: no deferred function runs.
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	do := strings.Fields(os.Getenv(crashDo))
	switch do[0] {
	case "pull":
		_, err = s.Pull(t.Context(), do[1], Credentials{})
	case "remove":
		err = s.Remove(t.Context(), do[1])
	case "release":
		err = s.Release(do[1])
	}
	t.Fatalf("step %q was never reached; the operation ended with %v", at, err)
}

// crash runs an operation in a process that is killed at a step.
func crash(t *testing.T, dir string, at step, do string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashingProcess$")
	cmd.Env = append(os.Environ(), crashStep+"="+string(at), crashDir+"="+dir, crashDo+"="+do)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the process was not killed at %q: %v\n%s", at, err, out)
	}
}

var addSteps = []step{stepReceived, stepSealed, stepSynced, stepPlaced, stepDescribed, stepIndexed}

// TestCrashWhilePulling kills a pull before every write. The next start must find
// the old or the new state, and nothing else on the disk.
func TestCrashWhilePulling(t *testing.T) {
	for _, at := range addSteps {
		for _, kind := range []string{"first", "replacing", "wrapped", "known"} {
			t.Run(fmt.Sprintf("%s at %s", kind, at), func(t *testing.T) {
				t.Parallel()
				content := imagetest.QCOW2("new")
				srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("old")})
				s := openStore(t)
				dir := s.opts.Dir
				switch kind {
				case "replacing":
					pull(t, s, srv.name("/d"))
				case "known": // under another name
					srv.put("/other", content)
					pull(t, s, srv.name("/other"))
				}
				before, _ := s.List()
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if kind == "wrapped" {
					srv.put("/d", gzipped(t, content))
				} else {
					srv.put("/d", content)
				}
				if at == stepPlaced && kind == "known" {
					return // the file is at its place
				}
				crash(t, dir, at, "pull "+srv.name("/d"))

				s = openStore(t, inDir(dir))
				after, _ := s.List()
				if at != stepIndexed {
					if diff := cmp.Diff(before, after); diff != "" {
						t.Errorf("state after a crash before the index was written (-want +got):\n%s", diff)
					}
				} else if image, err := s.Resolve(srv.name("/d")); err != nil || image.ID != sum(content) {
					t.Errorf("after a crash behind the index: %v, %v; want the new image", image.ID, err)
				}
				checkConsistent(t, s)
				// The interrupted pull can be done again.
				if image := pull(t, s, srv.name("/d")); image.ID != sum(content) {
					t.Errorf("pull after the crash: %s", image.ID)
				}
				checkConsistent(t, s)
			})
		}
	}
}

func TestCrashWhileRemoving(t *testing.T) {
	for _, at := range []step{stepForgotten, stepUndescribed, stepErased} {
		for _, operation := range []string{"remove", "release"} {
			t.Run(fmt.Sprintf("%s at %s", operation, at), func(t *testing.T) {
				t.Parallel()
				srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a"), "/other": imagetest.QCOW2("b")})
				s := openStore(t)
				dir := s.opts.Dir
				image := pull(t, s, srv.name("/d"))
				other := pull(t, s, srv.name("/other"))
				argument := image.ID
				if operation == "release" {
					argument = "vm1"
					if err := errors.Join(s.Hold(image.ID, "vm1"), s.Remove(t.Context(), image.ID)); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				crash(t, dir, at, operation+" "+argument)
				s = openStore(t, inDir(dir))
				if images, _ := s.List(); len(images) != 1 || images[0].ID != other.ID {
					t.Errorf("images after the crash: %v; want the other one", images)
				}
				checkConsistent(t, s)
			})
		}
	}
}

// TestCrashWhileHiding kills the removal of an image that a VM uses.
func TestCrashWhileHiding(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	s := openStore(t)
	image := pull(t, s, srv.name("/d"))
	if err := errors.Join(s.Hold(image.ID, "vm1"), s.Close()); err != nil {
		t.Fatal(err)
	}
	crash(t, s.opts.Dir, stepHidden, "remove "+image.ID)
	s = openStore(t, inDir(s.opts.Dir))
	if images, _ := s.List(); len(images) != 0 {
		t.Errorf("images after the crash: %v", images)
	}
	checkConsistent(t, s)
	if _, err := os.Stat(image.Path); err != nil {
		t.Errorf("the image of a VM: %v", err)
	}
	if err := s.Release("vm1"); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, s)
}

// checkConsistent proves that the disk holds what the index knows and no more.
func checkConsistent(t *testing.T, s *Store) {
	t.Helper()
	var want []string
	for _, r := range s.index.all() {
		want = append(want, "data/"+r.ID, "describe/"+r.ID+".json")
		content, err := os.ReadFile(s.paths.data(r.ID))
		if err != nil || sum(content) != r.ID || int64(len(content)) != r.Size {
			t.Errorf("image %s: %d bytes with digest %s, %v", r.ID, len(content), sum(content), err)
		}
		if described, err := s.readDescription(r.ID); err != nil || described == nil || !described.equal(r) {
			t.Errorf("description of %s: %+v, %v; want %+v", r.ID, described, err, r)
		}
	}
	slices.Sort(want)
	got := slices.DeleteFunc(files(t, s), func(f string) bool {
		return strings.HasPrefix(f, "partial/") && !strings.HasSuffix(f, endingUnpacked) // may be continued
	})
	if !slices.Equal(want, got) {
		t.Errorf("files (-want +got):\n%s", cmp.Diff(want, got))
	}
}

// TestErrorAtEveryStep fails, instead of dying, at each write of a pull.
func TestErrorAtEveryStep(t *testing.T) {
	for _, at := range addSteps {
		t.Run(string(at), func(t *testing.T) {
			srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
			s := openStore(t)
			s.reached = func(now step) error {
				if now == at {
					return writeError("injected", syscall.ENOSPC)
				}
				return nil
			}
			_, err := s.Pull(t.Context(), srv.name("/d"), Credentials{})
			if !errdefs.IsResourceExhausted(err) {
				t.Errorf("err = %v; want the injected one", err)
			}
			s.reached = func(step) error { return nil }
			if at != stepIndexed {
				wantEmpty(t, s)
			}
			checkConsistent(t, s)
			pull(t, s, srv.name("/d"))
			checkConsistent(t, s)
		})
	}
}

// TestLostIndexIsRebuilt breaks the index in several ways.
func TestLostIndexIsRebuilt(t *testing.T) {
	for name, destroy := range map[string]func(path string) error{
		"removed":   os.Remove,
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"cut":       func(path string) error { return os.Truncate(path, 9000) },
		"cut short": func(path string) error { return os.Truncate(path, 100) },
		"garbage":   func(path string) error { return os.WriteFile(path, noiseOf(64<<10), 0o600) },
		"pages overwritten": func(path string) error {
			return overwrite(path, 2*4096, noiseOf(100*4096))
		},
		"a web page": func(path string) error { return os.WriteFile(path, []byte("<html>"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t, map[string][]byte{"/a": imagetest.QCOW2("a"), "/b": gzipped(t, imagetest.Raw("b", 4096)), "/c": imagetest.QCOW2("c")})
			s := openStore(t)
			pull(t, s, srv.name("/a"))
			pull(t, s, srv.name("/b:v2"))
			c := pull(t, s, srv.name("/c"))
			if err := errors.Join(s.Hold(c.ID, "vm1"), s.Remove(t.Context(), c.ID)); err != nil {
				t.Fatal(err)
			}
			before, _ := s.List()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := destroy(s.paths.index()); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, inDir(s.opts.Dir))
			after, _ := s.List()
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("images (-before +after):\n%s", diff)
			}
			if _, err := os.Stat(c.Path); err != nil {
				t.Errorf("the removed image that a VM still uses: %v", err)
			}
			// The owner of the VMs tells who uses what; only then may it go.
			if err := s.SetHolders(map[string][]string{"vm1": {c.ID}}); err != nil {
				t.Fatal(err)
			}
			if err := s.Release("vm1"); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(c.Path); !os.IsNotExist(err) {
				t.Errorf("the removed image after its release: %v", err)
			}
			// What was pulled can be asked for again, and a new pull costs nothing.
			_, sent := srv.asked()
			pull(t, s, srv.name("/a"))
			if _, now := srv.asked(); now != sent {
				t.Errorf("%d bytes sent again", now-sent)
			}
		})
	}
}

func overwrite(path string, at int64, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	_, err = file.WriteAt(content[:info.Size()-at], at)
	return errors.Join(err, file.Close())
}

func TestRebuildWithoutDescriptions(t *testing.T) {
	srv := serve(t, map[string][]byte{"/a": imagetest.QCOW2("a"), "/b": imagetest.Raw("b", 4096), "/c": imagetest.QCOW2("c")})
	s := openStore(t)
	a, b, c := pull(t, s, srv.name("/a")), pull(t, s, srv.name("/b")), pull(t, s, srv.name("/c"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.Remove(s.paths.index()),
		os.Remove(s.paths.describe(a.ID)),
		os.WriteFile(s.paths.describe(b.ID), []byte("{"), 0o600),
		// Somebody damaged this file: it must not come back as an image.
		os.Chmod(c.Path, 0o600), overwrite(c.Path, 1000, noiseOf(300<<10)),
	); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, inDir(s.opts.Dir))
	for _, want := range []Image{a, b} {
		got, err := s.Resolve(want.ID)
		if err != nil || got.Format != want.Format || got.VirtualSize != want.VirtualSize || got.Size != want.Size || len(got.Names) != 0 {
			t.Errorf("image %+v, %v; want %+v without names", got, err, want)
		}
	}
	if _, err := s.Resolve(c.ID); !errdefs.IsNotFound(err) {
		t.Errorf("damaged image: %v; want not found", err)
	}
	if _, err := os.Stat(c.Path + endingBad); err != nil {
		t.Errorf("damaged image is not kept for inspection: %v", err)
	}
	s = reopen(t, s) // it stays through further starts
	if _, err := os.Stat(c.Path + endingBad); err != nil {
		t.Errorf("damaged image after another start: %v", err)
	}
	if again := pull(t, s, srv.name("/c")); again.ID != c.ID {
		t.Errorf("image pulled again: %s", again.ID)
	}
}

func TestRebuildObeysItsContext(t *testing.T) {
	srv := serve(t, map[string][]byte{"/a": imagetest.QCOW2("a")})
	s := openStore(t)
	a := pull(t, s, srv.name("/a"))
	if err := errors.Join(s.Close(), os.Remove(s.paths.index())); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, testOptions(t, inDir(s.opts.Dir))); !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v; want cancelled", err)
	}
	// The interrupted rebuild must not have made an index that knows no images.
	s = openStore(t, inDir(s.opts.Dir))
	if _, err := s.Resolve(a.ID); err != nil {
		t.Error(err)
	}
}

func TestNewerIndexIsRefused(t *testing.T) {
	srv := serve(t, map[string][]byte{"/a": imagetest.QCOW2("a")})
	s := openStore(t)
	a := pull(t, s, srv.name("/a"))
	if err := setVersion(s.index, indexVersion+1); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(s.paths.index())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), testOptions(t, inDir(s.opts.Dir)))
	checkRefusal(t, err, errdefs.IsFailedPrecondition, "run a newer Ambipod")
	after, err := os.ReadFile(s.paths.index())
	if err != nil || sum(before) != sum(after) {
		t.Errorf("the newer index was changed (%v)", err)
	}
	if _, err := os.Stat(a.Path); err != nil {
		t.Error(err)
	}
}

func TestStoreInUseIsRefused(t *testing.T) {
	s := openStore(t)
	_, err := Open(t.Context(), testOptions(t, inDir(s.opts.Dir)))
	checkRefusal(t, err, errdefs.IsFailedPrecondition, "in use by another process")
}

func TestVanishedImageIsDropped(t *testing.T) {
	srv := serve(t, map[string][]byte{"/a": imagetest.QCOW2("a")})
	s := openStore(t)
	a := pull(t, s, srv.name("/a"))
	if err := os.Remove(a.Path); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	wantEmpty(t, s)
	pull(t, s, srv.name("/a"))
	checkConsistent(t, s)
}

func TestForeignFilesStay(t *testing.T) {
	s := openStore(t)
	foreign := s.paths.data("notes.txt")
	if err := os.WriteFile(foreign, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	reopen(t, s)
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("a file that is not ours: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{{}, {Dir: "relative"}, {Dir: t.TempDir(), DefaultProtocol: "ftp"}, {Dir: t.TempDir(), FileRoots: []string{"relative"}}} {
		if s, err := Open(t.Context(), o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Open(%+v) = %v, %v; want an invalid argument", o, s, err)
		}
	}
}
