package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// errNoSeed says that no disk carries a seed; the guest then boots with defaults.
var errNoSeed = errors.New("no disk is labelled cidata or config-2")

// seed is the raw content of a NoCloud file system; a missing file is empty.
type seed struct {
	metaData, userData, vendorData, networkConfig []byte
}

// Where ISO 9660 keeps its first volume descriptor (ECMA-119, 8.4).
const (
	descriptorOffset = 16 * 2048
	labelOffset      = 40
	labelSize        = 32
)

// maxSeedFile bounds what one document may take of a small guest's memory.
const maxSeedFile = 16 << 20

// findSeed mounts the first block device that carries a seed and reads it.
func findSeed() (seed, error) {
	devices, err := os.ReadDir("/sys/class/block")
	if err != nil {
		return seed{}, fmt.Errorf("list block devices: %w", err)
	}
	for _, device := range devices {
		path := filepath.Join("/dev", device.Name())
		switch strings.ToLower(isoLabel(path)) {
		case "cidata":
			return mountAndRead(path, "/run/tiny/seed", readSeed)
		case "config-2":
			return mountAndRead(path, "/run/tiny/seed", readDrive)
		}
	}
	return seed{}, errNoSeed
}

// isoLabel returns the volume label of an ISO 9660 file system, "" for others.
func isoLabel(device string) string {
	f, err := os.Open(device)
	if err != nil {
		return "" // an empty CD-ROM drive, for one
	}
	defer f.Close() //nolint:errcheck // nothing was written
	descriptor := make([]byte, labelOffset+labelSize)
	if _, err := f.ReadAt(descriptor, descriptorOffset); err != nil {
		return ""
	}
	if !bytes.Equal(descriptor[:6], []byte("\x01CD001")) {
		return ""
	}
	return strings.TrimRight(string(descriptor[labelOffset:]), " \x00")
}

func mountAndRead(device, dir string, read func(fs.FS) (seed, error)) (seed, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return seed{}, fmt.Errorf("create mount point: %w", err)
	}
	if err := unix.Mount(device, dir, "iso9660", unix.MS_RDONLY, ""); err != nil {
		return seed{}, fmt.Errorf("mount %s: %w", device, err)
	}
	s, err := read(os.DirFS(dir))
	if err := unix.Unmount(dir, 0); err != nil {
		return seed{}, fmt.Errorf("unmount %s: %w", device, err)
	}
	return s, err
}

func readSeed(dir fs.FS) (seed, error) {
	var s seed
	err := readFiles(dir, map[string]*[]byte{
		"meta-data": &s.metaData, "user-data": &s.userData, "vendor-data": &s.vendorData, "network-config": &s.networkConfig,
	})
	return s, err
}

// readFiles reads those of the named files that exist.
func readFiles(dir fs.FS, files map[string]*[]byte) error {
	for name, data := range files {
		info, err := fs.Stat(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && info.Size() > maxSeedFile {
			err = fmt.Errorf("larger than %d bytes", maxSeedFile)
		}
		if err == nil {
			*data, err = fs.ReadFile(dir, name)
		}
		if err != nil {
			return fmt.Errorf("read %s of the seed: %w", name, err)
		}
	}
	return nil
}
