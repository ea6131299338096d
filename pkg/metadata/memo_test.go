package metadata

import (
	"path/filepath"
	"testing"
	"time"
)

func TestMemoShowsWhatTheDatabaseHas(t *testing.T) {
	store, err := Open(filepath.Join(t.TempDir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	table := store.Containers
	for _, id := range []string{"a", "b"} {
		if err := table.Create(id, Container{ID: id, Config: []byte("config of " + id)}); err != nil {
			t.Fatal(err)
		}
	}
	reasons := func() (all []string) {
		t.Helper()
		records, err := table.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, record := range records {
			all = append(all, record.ID+" "+record.Reason)
		}
		return all
	}
	expect := func(want ...string) {
		t.Helper()
		for range 2 { // decoded, then remembered
			got := reasons()
			if len(got) != len(want) {
				t.Fatalf("the list is %q, want %q", got, want)
			}
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("the list is %q, want %q", got, want)
				}
			}
		}
	}
	expect("a ", "b ")
	changed, err := table.Update("b", func(c *Container) error {
		c.Reason, c.FinishedAt = "Completed", time.Unix(1, 0)
		c.Config[0] = 'C' // an update's record is its own
		return nil
	})
	if err != nil || changed.Reason != "Completed" {
		t.Fatalf("updated to %v, %v", changed, err)
	}
	expect("a ", "b Completed")
	if got, err := table.Get("b"); err != nil || string(got.Config) != "Config of b" {
		t.Errorf("after the update the record is %v, %v", got, err)
	}
	if err := table.Delete("a"); err != nil {
		t.Fatal(err)
	}
	expect("b Completed")
	if n := table.memo.size(); n != 1 {
		t.Errorf("%d records are remembered, 1 is there", n)
	}
}

func BenchmarkList(b *testing.B) {
	store, err := Open(filepath.Join(b.TempDir(), "metadata.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	for i := range 100 {
		id := string(rune('0'+i/10)) + string(rune('0'+i%10))
		if err := store.Containers.Create(id, Container{ID: id, Config: make([]byte, 1000)}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := store.Containers.List(); err != nil {
			b.Fatal(err)
		}
	}
}
