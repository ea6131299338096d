package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// Status tells whether pods can be given a network now: nil, or an error of one
// sentence. Files are read anew each time, for they may appear later.
func (m *Manager) Status(ctx context.Context) error {
	list, err := m.loadConfig()
	if err != nil {
		return err
	}
	if err := m.cni.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("CNI network %q is not ready: %w: %w", list.Name, err, errdefs.ErrUnavailable)
	}
	return nil
}

// loadConfig returns the network configuration to use for new pods, with all
// its plugins present.
func (m *Manager) loadConfig() (*libcni.NetworkConfigList, error) {
	list, err := readConfig(m.confDir)
	if err != nil {
		return nil, err
	}
	if err := m.finder.check(list); err != nil {
		return nil, err
	}
	return list, nil
}

// readConfig takes the first file by name, as other runtimes do, so that all
// of a node's pods are in the same network.
func readConfig(dir string) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration folder %s: %w", dir, err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CNI network configuration in %s: install a network add-on or put a .conflist file there: %w",
			dir, errdefs.ErrUnavailable)
	}
	slices.Sort(files)
	list, err := readConfigFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("CNI network configuration %s is not usable: %w: %w", files[0], err, errdefs.ErrFailedPrecondition)
	}
	return list, nil
}

func readConfigFile(path string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(path, ".conflist") {
		list, err := libcni.NetworkConfFromFile(path)
		if err == nil && len(list.Plugins) == 0 {
			err = errors.New("it names no plugin")
		}
		return list, err
	}
	return readSingleConfig(path)
}

// readSingleConfig reads the old format, one plugin without a list around it.
func readSingleConfig(path string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	doc, err := json.Marshal(map[string]any{
		"name": conf.Network.Name, "cniVersion": conf.Network.CNIVersion, "plugins": []json.RawMessage{data},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(doc)
}

// inlined returns the configuration as one document that holds all plugins,
// also those that the original took from files of their own.
func inlined(list *libcni.NetworkConfigList) (json.RawMessage, error) {
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, p := range list.Plugins {
		plugins[i] = p.Bytes
	}
	doc, err := json.Marshal(struct {
		Name         string            `json:"name"`
		CNIVersion   string            `json:"cniVersion,omitempty"`
		DisableCheck bool              `json:"disableCheck,omitempty"`
		DisableGC    bool              `json:"disableGC,omitempty"`
		Inlined      bool              `json:"loadOnlyInlinedPlugins"`
		Plugins      []json.RawMessage `json:"plugins"`
	}{list.Name, list.CNIVersion, list.DisableCheck, list.DisableGC, true, plugins})
	if err != nil {
		return nil, fmt.Errorf("encode CNI network configuration %q: %w", list.Name, err)
	}
	return doc, nil
}

// pluginFinder looks for plugins' programs.
type pluginFinder struct {
	root string // as findPlugin has it
	dirs []string
}

// check returns an error that names the first program that is missing.
func (f pluginFinder) check(list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		for _, program := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if program == "" {
				continue
			}
			if _, err := findPlugin(f.root, program, f.dirs); err != nil {
				return fmt.Errorf("CNI plugin %q of network %q is not in %s: install it there: %w",
					program, list.Name, strings.Join(f.dirs, ", "), errdefs.ErrUnavailable)
			}
		}
	}
	return nil
}
