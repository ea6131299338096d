package criserver

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// TestFiguresOfLateQEMUs: a QEMU that is late holds nobody up, is asked once at a time,
// and its answer counts at the next look.
func TestFiguresOfLateQEMUs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const late = 5 * time.Second
		var mu sync.Mutex // guards asked
		asked := map[string]int{}
		count := func(domain string) int {
			mu.Lock()
			defer mu.Unlock()
			return asked[domain]
		}
		g := newGuestFigures(func(ctx context.Context, domain string) (libvirttools.Stats, error) {
			mu.Lock()
			asked[domain]++
			mu.Unlock()
			switch domain {
			case "late":
				select {
				case <-time.After(late):
				case <-ctx.Done():
					return libvirttools.Stats{}, ctx.Err()
				}
			case "silent":
				<-ctx.Done()
				return libvirttools.Stats{}, ctx.Err()
			case "broken":
				return libvirttools.Stats{}, errors.New("broken")
			}
			return libvirttools.Stats{Disks: []libvirttools.DiskStats{{Target: domain}}}, nil
		}, slog.New(slog.DiscardHandler))
		var vms []container
		for _, name := range []string{"silent", "late", "broken", "well"} {
			vms = append(vms, container{Container: metadata.Container{ID: name, DomainUUID: name}})
		}
		began := time.Now()
		look := func(want ...string) map[string]figure {
			t.Helper()
			since := time.Now()
			figures := g.look(t.Context(), vms)
			if took := time.Since(since); took > figuresPatience {
				t.Errorf("a look took %s", took)
			}
			if len(figures) != len(want) {
				t.Errorf("figures of %v, want %q", figures, want)
			}
			for _, name := range want {
				if f := figures[name]; len(f.Disks) != 1 || f.Disks[0].Target != name {
					t.Errorf("figures of %s: %+v", name, f)
				}
			}
			return figures
		}
		look("well")
		if count("late") != 1 || count("silent") != 1 {
			t.Error("not each was asked once")
		}
		look("well")
		if count("late") != 1 || count("silent") != 1 || count("well") != 2 {
			t.Error("who has not answered was asked again, or another was not")
		}
		time.Sleep(late)
		if f := look("well", "late")["late"]; f.at.Sub(began) != late {
			t.Errorf("the late figure is of %s after the question, want %s", f.at.Sub(began), late)
		}
		time.Sleep(2 * figuresAge)
		vms = vms[:1]
		look()
		g.close()
		if len(g.known) != 0 || len(g.asked) != 0 {
			t.Errorf("left: %v %v", g.known, g.asked)
		}
	})
}
