//go:build integration

package libvirttools_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/pkg/libvirttools"
)

// TestKeysOfCephAreTakenBack: libvirt keeps no key, neither after a start that failed nor
// when the process that lent it was killed.
func TestKeysOfCephAreTakenBack(t *testing.T) {
	c := client(t)
	g := describeGuest(t)
	name := g.UUID + " disk"
	g.Disks = append(g.Disks, libvirttools.Disk{
		Path: "pool/image", Format: libvirttools.FormatRaw,
		RBD: &libvirttools.RBD{Monitors: []string{"127.0.0.1:6789"}, User: "user", Secret: name},
	})
	define(t, c, g)
	if err := os.Remove(g.overlay); err != nil {
		t.Fatal(err)
	}
	kept := func(when string, want bool) {
		t.Helper()
		if list := virsh(t, daemon(t), "secret-list"); strings.Contains(list, name) != want {
			t.Errorf("%s the list of secrets is %q", when, list)
		}
	}
	if err := c.Start(deadline(t), g.UUID, libvirttools.OpenDisk{Name: name, Key: []byte("key")}); err == nil {
		t.Error("a VM without its root disk has started")
	}
	kept("after a start that failed", false)

	file := filepath.Join(t.TempDir(), "secret.xml")
	text := "<secret ephemeral='yes' private='yes'><usage type='ceph'><name>" + name + "</name></usage></secret>"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	virsh(t, daemon(t), "secret-define", file)
	kept("after an end in between", true)
	if err := c.Undefine(deadline(t), g.UUID); err != nil {
		t.Fatal(err)
	}
	kept("after the domain", false)
}
