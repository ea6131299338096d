package volumes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// RootOffset is where, on the device of a persistent root, the guest's disk begins, in
// bytes; what is before it belongs to the node, and the guest never sees it.
const RootOffset = 1 << 20

// PersistentRoot is a root disk on a block device, which outlives its VM.
type PersistentRoot struct {
	Device      string // node in /dev
	Image       string // file that the disk begins as
	ImageFormat string // raw or qcow2
	ImageID     string // tells images apart
	VirtualSize int64  // of the image, in bytes
	Replace     bool   // a disk that was made from another image is lost
}

// The header is a line that tells it from all else, and a line of JSON.
const (
	headerMagic   = "ambipod persistent root\n"
	headerVersion = 1
	headerSize    = 4 << 10
)

// header says what is on the device. As long as it is not Complete, nothing is.
type header struct {
	Version  int    `json:"version"`
	Image    string `json:"image"`
	Complete bool   `json:"complete"`
}

// PreparePersistentRoot copies the image to the device unless that was done before, and
// leaves alone what a guest has made of it. A copy that was interrupted is begun anew.
// It returns the size of the guest's disk in bytes: all of the device behind RootOffset.
//
// Errors: errdefs.ErrInvalidArgument when the device is too small,
// errdefs.ErrFailedPrecondition when it holds anything else, or is in use.
func PreparePersistentRoot(ctx context.Context, r PersistentRoot) (size int64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("prepare persistent root disk on %s: %w", r.Device, err)
		}
	}()
	device, err := os.OpenFile(r.Device, os.O_RDWR|unix.O_EXCL, 0) // nobody has it mounted
	if errors.Is(err, unix.EBUSY) {
		return 0, fmt.Errorf("the node itself uses it, unmount it there: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	end, err := device.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if size = end - RootOffset; size < r.VirtualSize {
		return 0, fmt.Errorf("it has %d bytes, and the image with its header needs %d: %w", end, r.VirtualSize+RootOffset, errdefs.ErrInvalidArgument)
	}
	done, err := r.examine(device)
	if err != nil || done {
		return size, err
	}
	return size, r.install(ctx, device)
}

// examine reports whether the disk is there already.
func (r PersistentRoot) examine(device *os.File) (done bool, err error) {
	text := make([]byte, RootOffset)
	if _, err := device.ReadAt(text, 0); err != nil {
		return false, err
	}
	body, ours := bytes.CutPrefix(text[:headerSize], []byte(headerMagic))
	if !ours {
		if len(bytes.Trim(text, "\x00")) > 0 {
			return false, fmt.Errorf("it holds data that is not Ambipod's, wipe its first %d bytes if nobody needs it: %w", RootOffset, errdefs.ErrFailedPrecondition)
		}
		return false, nil
	}
	var found header
	if err := json.Unmarshal(bytes.TrimRight(body, "\x00"), &found); err != nil {
		return false, fmt.Errorf("its header is damaged: %w: %w", err, errdefs.ErrDataLoss)
	}
	switch {
	case found.Version > headerVersion:
		return false, fmt.Errorf("its header has version %d and this Ambipod knows version %d, upgrade the node: %w", found.Version, headerVersion, errdefs.ErrFailedPrecondition)
	case found.Complete && found.Image != r.ImageID && !r.Replace:
		return false, fmt.Errorf("it was made from image %s and the pod's image is %s: use that image or another volume, or set the annotation vm.ambipod.io/replace-root to lose what the disk holds: %w",
			found.Image, r.ImageID, errdefs.ErrFailedPrecondition)
	}
	return found.Complete && found.Image == r.ImageID, nil
}

// install copies the image. Whenever it is interrupted, the header says so.
func (r PersistentRoot) install(ctx context.Context, device *os.File) error {
	if err := writeHeader(device, header{Version: headerVersion, Image: r.ImageID}); err != nil {
		return err
	}
	info, err := device.Stat()
	if err != nil {
		return err
	}
	driver := "file"
	if info.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	target := fmt.Sprintf("driver=raw,offset=%d,file.driver=%s,file.filename=%s", RootOffset, driver, strings.ReplaceAll(r.Device, ",", ",,"))
	if _, err := qemuImg(ctx, "convert", "-n", "-f", r.ImageFormat, "--target-image-opts", r.Image, target); err != nil {
		return err
	}
	if err := device.Sync(); err != nil {
		return err
	}
	return writeHeader(device, header{Version: headerVersion, Image: r.ImageID, Complete: true})
}

func writeHeader(device *os.File, h header) error {
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	text := make([]byte, headerSize)
	copy(text, headerMagic+string(body)+"\n")
	if _, err := device.WriteAt(text, 0); err != nil {
		return err
	}
	return device.Sync()
}
