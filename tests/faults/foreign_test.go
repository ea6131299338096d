//go:build faults

package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ambipod/ambipod/tests/node"
	"github.com/ambipod/ambipod/tests/process"
)

// foreignDomains are of somebody else, and as easy to mistake for Ambipod's as can be:
// one by its name, one by another node's mark, one runs.
var foreignDomains = map[string]string{
	"ambipod-0123456789ab-vm": "",
	"other-node":              `<metadata><a:vm xmlns:a="https://vm.ambipod.io/libvirt/1" owner="/var/lib/other" sandbox="0" container="1"/></metadata>`,
	foreignRunning:            "",
}

const (
	foreignRunning = "foreign-running"
	foreignNetwork = "foreign-network"
	foreignText    = "not Ambipod's"
)

// foreign is what must stay as it is.
type foreign struct {
	n     *node.Node
	files []string
	xml   map[string]string // by domain or network
	qemu  process.Process
}

func makeForeign(ctx context.Context, n *node.Node) (*foreign, error) {
	f := &foreign{n: n, xml: map[string]string{}}
	for name, metadata := range foreignDomains {
		xml := fmt.Sprintf(`<domain type="qemu"><name>%s</name>%s<memory unit="MiB">16</memory><os><type arch="x86_64" machine="pc">hvm</type></os></domain>`, name, metadata)
		if err := f.define(ctx, "define", name, xml); err != nil {
			return nil, err
		}
	}
	if err := f.define(ctx, "net-define", foreignNetwork, `<network><name>`+foreignNetwork+`</name></network>`); err != nil {
		return nil, err
	}
	if _, err := f.virsh(ctx, "start", "--paused", foreignRunning); err != nil {
		return nil, err
	}
	found, err := n.ProcessesNaming("guest=" + foreignRunning)
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("%d processes of the foreign domain: %w", len(found), err)
	}
	f.qemu = found[0]
	libvirt := filepath.Join(n.Root(), "libvirt")
	for _, path := range []string{
		filepath.Join(libvirt, "lib", "images", "foreign.qcow2"),
		filepath.Join(libvirt, "log", "qemu", "ambipod-0123456789ab-vm.log"),
		filepath.Join(n.VMStateDir(), "vms", "foreign", "root.qcow2"),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(foreignText), 0o644); err != nil {
			return nil, err
		}
		f.files = append(f.files, path)
	}
	return f, f.remember(ctx)
}

func (f *foreign) define(ctx context.Context, verb, name, xml string) error {
	path := filepath.Join(f.n.Root(), name+".xml")
	if err := os.WriteFile(path, []byte(xml), 0o600); err != nil {
		return err
	}
	_, err := f.virsh(ctx, verb, path)
	return err
}

func (f *foreign) remember(ctx context.Context) (err error) {
	for name := range foreignDomains {
		if f.xml[name], err = f.virsh(ctx, "dumpxml", name); err != nil {
			return err
		}
	}
	f.xml[foreignNetwork], err = f.virsh(ctx, "net-dumpxml", foreignNetwork)
	return err
}

// check says what has changed.
func (f *foreign) check(ctx context.Context) error {
	now := &foreign{n: f.n, xml: map[string]string{}}
	if err := now.remember(ctx); err != nil {
		return fmt.Errorf("foreign: %w", err)
	}
	for name, before := range f.xml {
		if now.xml[name] != before {
			return fmt.Errorf("foreign %s was\n%s\nand is\n%s", name, before, now.xml[name])
		}
	}
	if !f.qemu.Alive() {
		return fmt.Errorf("QEMU of the foreign domain has ended")
	}
	for _, path := range f.files {
		if text, err := os.ReadFile(path); err != nil || string(text) != foreignText {
			return fmt.Errorf("foreign file %s: %q, %w", path, text, err)
		}
	}
	return nil
}

// restart starts the foreign domain after a reboot, as its owner would.
func (f *foreign) restart(ctx context.Context) error {
	if _, err := f.virsh(ctx, "start", "--paused", foreignRunning); err != nil {
		return err
	}
	found, err := f.n.ProcessesNaming("guest=" + foreignRunning)
	if err != nil || len(found) != 1 {
		return fmt.Errorf("%d processes of the foreign domain: %w", len(found), err)
	}
	f.qemu = found[0]
	return f.remember(ctx)
}

func (f *foreign) remove(ctx context.Context) error {
	if _, err := f.virsh(ctx, "destroy", foreignRunning); err != nil {
		return err
	}
	for name := range foreignDomains {
		if _, err := f.virsh(ctx, "undefine", name); err != nil {
			return err
		}
	}
	_, err := f.virsh(ctx, "net-undefine", foreignNetwork)
	return err
}

func (f *foreign) virsh(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", f.n.LibvirtURI()}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("virsh %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
