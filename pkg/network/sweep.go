package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// Sweep tears down the networks of sandboxes that are not live. It knows them
// by its own records and by the files in its own folder; sandboxes that this
// process is setting up are spared. It goes on after an error and returns all.
func (m *Manager) Sweep(ctx context.Context, live map[string]bool) error {
	ids, err := m.known()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if live[id] || m.isStarted(id) {
			continue
		}
		m.log.Info("removing a leftover sandbox network", "sandbox", id)
		if err := m.Teardown(ctx, Pod{SandboxID: id}); err != nil {
			errs = append(errs, err)
		}
	}
	if m.exclusive {
		errs = append(errs, m.collectGarbage(ctx))
	}
	return errors.Join(errs...)
}

// known lists the sandboxes that have a record or a namespace.
func (m *Manager) known() ([]string, error) {
	ids, err := m.attachments.ids()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, id := range ids {
		seen[id] = true
	}
	files, err := os.ReadDir(m.netnsDir)
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	for _, f := range files {
		if !seen[f.Name()] && checkID(f.Name()) == nil {
			ids = append(ids, f.Name())
		}
	}
	return ids, nil
}

// collectGarbage has the plugins free all that belongs to no attachment of ours. While
// they are at work on a sandbox there is none to collect: the next Sweep does it.
func (m *Manager) collectGarbage(ctx context.Context) error {
	if !m.plugins.TryLock() {
		m.log.Debug("CNI plugins are at work, their garbage is collected later")
		return nil
	}
	defer m.plugins.Unlock()
	list, err := m.loadConfig()
	if err != nil {
		return err
	}
	ids, err := m.attachments.ids()
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{}
	for _, id := range ids {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	if err := m.cni.GCNetworkList(ctx, list, args); err != nil {
		return fmt.Errorf("collect garbage of CNI network %q: %w", list.Name, err)
	}
	return nil
}
