package vmctl

import (
	"context"
	"fmt"
	"io"
)

// Versions are those of all programs that VMs depend on.
type Versions struct {
	Vmctl       string   `json:"vmctl"`
	Runtime     string   `json:"runtime"`               // who serves the CRI at Socket
	RuntimeName string   `json:"runtimeName"`           // "ambipod" is vmruntime
	Socket      string   `json:"socket"`                // that was asked
	Libvirt     string   `json:"libvirt,omitempty"`     // libvirtd
	QEMU        string   `json:"qemu,omitempty"`        // libvirtd's default emulator
	Accelerator string   `json:"accelerator,omitempty"` // how VMs run, and why
	Problems    []string `json:"problems,omitempty"`    // why something is missing
}

// Versions asks the daemons.
func (n *Node) Versions(ctx context.Context, own string) Versions {
	v := Versions{Vmctl: own, Runtime: n.Version.GetRuntimeVersion(), RuntimeName: n.Version.GetRuntimeName(), Socket: n.Socket}
	facts, err := n.Facts(ctx)
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
		return v
	}
	v.Libvirt, v.QEMU = facts.Libvirt.LibvirtVersion, facts.Libvirt.QEMUVersion
	v.Accelerator = fmt.Sprintf("%s (%s)", facts.Accelerator, facts.AcceleratorReason)
	return v
}

// WriteVersions prints versions in one of the formats.
func WriteVersions(to io.Writer, format string, v Versions) error {
	if format != FormatTable {
		return WriteDocument(to, format, v)
	}
	rows := [][]string{{"vmctl", v.Vmctl}}
	if v.Socket != "" {
		rows = append(rows, []string{v.RuntimeName, v.Runtime + " at " + v.Socket})
	}
	if v.Libvirt != "" {
		rows = append(rows, []string{"libvirt", v.Libvirt}, []string{"QEMU", v.QEMU}, []string{"accelerator", v.Accelerator})
	}
	for _, problem := range v.Problems {
		rows = append(rows, []string{"problem", problem})
	}
	return writeTable(to, rows)
}
