package volumes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"

	"github.com/containerd/errdefs"
)

// qemuImg runs qemu-img and returns its standard output.
func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	var output, problems bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Stdout, cmd.Stderr = &output, &problems
	err := cmd.Run()
	switch {
	case err == nil:
		return output.Bytes(), nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("qemu-img is not installed; install the package qemu-utils: %w", errdefs.ErrFailedPrecondition)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("qemu-img %s: %w", args[0], ctx.Err())
	default:
		return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], err, bytes.TrimSpace(problems.Bytes()))
	}
}

// info is what the header of a qcow2 disk says.
type info struct {
	VirtualSize int64  `json:"virtual-size"`
	Base        string `json:"backing-filename"`
	BaseFormat  string `json:"backing-filename-format"`
}

// readInfo also works while QEMU has the disk open (-U).
func readInfo(ctx context.Context, path string) (info, error) {
	output, err := qemuImg(ctx, "info", "-U", "-f", "qcow2", "--output", "json", path)
	if err != nil {
		return info{}, err
	}
	var i info
	if err := json.Unmarshal(output, &i); err != nil {
		return info{}, fmt.Errorf("qemu-img info: %w", err)
	}
	return i, nil
}
