package flexvolume

import (
	"bytes"
	_ "embed" // the driver
	"fmt"
	"os"
	"path/filepath"
)

//go:embed driver.sh
var driver []byte

// vendor and name are how kubelet finds the driver "virtlet/flexvolume_driver".
const (
	vendor = "virtlet~flexvolume_driver"
	name   = "flexvolume_driver"
)

// Install puts the driver into kubelet's folder of volume plugins, which kubelet
// watches. It may be repeated; a driver of another version is replaced.
func Install(pluginDir string) error {
	dir := filepath.Join(pluginDir, vendor)
	path, temp := filepath.Join(dir, name), filepath.Join(dir, "."+name) // kubelet passes over names with a dot
	if present, err := os.ReadFile(path); err == nil && bytes.Equal(present, driver) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as kubelet's own
		return fmt.Errorf("install flexvolume driver: %w", err)
	}
	if err := os.WriteFile(temp, driver, 0o755); err != nil { //nolint:gosec // kubelet runs it
		return fmt.Errorf("install flexvolume driver: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("install flexvolume driver: %w", err)
	}
	return nil
}
