package dhcp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// maxFrame bounds what is read of a frame; DHCP messages are far shorter.
	maxFrame = 4096
	// A guest that sends more than burst messages in window is not read until
	// the window ends; its messages then queue up in the kernel and get lost.
	burst  = 50
	window = time.Second
)

// Server answers one guest.
type Server struct {
	config Config
	conn   *packet.Conn
	mac    net.HardwareAddr
	log    *slog.Logger
	stop   chan struct{}
	done   chan struct{}
	now    func() time.Time
	counts *Counts
}

// Counts are figures about any number of servers.
type Counts struct {
	Answered atomic.Int64 // messages of guests that got a reply
	Ignored  atomic.Int64 // messages that deserve none: broken, not for us, of another card
	Failed   atomic.Int64 // replies that could not be sent
}

// Start serves on the interface, which has to be in the calling thread's network
// namespace, until Close, and counts what it does.
func Start(iface string, c Config, log *slog.Logger, counts *Counts) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", iface, err)
	}
	filter, err := bpf.Assemble(toServerPort)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: assemble packet filter: %w", iface, err)
	}
	conn, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_IP, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", iface, err)
	}
	s := &Server{
		config: c,
		conn:   conn,
		mac:    ifi.HardwareAddr,
		log:    log,
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
		now:    time.Now,
		counts: counts,
	}
	go s.serve()
	return s, nil
}

// toServerPort passes unfragmented UDP to port 67. The redirect passes nothing
// else either; this spares wake-ups should it be missing.
var toServerPort = []bpf.Instruction{
	bpf.LoadAbsolute{Off: etherHeaderLen + 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipFalse: 6},
	bpf.LoadAbsolute{Off: etherHeaderLen + 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4},
	bpf.LoadMemShift{Off: etherHeaderLen},
	bpf.LoadIndirect{Off: etherHeaderLen + 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: serverPort, SkipFalse: 1},
	bpf.RetConstant{Val: maxFrame},
	bpf.RetConstant{Val: 0},
}

// Close stops the server and waits for it.
func (s *Server) Close() error {
	close(s.stop)
	err := s.conn.Close()
	<-s.done
	if err != nil {
		return fmt.Errorf("stop DHCP for %s: %w", s.config.MAC, err)
	}
	return nil
}

func (s *Server) serve() {
	defer close(s.done)
	buf := make([]byte, maxFrame)
	since, count := s.now(), 0
	for {
		n, _, err := s.conn.ReadFrom(buf)
		if err != nil && s.fatal(err) {
			return
		}
		if now := s.now(); now.Sub(since) > window {
			since, count = now, 0
		}
		if count++; count > burst && !s.pause(since.Add(window).Sub(s.now())) {
			return
		}
		if err == nil {
			s.handle(buf[:n])
		}
	}
}

// fatal tells whether reading has ended. An interface that goes down is
// reported once and may come back.
func (s *Server) fatal(err error) bool {
	select {
	case <-s.stop:
		return true
	default:
	}
	if errors.Is(err, unix.ENETDOWN) {
		return false
	}
	s.log.Error("DHCP server stopped: the guest cannot renew its address until the sandbox is connected anew",
		"mac", s.config.MAC, "err", err)
	return true
}

// pause waits, and tells whether the server goes on.
func (s *Server) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.stop:
		return false
	}
}

func (s *Server) handle(frame []byte) {
	reply, err := s.config.answer(s.mac, frame)
	if err != nil {
		s.counts.Ignored.Add(1)
		s.log.Debug("DHCP message", "mac", s.config.MAC, "err", err)
		return
	}
	if _, err := s.conn.WriteTo(reply, &packet.Addr{HardwareAddr: net.HardwareAddr(reply[:6])}); err != nil {
		s.counts.Failed.Add(1)
		// Not a warning: a guest could fill the log with it.
		s.log.Debug("DHCP reply not sent", "mac", s.config.MAC, "err", err)
		return
	}
	s.counts.Answered.Add(1)
}
