package imagestore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// TestCrowd lets many callers do everything at once with a few images whose content
// changes. An image in use must stay, and nothing may be left when all is removed.
func TestCrowd(t *testing.T) {
	const (
		callers, turns = 8, 25
		places         = 3
	)
	disk := func(n int) []byte { return imagetest.Raw(fmt.Sprint("crowd", n), 64<<10) }
	srv := serve(t, map[string][]byte{})
	for n := range places {
		srv.put(fmt.Sprint("/", n), disk(n))
	}
	s := openStore(t)
	expected := func(err error) bool {
		return err == nil || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || strings.Contains(err.Error(), context.DeadlineExceeded.Error())
	}
	var crowd sync.WaitGroup
	for caller := range callers {
		crowd.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(caller)))
			holder := fmt.Sprint("vm", caller)
			for range turns {
				name := srv.name(fmt.Sprintf("/%d:v%d", random.IntN(places), random.IntN(2)))
				if random.IntN(2) == 0 {
					name = strings.Replace(name, Prefix, LegacyPrefix, 1)
				}
				var err error
				switch random.IntN(6) {
				case 0:
					srv.put(fmt.Sprint("/", random.IntN(places)), disk(random.IntN(2*places)))
				case 1:
					err = s.Remove(t.Context(), name)
				case 2:
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(3000))*time.Microsecond)
					_, err = s.Pull(ctx, name, Credentials{Username: fmt.Sprint(random.IntN(2))})
					cancel()
				default:
					err = runVM(t, s, name, holder)
				}
				if !expected(err) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	crowd.Wait()
	checkConsistent(t, s)
	images, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range images {
		if err := s.Remove(t.Context(), image.ID); err != nil {
			t.Error(err)
		}
	}
	if err := s.dropPartials(0); err != nil {
		t.Error(err)
	}
	wantEmpty(t, s)
}

// runVM pulls an image, and reads it while it is in use.
func runVM(t *testing.T, s *Store, name, holder string) error {
	image, err := s.Pull(t.Context(), name, Credentials{})
	if err != nil {
		return err
	}
	if err := s.Hold(image.ID, holder); err != nil {
		return err // removed meanwhile
	}
	if content, err := os.ReadFile(image.Path); err != nil || sum(content) != image.ID {
		t.Errorf("image %s in use has %d bytes with digest %s, %v", image.ID, len(content), sum(content), err)
	}
	return s.Release(holder)
}
