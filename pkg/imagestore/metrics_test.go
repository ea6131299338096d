package imagestore

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

func TestMetrics(t *testing.T) {
	disk := imagetest.QCOW2("a")
	sent, release := make(chan struct{}), make(chan struct{})
	srv := serve(t, map[string][]byte{"/d": disk})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(disk)))
		_, _ = w.Write(disk[:100_000])
		_ = http.NewResponseController(w).Flush()
		close(sent)
		<-release
		_, _ = w.Write(disk[100_000:])
	}))
	t.Cleanup(slow.Close)
	s := openStore(t)
	image := pull(t, s, srv.name("/d"))
	pull(t, s, srv.name("/d"))
	_, _ = s.Pull(t.Context(), srv.name("/none"), Credentials{})
	if err := join(s.Hold(image.ID, "vm1"), s.Remove(t.Context(), image.ID)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), imageName(slow, "/d"), Credentials{})
		done <- err
	}()
	<-sent
	eventually(t, "100,000 bytes have arrived", func() bool {
		p := s.Progress()
		return len(p) == 1 && p[0].Done == 100_000
	})
	name := imageName(slow, "/d:latest")
	want := fmt.Sprintf(`
# HELP ambipod_image_download_bytes Bytes of a running download that are here.
# TYPE ambipod_image_download_bytes gauge
ambipod_image_download_bytes{image=%[1]q} 100000
# HELP ambipod_image_download_size_bytes Size of a running download; absent if the server does not tell.
# TYPE ambipod_image_download_size_bytes gauge
ambipod_image_download_size_bytes{image=%[1]q} %[2]d
# HELP ambipod_image_fetched_bytes_total Bytes fetched from servers for images.
# TYPE ambipod_image_fetched_bytes_total counter
ambipod_image_fetched_bytes_total %[3]d
# HELP ambipod_image_pulls_total Image downloads by result; pulls that shared one count once.
# TYPE ambipod_image_pulls_total counter
ambipod_image_pulls_total{result="failed"} 1
ambipod_image_pulls_total{result="pulled"} 1
ambipod_image_pulls_total{result="unchanged"} 1
# HELP ambipod_images Images that can be used.
# TYPE ambipod_images gauge
ambipod_images 0
# HELP ambipod_images_kept Removed images whose files stay until their VMs are gone.
# TYPE ambipod_images_kept gauge
ambipod_images_kept 1
`, name, len(disk), len(disk)+100_000)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.Collector())
	err := testutil.GatherAndCompare(registry, strings.NewReader(want),
		"ambipod_image_download_bytes", "ambipod_image_download_size_bytes", "ambipod_image_fetched_bytes_total",
		"ambipod_image_pulls_total", "ambipod_images", "ambipod_images_kept")
	if err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry, "ambipod_image_store_bytes"); err != nil || n != 1 {
		t.Errorf("%d figures of the store's size, %v", n, err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestRemovalLeavesRunningDownloadAlone removes, and sweeps, while an image of the
// same name is fetched anew: the predecessor's GC deleted downloads in progress.
func TestRemovalLeavesRunningDownloadAlone(t *testing.T) {
	first, second := imagetest.QCOW2("first"), imagetest.QCOW2("second")
	srv := serve(t, map[string][]byte{"/d": first})
	s := openStore(t)
	old := pull(t, s, srv.name("/d"))

	sent, release := make(chan struct{}), make(chan struct{})
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(second[:100_000])
		_ = http.NewResponseController(w).Flush()
		close(sent)
		<-release
		_, _ = w.Write(second[100_000:])
	})
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), srv.name("/d"), Credentials{})
		done <- err
	}()
	<-sent
	if err := join(s.Remove(t.Context(), old.ID), s.Remove(t.Context(), srv.name("/d")), s.dropPartials(0)); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatalf("the download that was running: %v", err)
	}
	image, err := s.Resolve(srv.name("/d"))
	if err != nil || image.ID != sum(second) {
		t.Errorf("Resolve = %+v, %v", image, err)
	}
	if _, err := os.Stat(old.Path); !os.IsNotExist(err) {
		t.Errorf("the removed image: %v", err)
	}
	checkConsistent(t, s)
}
