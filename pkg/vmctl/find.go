package vmctl

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// shownNames bounds how many names an error lists.
const shownNames = 10

// Find returns the VM that a name means: a pod's name, NAMESPACE/POD, or the beginning
// of a sandbox's or container's ID. Of several sandboxes of one pod it is the one whose
// VM runs, else the newest.
//
// Errors: errdefs.ErrNotFound and errdefs.ErrInvalidArgument, both with what there is.
func (n *Node) Find(ctx context.Context, name string) (VM, error) {
	vms, err := n.List(ctx)
	if err != nil {
		return VM{}, err
	}
	return find(vms, name)
}

func find(vms []VM, name string) (VM, error) {
	for _, matches := range []func(VM) bool{
		func(v VM) bool { return v.Name() == name || v.Pod == name },
		func(v VM) bool { return hasID(v, name) },
	} {
		if found := ofEachPod(vms, matches); len(found) == 1 {
			return found[0], nil
		} else if len(found) > 1 {
			return VM{}, fmt.Errorf("%q means several VMs (%s), give the namespace or more of the ID: %w", name, describeAll(found), errdefs.ErrInvalidArgument)
		}
	}
	if len(vms) == 0 {
		return VM{}, fmt.Errorf("no VM is called %q, the node has none at all: %w", name, errdefs.ErrNotFound)
	}
	return VM{}, fmt.Errorf("no VM is called %q, there are %s: %w", name, describeAll(vms), errdefs.ErrNotFound)
}

// ofEachPod returns one VM of each pod that matches.
func ofEachPod(vms []VM, matches func(VM) bool) []VM {
	var found []VM
	for _, vm := range vms {
		if !matches(vm) {
			continue
		}
		same := slices.IndexFunc(found, func(f VM) bool { return f.Name() == vm.Name() })
		switch {
		case same < 0:
			found = append(found, vm)
		case vm.Running() || !found[same].Running():
			found[same] = vm // vms are sorted by age
		}
	}
	return found
}

// hasID says that the VM's or its sandbox's ID begins so, with or without criproxy's
// prefix.
func hasID(v VM, start string) bool {
	start = strings.TrimPrefix(start, proxyPrefix)
	if start == "" {
		return false
	}
	return strings.HasPrefix(strings.TrimPrefix(v.ContainerID, proxyPrefix), start) ||
		strings.HasPrefix(strings.TrimPrefix(v.SandboxID, proxyPrefix), start)
}

func describeAll(vms []VM) string {
	var texts []string
	for i, vm := range vms {
		if i == shownNames {
			texts = append(texts, fmt.Sprintf("%d more", len(vms)-i))
			break
		}
		texts = append(texts, vm.Name()+" "+vm.ShortID())
	}
	return strings.Join(texts, ", ")
}

// FindRunning is Find for a VM that is to be got into: errdefs.ErrFailedPrecondition
// if it does not run.
func (n *Node) FindRunning(ctx context.Context, name string) (VM, error) {
	vm, err := n.Find(ctx, name)
	if err != nil || vm.Running() {
		return vm, err
	}
	why := vm.State
	if vm.Problem != "" {
		why += ": " + vm.Problem
	}
	return VM{}, fmt.Errorf("VM %s does not run (%s), `kubectl describe pod` may tell why: %w", vm.Name(), why, errdefs.ErrFailedPrecondition)
}
