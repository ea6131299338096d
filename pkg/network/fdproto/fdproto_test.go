package fdproto

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns both ends of a connection.
func pair(t testing.TB) (client, server *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

func TestRoundTrip(t *testing.T) {
	client, server := pair(t)
	if err := SendRequest(client, "secret"); err != nil {
		t.Fatal(err)
	}
	request, err := ReceiveRequest(server)
	if diff := cmp.Diff(Request{Version: Version, Key: "secret"}, request); err != nil || diff != "" {
		t.Errorf("request: %v\n%s", err, diff)
	}
	sent := Reply{}
	var files []*os.File
	for range MaxNICs { // the most there can be
		sent.NICs = append(sent.NICs, NIC{MAC: "02:00:00:00:00:01", MTU: 65535, Model: "virtio-net-pci", Bus: "pcie.0-and-a-long-name", Slot: 31, VHost: true})
		for range 2 {
			f, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			files = append(files, f)
		}
	}
	for i := range sent.NICs { // the most that go into one message
		sent.NICs[i].Queues = 3
		if len(files)+4 > MaxDescriptors {
			sent.NICs[i].Queues = 1
			continue
		}
		files = append(files, files[0], files[0], files[0], files[0])
	}
	if err := SendReply(server, sent, files); err != nil {
		t.Fatal(err)
	}
	got, fds, err := ReceiveReply(client)
	if diff := cmp.Diff(sent, got); err != nil || diff != "" || len(fds) != len(files) {
		t.Errorf("reply with %d descriptors: %v\n%s", len(fds), err, diff)
	}
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

func TestSendReplyRefuses(t *testing.T) {
	_, server := pair(t)
	for name, r := range map[string]Reply{
		"a descriptor too few": {NICs: []NIC{{}}},
		"too many cards":       {NICs: make([]NIC, MaxNICs+1)},
		"a queue too few":      {NICs: []NIC{{Queues: 2}}},
	} {
		if err := SendReply(server, r, nil); err == nil || !strings.Contains(err.Error(), "is not possible") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCutReply: a process that may open no more descriptors gets a clear error
// and not fewer taps.
func TestCutReply(t *testing.T) {
	client, server := pair(t)
	if _, err := server.Write(make([]byte, maxReply+1)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ReceiveReply(client); err == nil || !strings.Contains(err.Error(), "truncated") {
		t.Errorf("got %v", err)
	}
}

// FuzzReceiveRequest: whatever a caller sends, the server gets a request of its
// version or an error.
func FuzzReceiveRequest(f *testing.F) {
	f.Add([]byte(`{"version":1,"key":"0123456789abcdef0123456789abcdef"}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 100_000 {
			return // an empty message is the end of the connection
		}
		client, server := pair(t)
		if _, err := client.Write(b); err != nil {
			t.Fatal(err)
		}
		r, err := ReceiveRequest(server)
		if err == nil && (r.Version != Version || len(b) > maxRequest) {
			t.Errorf("%q was taken for %+v", b, r)
		}
	})
}
