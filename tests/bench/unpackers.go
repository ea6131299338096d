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
		Title: fmt.Sprintf("Pull of a compressed image of %d MiB, the fastest of all turns", systemSize>>20),
	}
	return measureOnRig(ctx, e, s, 0, func(ctx context.Context, r *imageRig) ([]row, error) {
		if err := writeSystemDisk(r.file("disk"), systemSize); err != nil {
			return nil, err
		}
		return collect(ctx, r.unpack("gzip", "gzip -c", 5), r.unpack("xz", "xz -T0 -1 -c", 9), r.unpack("zstd", "zstd -q -c", 40))
	})
}

// unpack measures one kind of compression, for which there is a program of that name:
// once both sides read a file of the node, once both ask the web server, and once, which
// is the hardest reading of the target, only the pull does.
func (r *imageRig) unpack(name, pack string, n int) func(context.Context) ([]row, error) {
	return func(ctx context.Context) ([]row, error) {
		packed := "disk." + name
		if err := r.shell(ctx, pack+` "$1" > "$2"`, r.file("disk"), r.file(packed)); err != nil {
			return nil, err
		}
		took, err := turns(n,
			func() (time.Duration, error) { return r.timedCopy(ctx, name+` -dc "$2" > "$3"`, packed) },
			func() (time.Duration, error) { return r.pullFresh(ctx, r.local(packed), 1) },
			func() (time.Duration, error) { return r.timedCopy(ctx, `curl -sSf "$1" | `+name+` -dc > "$3"`, packed) },
			func() (time.Duration, error) { return r.pullFresh(ctx, r.spec(packed), 1) })
		return []row{
			ratioRow(fmt.Sprintf("%[1]s, a file of the node, beside `%[1]s -dc` from file to file", name), pair{took[0], took[1]}.at(fastest), unpackRatio),
			ratioRow(fmt.Sprintf("%[1]s, from a web server, beside `curl` piped through `%[1]s -dc` to a file", name), pair{took[2], took[3]}.at(fastest), unpackRatio),
			ratioRow(fmt.Sprintf("the latter beside `%s -dc` from file to file", name), pair{took[0], took[3]}.at(fastest), unpackRatio),
		}, err
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
