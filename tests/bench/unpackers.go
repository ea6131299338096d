package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

const systemSize = 256 << 20 // bytes

// measureUnpackers compares pulls of compressed images with the programs that unpack
// them from a file to a file.
func measureUnpackers(ctx context.Context, e environment) (section, error) {
	s := section{
		Name: "unpackers", Base: "command line", Ours: "vmruntime",
		Title: fmt.Sprintf("Pull of a compressed image of %d MiB from loopback HTTP, beside unpacking a file to a file, the fastest of all turns", systemSize>>20),
	}
	return measureOnRig(ctx, e, s, 0, func(ctx context.Context, r *imageRig) ([]row, error) {
		if err := writeSystemDisk(r.file("disk"), systemSize); err != nil {
			return nil, err
		}
		return collect(ctx, r.unpack("gzip", "gzip -c", 7), r.unpack("xz", "xz -T0 -1 -c", 7), r.unpack("zstd", "zstd -q -c", 21))
	})
}

// unpack measures one kind of compression, for which there is a program of that name.
func (r *imageRig) unpack(name, pack string, n int) func(context.Context) ([]row, error) {
	return func(ctx context.Context) ([]row, error) {
		packed := "disk." + name
		if err := r.shell(ctx, pack+` "$1" > "$2"`, r.file("disk"), r.file(packed)); err != nil {
			return nil, err
		}
		p, err := turns(n,
			func() (time.Duration, error) { return r.timedCopy(ctx, name+` -dc "$2" > "$3"`, packed) },
			func() (time.Duration, error) {
				return r.pullFresh(ctx, packed, func() error { return r.pull(ctx, packed) })
			})
		return []row{ratioRow(name, p.at(fastest), unpackRatio)}, err
	}
}

// writeSystemDisk writes a raw disk of what real ones are full of: this system's
// programs and libraries.
func writeSystemDisk(path string, size int64) error {
	disk, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write a disk: %w", err)
	}
	head := imagetest.Raw("system", tinySize)
	left := size - int64(len(head))
	_, err = disk.Write(head)
	for err == nil && left > 0 {
		before := left
		err = filepath.WalkDir("/usr", func(path string, entry fs.DirEntry, err error) error {
			if err != nil || left == 0 || !entry.Type().IsRegular() {
				return err
			}
			n, err := appendFile(disk, path, left)
			left -= n
			return err
		})
		if left == before && err == nil {
			err = fmt.Errorf("the files in /usr: %w", io.ErrUnexpectedEOF)
		}
	}
	if err = errors.Join(err, disk.Sync(), disk.Close()); err != nil {
		return fmt.Errorf("write a disk: %w", err)
	}
	return nil
}

func appendFile(to io.Writer, path string, most int64) (int64, error) {
	from, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(to, io.LimitReader(from, most))
	return n, errors.Join(err, from.Close())
}
