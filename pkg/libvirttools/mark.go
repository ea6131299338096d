package libvirttools

import (
	"encoding/xml"
	"fmt"

	"github.com/containerd/errdefs"
)

// markNamespace is the XML namespace of the mark in a domain's metadata.
const markNamespace = "https://vm.ambipod.io/libvirt/1"

// mark says whose domain it is. A domain without one is foreign.
type mark struct {
	Owner       string
	SandboxID   string
	ContainerID string
}

type writtenMark struct {
	XMLName     xml.Name `xml:"ambipod:vm"`
	Namespace   string   `xml:"xmlns:ambipod,attr"`
	Owner       string   `xml:"owner,attr"`
	SandboxID   string   `xml:"sandbox,attr"`
	ContainerID string   `xml:"container,attr"`
}

func (m mark) xml() (string, error) {
	text, err := xml.Marshal(writtenMark{
		Namespace: markNamespace, Owner: m.Owner, SandboxID: m.SandboxID, ContainerID: m.ContainerID,
	})
	if err != nil {
		return "", fmt.Errorf("write mark of a domain: %w", err)
	}
	return string(text), nil
}

// parseMark reads the mark as libvirt hands it out, with or without its namespace.
func parseMark(text string) (mark, error) {
	var read struct {
		XMLName     xml.Name
		Owner       string `xml:"owner,attr"`
		SandboxID   string `xml:"sandbox,attr"`
		ContainerID string `xml:"container,attr"`
	}
	if err := xml.Unmarshal([]byte(text), &read); err != nil {
		return mark{}, fmt.Errorf("read mark of a domain: %w: %w", errdefs.ErrDataLoss, err)
	}
	if read.XMLName.Local != "vm" || read.SandboxID == "" || read.ContainerID == "" {
		return mark{}, fmt.Errorf("read mark of a domain: %q names no sandbox or container: %w", text, errdefs.ErrDataLoss)
	}
	return mark{Owner: read.Owner, SandboxID: read.SandboxID, ContainerID: read.ContainerID}, nil
}
