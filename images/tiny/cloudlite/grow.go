package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An MBR partition table: four entries of 16 bytes from byte 446 on, each with
// first sector and number of sectors in its last eight bytes.
const (
	sectorSize     = 512
	tableOffset    = 446
	entrySize      = 16
	startOffset    = 8
	lengthOffset   = 12
	maxMBRSectors  = 1<<32 - 1
	bootSignature  = 0xaa55
	signatureStart = 510
)

// growRoot makes the root partition and then its file system reach the end of
// the disk. It changes nothing when they do already.
func growRoot() error {
	mounts, err := os.Open("/proc/mounts")
	if err != nil {
		return err
	}
	defer mounts.Close() //nolint:errcheck // read only
	device, err := rootDevice(bufio.NewScanner(mounts))
	if err != nil {
		return err
	}
	p, err := findPartition("/sys/class/block", filepath.Base(device))
	if err != nil {
		return fmt.Errorf("grow %s: %w", device, err)
	}
	if p.start+p.length >= p.diskSectors {
		return nil
	}
	if err := p.grow(); err != nil {
		return fmt.Errorf("grow %s: %w", device, err)
	}
	var output bytes.Buffer // of interest only when it fails
	if err := execCommand(command{"resize2fs", device}, &output); err != nil {
		return fmt.Errorf("resize2fs %s: %w: %s", device, err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

func rootDevice(mounts *bufio.Scanner) (string, error) {
	for mounts.Scan() {
		if f := strings.Fields(mounts.Text()); len(f) > 1 && f[1] == "/" && strings.HasPrefix(f[0], "/dev/") {
			return f[0], nil
		}
	}
	return "", errors.Join(errors.New("no device is mounted on /"), mounts.Err())
}

// partition is a place on a disk, in sectors.
type partition struct {
	disk                       string // path of the disk's device
	number                     int
	start, length, diskSectors uint64
}

func findPartition(sysClassBlock, name string) (partition, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(sysClassBlock, name))
	if err != nil {
		return partition{}, err
	}
	disk := filepath.Dir(dir) // the disk's folder contains the partition's
	var values [4]uint64
	for i, file := range []string{
		filepath.Join(dir, "partition"), filepath.Join(dir, "start"),
		filepath.Join(dir, "size"), filepath.Join(disk, "size"),
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			return partition{}, err
		}
		if values[i], err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 63); err != nil {
			return partition{}, err
		}
	}
	return partition{
		disk: filepath.Join("/dev", filepath.Base(disk)), number: int(values[0]), //nolint:gosec // an MBR has four
		start: values[1], length: values[2], diskSectors: values[3],
	}, nil
}

// grow writes the new length into the table and tells the kernel, which lets
// only the length of a mounted partition change.
func (p partition) grow() error {
	disk, err := os.OpenFile(p.disk, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer disk.Close() //nolint:errcheck // writes are synchronous
	sector := make([]byte, sectorSize)
	if _, err := disk.ReadAt(sector, 0); err != nil {
		return err
	}
	length, err := enlarge(sector, p)
	if err != nil {
		return err
	}
	if _, err := disk.WriteAt(sector, 0); err != nil {
		return err
	}
	return p.tellKernel(disk, length)
}

// enlarge changes the partition's entry in the first sector and returns its new
// length in sectors.
func enlarge(sector []byte, p partition) (uint64, error) {
	if binary.LittleEndian.Uint16(sector[signatureStart:]) != bootSignature || p.number < 1 || p.number > 4 {
		return 0, errors.New("not a primary partition of an MBR disk")
	}
	entry := sector[tableOffset+(p.number-1)*entrySize:][:entrySize]
	if got := uint64(binary.LittleEndian.Uint32(entry[startOffset:])); got != p.start {
		return 0, fmt.Errorf("the table has it at sector %d, the kernel at %d", got, p.start)
	}
	length := min(p.diskSectors-p.start, maxMBRSectors)
	binary.LittleEndian.PutUint32(entry[lengthOffset:], uint32(length))
	return length, nil
}

// blkpgPartition and blkpgArg mirror <linux/blkpg.h>.
type blkpgPartition struct {
	start, length int64 // bytes
	number        int32
	_             [128]byte
}

type blkpgArg struct {
	op, flags, size int32
	data            unsafe.Pointer
}

func (p partition) tellKernel(disk *os.File, length uint64) error {
	part := blkpgPartition{
		start:  int64(p.start) * sectorSize, //nolint:gosec // a size that the kernel gave
		length: int64(length) * sectorSize,  //nolint:gosec // not larger than it
		number: int32(p.number),             //nolint:gosec // 1 to 4
	}
	arg := blkpgArg{op: unix.BLKPG_RESIZE_PARTITION, size: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)} //nolint:gosec // an ioctl's argument
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))               //nolint:gosec // an ioctl's argument
	if errno != 0 {
		return fmt.Errorf("tell the kernel the partition's new size: %w", errno)
	}
	return nil
}
