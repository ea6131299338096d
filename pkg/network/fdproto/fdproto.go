// Package fdproto is the conversation between vmwrapper and vmruntime, in which
// a VM's network descriptors change hands.
//
// It is one request and one reply over a unix socket of type SOCK_SEQPACKET,
// each a JSON document in one message; the reply carries the descriptors as
// SCM_RIGHTS. Both ends are built together, so the version only has to refuse
// what does not match. vmwrapper imports this package: it must stay small.
// The functions are safe for use on different connections at once.
package fdproto

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// Network is the network that a client dials and a server listens on.
const Network = "unixpacket"

// Version is that of the conversation.
const Version = 1

const (
	maxRequest = 256
	maxReply   = 32 << 10
	// MaxNICs bounds a VM's network cards.
	MaxNICs = 32
	// MaxDescriptors is the kernel's limit for one message.
	MaxDescriptors = 253
	// MaxQueues bounds a card's queues.
	MaxQueues = 8
)

// Request asks for the descriptors that a key stands for.
type Request struct {
	Version int    `json:"version"`
	Key     string `json:"key"`
}

// Reply is an error of one sentence, or the VM's NICs. The descriptors of each
// NIC follow one another: its tap's queues, then if VHost is set as many of the
// vhost-net device.
type Reply struct {
	Error string `json:"error,omitempty"`
	NICs  []NIC  `json:"nics,omitempty"`
}

// ModelVirtio is the QEMU device that a NIC is unless its model says otherwise.
const ModelVirtio = "virtio-net-pci"

// NIC is a network card as QEMU is to present it.
type NIC struct {
	MAC   string `json:"mac"`
	MTU   int    `json:"mtu,omitempty"`   // 0: not told to the guest by the card
	Model string `json:"model,omitempty"` // QEMU device; empty is ModelVirtio
	Bus   string `json:"bus,omitempty"`   // QEMU bus; empty is pci.0
	Slot  int    `json:"slot"`            // PCI slot on that bus
	VHost bool   `json:"vhost,omitempty"` // served by the kernel

	Queues int `json:"queues,omitempty"` // 0 is 1
}

// Pairs is the number of pairs of queues.
func (n NIC) Pairs() int { return max(1, n.Queues) }

// Descriptors is the number of descriptors that the reply comes with.
func (r Reply) Descriptors() int {
	n := 0
	for _, nic := range r.NICs {
		n += nic.Pairs()
		if nic.VHost {
			n += nic.Pairs()
		}
	}
	return n
}

// SendRequest writes a request.
func SendRequest(c *net.UnixConn, key string) error {
	b, err := json.Marshal(Request{Version: Version, Key: key})
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if _, err := c.Write(b); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

// ReceiveRequest reads a request. Descriptors that come with it are dropped.
func ReceiveRequest(c *net.UnixConn) (Request, error) {
	buf := make([]byte, maxRequest+1)
	n, err := c.Read(buf)
	if err != nil {
		return Request{}, fmt.Errorf("receive request: %w", err)
	}
	if n > maxRequest {
		return Request{}, fmt.Errorf("receive request: longer than %d bytes", maxRequest)
	}
	var r Request
	if err := json.Unmarshal(buf[:n], &r); err != nil {
		return Request{}, fmt.Errorf("receive request: %w", err)
	}
	if r.Version != Version {
		return Request{}, fmt.Errorf("vmwrapper speaks version %d of the descriptor protocol and vmruntime version %d: install both from one release", r.Version, Version)
	}
	return r, nil
}

// SendReply writes a reply with its descriptors, which stay open here.
func SendReply(c *net.UnixConn, r Reply, files []*os.File) error {
	if len(files) != r.Descriptors() || len(r.NICs) > MaxNICs || len(files) > MaxDescriptors {
		return fmt.Errorf("reply with %d NICs and %d descriptors is not possible", len(r.NICs), len(files))
	}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = syscall.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, rights, nil); err != nil {
		return fmt.Errorf("send reply: %w", err)
	}
	return nil
}

// ReceiveReply reads a reply and its descriptors, which close on exec. A reply
// that holds an error is returned as one.
func ReceiveReply(c *net.UnixConn) (Reply, []int, error) {
	buf := make([]byte, maxReply)
	rights := make([]byte, syscall.CmsgSpace(4*MaxDescriptors))
	n, rn, flags, _, err := c.ReadMsgUnix(buf, rights)
	if err != nil && !errors.Is(err, io.EOF) {
		return Reply{}, nil, fmt.Errorf("receive reply: %w", err)
	}
	if n == 0 {
		return Reply{}, nil, errors.New("receive reply: vmruntime closed the connection without an answer; see its log")
	}
	if flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 {
		return Reply{}, nil, errors.New("receive reply: it is truncated (is the limit of open files reached?)")
	}
	fds, err := parseRights(rights[:rn])
	if err != nil {
		return Reply{}, nil, fmt.Errorf("receive reply: %w", err)
	}
	var r Reply
	if err := json.Unmarshal(buf[:n], &r); err != nil {
		return Reply{}, nil, fmt.Errorf("receive reply: %w", err)
	}
	if r.Error != "" {
		return Reply{}, nil, errors.New(r.Error)
	}
	if len(fds) != r.Descriptors() {
		return Reply{}, nil, fmt.Errorf("receive reply: %d descriptors for %d", len(fds), r.Descriptors())
	}
	return r, fds, nil
}

func parseRights(b []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(b)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		got, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
