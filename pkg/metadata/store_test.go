package metadata

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestRecordsSurviveReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "metadata.db")
	s := open(t, path)
	want := Sandbox{ID: "a1", Config: []byte{1, 2, 0xff}, Handler: "vm", State: SandboxCreating}
	if err := s.Sandboxes.Create(want.ID, want); err != nil {
		t.Fatal(err)
	}
	want.State, want.Network = SandboxReady, []byte(`{"ip":"10.0.0.2"}`)
	if _, err := s.Sandboxes.Update(want.ID, func(r *Sandbox) error {
		r.State, r.Network = want.State, want.Network
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	got, err := open(t, path).Sandboxes.Get(want.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record after reopening (-want +got):\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the database is %v, want 0600", info.Mode().Perm())
	}
}

func TestTableErrorClasses(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "metadata.db"))
	if _, err := s.Containers.Get("nope"); !errdefs.IsNotFound(err) {
		t.Errorf("Get of an absent record: %v", err)
	}
	if _, err := s.Containers.Update("nope", func(*Container) error { return nil }); !errdefs.IsNotFound(err) {
		t.Errorf("Update of an absent record: %v", err)
	}
	if err := s.Containers.Delete("nope"); err != nil {
		t.Errorf("Delete of an absent record: %v", err)
	}
	if err := s.Containers.Create("c", Container{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Containers.Create("c", Container{ID: "c"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Create: %v", err)
	}
	refusal := errors.New("refused")
	if _, err := s.Containers.Update("c", func(c *Container) error { c.VCPUs = 7; return refusal }); !errors.Is(err, refusal) {
		t.Errorf("Update with a failing function: %v", err)
	}
	if got, err := s.Containers.Get("c"); err != nil || got.VCPUs != 0 {
		t.Errorf("a failed Update has changed the record: %+v, %v", got, err)
	}
}

func TestFindByPrefix(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "metadata.db"))
	for _, id := range []string{"ab", "abc1", "abc2", "d1"} {
		if err := s.Containers.Create(id, Container{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]string{"ab": "ab", "abc1": "abc1", "d": "d1", "d1": "d1", "abc": "", "a": "", "d12": "", "": ""} {
		got, err := s.Containers.Find(id)
		if got.ID != want || errdefs.IsNotFound(err) != (want == "") {
			t.Errorf("Find(%q) = %q, %v, want %q", id, got.ID, err, want)
		}
	}
}

func TestConcurrentUpdatesAreAllSeen(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "metadata.db"))
	if err := s.Containers.Create("c", Container{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	const writers = 8
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			if _, err := s.Containers.Update("c", func(c *Container) error { c.VCPUs++; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, _ := s.Containers.Get("c"); got.VCPUs != writers {
		t.Errorf("%d updates seen, want %d", got.VCPUs, writers)
	}
}

func TestListFailsClosedOnDamagedRecord(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "metadata.db"))
	for _, id := range []string{"a", "b"} {
		if err := s.Sandboxes.Create(id, Sandbox{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(sandboxesBucket).Put([]byte("b"), []byte("{")) }); err != nil {
		t.Fatal(err)
	}
	got, err := s.Sandboxes.List()
	if !errdefs.IsDataLoss(err) || got != nil {
		t.Errorf("List with a damaged record: %v, %v", got, err)
	}
	if err == nil || !strings.Contains(err.Error(), "sandbox b") {
		t.Errorf("error does not name the damaged record: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Run("a newer version", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "metadata.db")
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.db.Update(func(tx *bolt.Tx) error {
			return tx.Bucket(metaBucket).Put(versionKey, strconv.AppendInt(nil, Version+1, 10))
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile(path)
		if _, err := Open(path); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Open: %v", err)
		}
		if after, _ := os.ReadFile(path); string(before) != string(after) {
			t.Error("the refused database was changed")
		}
	})
	t.Run("a file that is no database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "metadata.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("garbage ", 4096)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errdefs.IsDataLoss(err) {
			t.Errorf("Open: %v", err)
		}
	})
	for name, damage := range map[string]func(t *testing.T, path string){
		"a database with a page overwritten": func(t *testing.T, path string) {
			overwrite(t, path, 2*int64(os.Getpagesize()), -1)
		},
		"a database that was cut": func(t *testing.T, path string) {
			if err := os.Truncate(path, 3*int64(os.Getpagesize())); err != nil {
				t.Fatal(err)
			}
		},
		"a database with one wrong byte in each page": func(t *testing.T, path string) {
			for page := range int64(4) {
				overwrite(t, path, (2+page)*int64(os.Getpagesize())+10, 1)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "metadata.db")
			fill(t, path)
			damage(t, path)
			before, _ := os.ReadFile(path)
			if _, err := Open(path); !errdefs.IsDataLoss(err) {
				t.Errorf("Open: %v", err)
			}
			if after, _ := os.ReadFile(path); string(before) != string(after) {
				t.Error("the refused database was changed")
			}
		})
	}
	t.Run("a database in use", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "metadata.db")
		open(t, path)
		if _, err := Open(path); !errdefs.IsUnavailable(err) {
			t.Errorf("Open: %v", err)
		}
	})
}

// fill makes a database of several pages.
func fill(t *testing.T, path string) {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		id := strconv.Itoa(i)
		if err := s.Sandboxes.Create(id, Sandbox{ID: id, Config: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// overwrite puts garbage into a file; length -1 means to its end.
func overwrite(t *testing.T, path string, from, length int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if length < 0 {
		length = info.Size() - from
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(bytes.Repeat([]byte{0xa5}, int(length)), from); err != nil {
		t.Fatal(err)
	}
}

// TestSchemaDrawing compares the picture in doc.go with a fresh database.
func TestSchemaDrawing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "metadata.db"))
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	buckets := 0
	err = s.db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, _ *bolt.Bucket) error {
			buckets++
			if !strings.Contains(string(doc), "\n//\t"+string(name)+"\n") {
				t.Errorf("bucket %s is not drawn in doc.go", name)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if drawn := strings.Count(string(doc), "\n//\t"); drawn != 2*buckets {
		t.Errorf("doc.go draws %d lines for %d buckets with one kind of entry each", drawn, buckets)
	}
}

// TestOpenWritesNothing: who finds a record that cannot be read must be able to leave
// the file as it is.
func TestOpenWritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	var contents [2][]byte
	for i := range contents {
		store, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if contents[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(contents[0], contents[1]) {
		t.Error("opening a complete database has changed it")
	}
}
