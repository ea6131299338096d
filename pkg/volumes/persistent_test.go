package volumes

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// newPersistent is a device of 8 MiB, empty, and an image for it.
func newPersistent(t *testing.T, format string) PersistentRoot {
	t.Helper()
	base := newBase(t, format)
	device := filepath.Join(t.TempDir(), "de,vice")
	if err := os.WriteFile(device, make([]byte, 8*mebibyte), 0o600); err != nil {
		t.Fatal(err)
	}
	return PersistentRoot{Device: device, Image: base.Base, ImageFormat: format, ImageID: "one", VirtualSize: base.VirtualSize}
}

// change writes to the device as a guest does, or a mistaken administrator.
func change(t *testing.T, r PersistentRoot, offset int64, text string) {
	t.Helper()
	device, err := os.OpenFile(r.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if _, err := device.WriteAt([]byte(text), offset); err != nil {
		t.Fatal(err)
	}
}

func diskBegins(t *testing.T, r PersistentRoot, want string) {
	t.Helper()
	content, err := os.ReadFile(r.Device)
	if err != nil {
		t.Fatal(err)
	}
	if len(content) != 8*mebibyte || !bytes.HasPrefix(content[RootOffset:], []byte(want)) {
		t.Errorf("device of %d bytes: the disk begins %q, want %q", len(content), content[RootOffset:RootOffset+16], want)
	}
}

func prepared(t *testing.T, r PersistentRoot) {
	t.Helper()
	size, err := PreparePersistentRoot(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if size != 8*mebibyte-RootOffset {
		t.Errorf("the guest's disk has %d bytes", size)
	}
}

func TestPersistentRootIsCopiedOnce(t *testing.T) {
	for _, format := range baseFormats {
		t.Run(format, func(t *testing.T) {
			r := newPersistent(t, format)
			prepared(t, r)
			diskBegins(t, r, "from the image")
			change(t, r, RootOffset, "by the guest..")
			prepared(t, r)
			diskBegins(t, r, "by the guest..")
		})
	}
}

func TestInterruptedCopyIsBegunAnew(t *testing.T) {
	r := newPersistent(t, "raw")
	image := r.Image
	r.Image += ".missing"
	if _, err := PreparePersistentRoot(t.Context(), r); err == nil {
		t.Fatal("an image that is missing was copied")
	}
	change(t, r, RootOffset, "half of it ....")
	r.Image = image
	prepared(t, r)
	diskBegins(t, r, "from the image")
}

func TestPersistentRootRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(*testing.T, *PersistentRoot)
		class func(error) bool
		says  string
	}{
		"a small device": {func(_ *testing.T, r *PersistentRoot) { r.VirtualSize = 8 * mebibyte }, errdefs.IsInvalidArgument, "needs 9437184"},
		"data of others": {func(t *testing.T, r *PersistentRoot) { change(t, *r, 1024, "\x53\xef") }, errdefs.IsFailedPrecondition, "wipe"},
		"another image":  {func(t *testing.T, r *PersistentRoot) { prepared(t, *r); r.ImageID = "two" }, errdefs.IsFailedPrecondition, "is two"},
		"a newer header": {func(t *testing.T, r *PersistentRoot) {
			change(t, *r, 0, headerMagic+`{"version":2,"image":"two"}`)
		}, errdefs.IsFailedPrecondition, "version 2"},
		"a newer header, though replacing": {func(t *testing.T, r *PersistentRoot) {
			change(t, *r, 0, headerMagic+`{"version":2}`)
			r.Replace = true
		}, errdefs.IsFailedPrecondition, "version 2"},
		"a damaged header": {func(t *testing.T, r *PersistentRoot) { change(t, *r, 0, headerMagic+"{{") }, errdefs.IsDataLoss, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newPersistent(t, "qcow2")
			test.spoil(t, &r)
			before, err := os.ReadFile(r.Device)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := PreparePersistentRoot(t.Context(), r); !test.class(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v", err)
			}
			after, err := os.ReadFile(r.Device)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("the device was changed, %v", err)
			}
		})
	}
}

func TestPersistentRootIsReplacedOnDemand(t *testing.T) {
	r := newPersistent(t, "qcow2")
	prepared(t, r)
	change(t, r, RootOffset, "by the guest..")
	r.ImageID, r.Replace = "two", true
	prepared(t, r)
	diskBegins(t, r, "from the image")
}
