package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/network/netns"
)

// Setup makes the sandbox's network namespace and attaches it to the CNI
// network. What an earlier attempt for the same sandbox left is removed first.
// On failure nothing is left, unless the plugins also refuse to undo their work:
// then the error says so, and Teardown or Sweep can try again.
func (m *Manager) Setup(ctx context.Context, pod Pod) (*Result, error) {
	if err := checkID(pod.SandboxID); err != nil {
		return nil, err
	}
	defer m.locks.lock(pod.SandboxID)()
	m.plugins.RLock()
	defer m.plugins.RUnlock()
	list, err := m.loadConfig()
	if err != nil {
		return nil, err
	}
	if err := m.teardownLocked(ctx, pod.SandboxID); err != nil {
		return nil, fmt.Errorf("remove the network that an earlier attempt left: %w", err)
	}
	m.setStarted(pod.SandboxID, true)
	result, err := m.attach(ctx, pod, list)
	if err != nil {
		undo, cancel := detached(ctx)
		defer cancel()
		return nil, errors.Join(err, m.teardownLocked(undo, pod.SandboxID))
	}
	return result, nil
}

// attach records its intent, acts, and reads back what came of it.
func (m *Manager) attach(ctx context.Context, pod Pod, list *libcni.NetworkConfigList) (*Result, error) {
	path := m.netnsPath(pod.SandboxID)
	a, err := newAttachment(pod, path, list)
	if err != nil {
		return nil, err
	}
	m.warnUnpublished(pod, list)
	if err := m.attachments.save(a); err != nil {
		return nil, err
	}
	failpoint.Hit("RunPodSandbox/attachment-saved")
	if err := netns.Create(path); err != nil {
		return nil, err
	}
	failpoint.Hit("RunPodSandbox/namespace-made")
	added, err := m.cni.AddNetworkList(ctx, list, a.runtimeConf(path))
	if err != nil {
		return nil, fmt.Errorf("attach sandbox %s to CNI network %q: %w", pod.SandboxID, list.Name, classify(ctx, err))
	}
	failpoint.Hit("RunPodSandbox/attached")
	told, err := types100.NewResultFromResult(added)
	if err != nil {
		return nil, fmt.Errorf("result of CNI network %q for sandbox %s: %w", list.Name, pod.SandboxID, err)
	}
	return readResult(path, pod, told)
}

// classify gives a plugin's error a class: the network is not usable now.
func classify(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}

// warnUnpublished logs what the pod asks for and the network cannot do; other
// runtimes let such pods run too.
func (m *Manager) warnUnpublished(pod Pod, list *libcni.NetworkConfigList) {
	wanted := capabilities(pod)
	for _, capability := range []string{"portMappings", "bandwidth"} {
		if _, ok := wanted[capability]; ok && !hasCapability(list, capability) {
			m.log.Warn("no plugin of the CNI network has a capability that the pod needs: add one to the configuration",
				"capability", capability, "network", list.Name, "sandbox", pod.SandboxID, "pod", pod.Namespace+"/"+pod.Name)
		}
	}
}

func hasCapability(list *libcni.NetworkConfigList, name string) bool {
	for _, p := range list.Plugins {
		if p.Network.Capabilities[name] {
			return true
		}
	}
	return false
}
