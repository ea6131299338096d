package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/network/netns"
)

// Teardown detaches the sandbox from the CNI network and removes its namespace
// with all that is in it. It is no error if there is none, and it works after a
// reboot has taken the namespace away. When plugins fail it keeps the record of
// what they owe, returns their error, and can be called again.
func (m *Manager) Teardown(ctx context.Context, pod Pod) error {
	if err := checkID(pod.SandboxID); err != nil {
		return err
	}
	defer m.locks.lock(pod.SandboxID)()
	m.plugins.RLock()
	defer m.plugins.RUnlock()
	return m.teardownLocked(ctx, pod.SandboxID)
}

// teardownLocked needs the sandbox's lock. From now on Sweep may finish what
// fails here.
func (m *Manager) teardownLocked(ctx context.Context, id string) error {
	m.setStarted(id, false)
	if err := m.Disconnect(id); err != nil {
		return err
	}
	path := m.netnsPath(id)
	if err := m.detach(ctx, id, path); err != nil {
		return err
	}
	failpoint.Hit("StopPodSandbox/detached")
	if err := netns.Remove(path); err != nil {
		return err
	}
	failpoint.Hit("StopPodSandbox/namespace-removed")
	return m.attachments.remove(id)
}

// detach runs DEL with the configuration that ADD was run with.
func (m *Manager) detach(ctx context.Context, id, path string) error {
	a, err := m.attachments.load(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	list, err := a.list()
	if err != nil {
		return err
	}
	if !netns.Exists(path) {
		path = ""
	}
	if err := m.cni.DelNetworkList(ctx, list, a.runtimeConf(path)); err != nil {
		return fmt.Errorf("detach sandbox %s from CNI network %q: %w", id, list.Name, classify(ctx, err))
	}
	return nil
}

// Check asks the CNI plugins whether the sandbox's network is still as they
// made it (verb CHECK).
func (m *Manager) Check(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	defer m.locks.lock(id)()
	m.plugins.RLock()
	defer m.plugins.RUnlock()
	a, err := m.attachments.load(id)
	if err != nil {
		return err
	}
	list, err := a.list()
	if err != nil {
		return err
	}
	if err := m.cni.CheckNetworkList(ctx, list, a.runtimeConf(a.NetNS)); err != nil {
		return fmt.Errorf("check sandbox %s in CNI network %q: %w", id, list.Name, err)
	}
	return nil
}
