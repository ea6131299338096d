package volumes

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"

	"github.com/containerd/errdefs"
)

// CheckReach says whether a user of this machine, QEMU's, can enter a folder and list
// it, and, unless it is only to read, make files in it. It asks the kernel, by a process
// of that user, since permissions may be in access control lists.
//
// Errors: errdefs.ErrFailedPrecondition when it cannot.
func CheckReach(ctx context.Context, folder string, uid, gid int, readOnly bool) error {
	question := []string{"-r", folder, "-a", "-x", folder}
	if !readOnly {
		question = append(question, "-a", "-w", folder)
	}
	cmd := exec.CommandContext(ctx, "test", question...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}} //nolint:gosec // the kernel's own width
	err := cmd.Run()
	if _, refused := errors.AsType[*exec.ExitError](err); refused {
		return fmt.Errorf("QEMU's user, number %d, cannot use folder %s, which 9p takes: let it pass all folders on the way, for instance by setfacl, "+
			"or share folders by virtiofs: %w", uid, folder, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("find out whether QEMU's user can use folder %s: %w", folder, err)
	}
	return nil
}
