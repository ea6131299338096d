package criserver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cloudinit"
)

const (
	// maxFiles and maxFileBytes bound what a pod can have copied into its guest:
	// somewhat more than ConfigMaps and Secrets, of 1 MiB each, come to in practice.
	maxFiles     = 1000
	maxFileBytes = 16 << 20

	// kubeletData is the link by which kubelet swaps the contents of ConfigMap,
	// Secret, projected and downward API volumes at once (its atomic writer). A
	// volume that has it consists of plain files and nothing but kubelet writes it.
	kubeletData = "..data"

	// terminationLog is where a container may leave its last message for kubelet.
	// A guest has no way to write to the node's file.
	terminationLog = "/dev/termination-log"
)

// guestFiles reads the files that a pod mounts into its container, to be written
// into the guest at its first boot: single files, and volumes that kubelet fills
// with ConfigMaps, Secrets, tokens and the downward API. Kubelet has fetched them, so
// no right to read Secrets is needed here.
func guestFiles(mounts []*runtimeapi.Mount) ([]cloudinit.WriteFile, error) {
	var collected fileCollector
	for _, mount := range mounts {
		if err := collected.addMount(mount); err != nil {
			return nil, fmt.Errorf("volume mounted at %s: %w", mount.GetContainerPath(), err)
		}
	}
	return collected.files, nil
}

type fileCollector struct {
	files []cloudinit.WriteFile
	bytes int64
}

func (c *fileCollector) addMount(mount *runtimeapi.Mount) error {
	if isKubeletData(mount.GetHostPath()) {
		return c.addFolder(mount.GetHostPath(), mount.GetContainerPath())
	}
	file, err := os.OpenFile(mount.GetHostPath(), readNow, 0)
	if err != nil {
		return err
	}
	return c.add(mount.GetContainerPath(), file)
}

func isKubeletData(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, kubeletData))
	return err == nil
}

// addFolder reads the current contents of a volume. Links are followed inside of the
// volume alone, whatever they say.
func (c *fileCollector) addFolder(dir, containerPath string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only read
	current, err := root.OpenRoot(kubeletData)
	if err != nil {
		return err
	}
	defer current.Close() //nolint:errcheck // only read
	return fs.WalkDir(current.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		file, err := current.OpenFile(name, readNow, 0)
		if err != nil {
			return err
		}
		return c.add(path.Join(containerPath, name), file)
	})
}

// readNow opens a file to read. A guest may have left a pipe where a file was, of which
// nothing would ever come.
const readNow = os.O_RDONLY | unix.O_NONBLOCK

// add takes a file over and closes it.
func (c *fileCollector) add(guestPath string, file *os.File) (err error) {
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no plain file: %w", file.Name(), errdefs.ErrInvalidArgument)
	}
	content, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err != nil {
		return err
	}
	c.bytes += int64(len(content))
	if c.bytes > maxFileBytes || len(c.files) == maxFiles {
		return fmt.Errorf("files of the pod come to more than %d MiB or %d files, which is too much for cloud-init, put them on a disk: %w",
			maxFileBytes>>20, maxFiles, errdefs.ErrInvalidArgument)
	}
	c.files = append(c.files, cloudinit.WriteFile{Path: path.Clean(guestPath), Content: content, Mode: info.Mode().Perm()})
	return nil
}
