//go:build integration

package tiny_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/volumes"
)

const (
	image    = "../../_tools/images/tiny.qcow2" // made by hack/setup.sh
	emulator = "qemu-system-x86_64"

	// patience is many times what a step of an emulated guest takes on an idle
	// machine.
	patience = 3 * time.Minute
)

// guest is a QEMU process with the tiny image, its console, agent and monitor.
type guest struct {
	t       *testing.T
	exited  chan error
	console *console
	agent   *lineSocket
	monitor *lineSocket
	port    int // of the host's loopback, forwarded to the guest's port 80
}

// hardware is what differs between the guests of these tests.
type hardware struct {
	machine string
	disk    []string // QEMU arguments that attach the drive "root"
	seed    []string // QEMU arguments that attach the drive "seed"
}

var (
	ide = hardware{
		machine: "pc",
		disk:    []string{"-device", "virtio-blk-pci,drive=root"},
		seed:    []string{"-device", "ide-cd,drive=seed"},
	}
	scsi = hardware{
		machine: "q35",
		disk:    []string{"-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-hd,drive=root,bus=scsi.0"},
		seed:    []string{"-device", "scsi-cd,drive=seed,bus=scsi.0"},
	}
)

const guestMAC = "52:54:00:12:34:56"

// datasource is a way to tell a guest about itself.
type datasource struct {
	label string
	build func(cloudinit.Config) (cloudinit.Files, error)
}

var (
	nocloud     = datasource{cloudinit.LabelNoCloud, cloudinit.NoCloud}
	configDrive = datasource{cloudinit.LabelConfigDrive, cloudinit.ConfigDrive}
)

// boot starts a guest on a disk of 1 GiB over the image.
func boot(t *testing.T, h hardware, source datasource, config cloudinit.Config) *guest {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "tiny") //nolint:usetesting // socket paths must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	root, seed := filepath.Join(dir, "root.qcow2"), filepath.Join(dir, "seed.iso")
	makeRoot(t, root)
	files, err := source.build(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := cloudinit.WriteISO(seed, source.label, files); err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, port: freePort(t)}
	arguments := append([]string{
		"-machine", h.machine + ",accel=tcg", "-m", "192", "-nodefaults", "-display", "none", "-no-user-config",
		"-drive", "if=none,id=root,format=qcow2,file=" + root,
		"-drive", "if=none,id=seed,format=raw,readonly=on,media=cdrom,file=" + seed,
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-10.0.2.15:80", g.port),
		"-device", "virtio-net-pci,netdev=net,mac=" + guestMAC,
		"-device", "virtio-rng-pci", "-device", "virtio-balloon-pci", "-device", "virtio-serial-pci",
		"-serial", "chardev:console", "-chardev", "socket,id=console,path=" + filepath.Join(dir, "console"),
		"-device", "virtserialport,name=org.qemu.guest_agent.0,chardev=agent",
		"-chardev", "socket,id=agent,path=" + filepath.Join(dir, "agent"),
		"-qmp", "unix:" + filepath.Join(dir, "monitor"),
	}, append(h.disk, h.seed...)...)
	consoles, agents, monitors := listen(t, dir, "console"), listen(t, dir, "agent"), listen(t, dir, "monitor")
	g.run(arguments)
	g.monitor = newLineSocket(accept(t, monitors, g.exited))
	g.console = newConsole(t, accept(t, consoles, g.exited))
	g.agent = newLineSocket(accept(t, agents, g.exited))
	g.startMonitor()
	return g
}

func makeRoot(t *testing.T, path string) {
	t.Helper()
	base, err := filepath.Abs(image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(base); err != nil {
		t.Fatalf("%v; run hack/setup.sh test, which builds the tiny guest image", err)
	}
	err = volumes.CreateRoot(t.Context(), volumes.Root{
		Path: path, Base: base, BaseFormat: "qcow2", VirtualSize: virtualSize(t, base), Size: 1 << 30,
		UID: os.Getuid(), GID: os.Getgid(),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func virtualSize(t *testing.T, path string) int64 {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", "info", "-f", "qcow2", "--output", "json", path).Output()
	if err != nil {
		t.Fatalf("qemu-img info: %v (install the package qemu-utils if it is missing)", err)
	}
	var info struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	return info.VirtualSize
}

// freePort finds a port of the loopback that nobody uses now. QEMU cannot choose
// one by itself and tell.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func listen(t *testing.T, dir, name string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// accept waits for QEMU to connect, or to end.
func accept(t *testing.T, l *net.UnixListener, exited chan error) net.Conn {
	t.Helper()
	type result struct {
		conn net.Conn
		err  error
	}
	accepted := make(chan result, 1)
	go func() {
		conn, err := l.Accept()
		accepted <- result{conn, err}
	}()
	select {
	case r := <-accepted:
		if r.err != nil {
			t.Fatal(r.err)
		}
		t.Cleanup(func() { r.conn.Close() })
		return r.conn
	case err := <-exited:
		l.Close()
		<-accepted
		t.Fatalf("QEMU ended: %v", err)
	case <-time.After(patience):
		l.Close()
		<-accepted
		t.Fatal("QEMU does not connect")
	}
	return nil
}

// run starts QEMU; it is killed when the test ends, however that ends.
func (g *guest) run(arguments []string) {
	g.t.Helper()
	var problems bytes.Buffer
	cmd := exec.Command(emulator, arguments...) //nolint:noctx // ended by the cleanup below
	cmd.Stderr = &problems
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		g.t.Fatalf("%v (install the package qemu-system-x86 if it is missing)", err)
	}
	g.exited = make(chan error, 1)
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		err := cmd.Wait()
		if problems.Len() > 0 {
			err = errors.Join(err, errors.New(problems.String()))
		}
		g.exited <- err
	}()
	g.t.Cleanup(func() {
		_ = cmd.Process.Kill() // may have ended
		<-waited
	})
}

func (g *guest) startMonitor() {
	g.t.Helper()
	if _, err := g.monitor.readLine(); err != nil { // the greeting
		g.t.Fatal(err)
	}
	g.monitor.command(g.t, "qmp_capabilities", nil, nil)
}

// shell executes a line in the guest by its agent and returns the output.
func (g *guest) shell(line string) string {
	g.t.Helper()
	var started struct {
		PID int `json:"pid"`
	}
	g.agent.command(g.t, "guest-exec", map[string]any{
		"path": "/bin/sh", "arg": []string{"-c", line}, "capture-output": true,
	}, &started)
	for range time.Tick(100 * time.Millisecond) {
		var status struct {
			Exited   bool   `json:"exited"`
			ExitCode int    `json:"exitcode"`
			Out      string `json:"out-data"`
			Err      string `json:"err-data"`
		}
		g.agent.command(g.t, "guest-exec-status", map[string]any{"pid": started.PID}, &status)
		if !status.Exited {
			continue
		}
		out, err := base64.StdEncoding.DecodeString(status.Out)
		if err != nil {
			g.t.Fatal(err)
		}
		problems, err := base64.StdEncoding.DecodeString(status.Err)
		if err != nil {
			g.t.Fatal(err)
		}
		if status.ExitCode != 0 {
			g.t.Errorf("%s: exit status %d: %s", line, status.ExitCode, problems)
		}
		return string(out)
	}
	return ""
}

func (g *guest) expect(line, want string) {
	g.t.Helper()
	if got := g.shell(line); got != want {
		g.t.Errorf("in the guest, %s prints %q, want %q", line, got, want)
	}
}

// fetch gets a page of the guest's HTTP server.
func (g *guest) fetch(path string) string {
	g.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(g.port)+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		g.t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		g.t.Errorf("GET %s: %s", path, response.Status)
	}
	return string(page)
}

// awaitEnd waits until QEMU has ended by itself.
func (g *guest) awaitEnd() {
	g.t.Helper()
	select {
	case err := <-g.exited:
		if err != nil {
			g.t.Errorf("QEMU: %v", err)
		}
	case <-time.After(patience):
		g.t.Fatalf("the guest does not power off; its console says:\n%s", g.console.tail())
	}
}

// lineSocket speaks a protocol of one JSON object a line: QMP, or the agent's.
type lineSocket struct {
	conn   net.Conn
	reader *bufio.Reader
}

func newLineSocket(conn net.Conn) *lineSocket {
	return &lineSocket{conn: conn, reader: bufio.NewReader(conn)}
}

func (s *lineSocket) readLine() ([]byte, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	return s.reader.ReadBytes('\n')
}

// command sends a command and decodes what it returns; events are skipped.
func (s *lineSocket) command(t *testing.T, name string, arguments, result any) {
	t.Helper()
	request := map[string]any{"execute": name}
	if arguments != nil {
		request["arguments"] = arguments
	}
	text, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.conn.Write(append(text, '\n')); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for {
		line, err := s.readLine()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(line, &answer); err != nil {
			t.Fatalf("%s: %v: %q", name, err, line)
		}
		if answer.Error != nil {
			t.Fatalf("%s: %s", name, answer.Error)
		}
		if answer.Return == nil {
			continue
		}
		if result != nil {
			if err := json.Unmarshal(answer.Return, result); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		return
	}
}

// console collects what the guest prints.
type console struct {
	t    *testing.T
	conn net.Conn

	mu   sync.Mutex // guards the rest
	text []byte
	seen int           // up to where texts have been awaited
	more chan struct{} // closed and replaced when text grows
}

func newConsole(t *testing.T, conn net.Conn) *console {
	c := &console{t: t, conn: conn, more: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			c.add(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return c
}

func (c *console) add(text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, text...)
	close(c.more)
	c.more = make(chan struct{})
}

// await waits until the guest has printed all texts, in any order, after those
// that were awaited before.
func (c *console) await(texts ...string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for {
		missing, more := c.look(texts)
		if missing == "" {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			c.t.Fatalf("waited for %q on the console, which says:\n%s", missing, c.tail())
		}
	}
}

// look returns a text that has not been printed yet, or "" when all have; then
// the next look begins after them.
func (c *console) look(texts []string) (missing string, more chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := c.seen
	for _, text := range texts {
		at := bytes.Index(c.text[c.seen:], []byte(text))
		if at < 0 {
			return text, c.more
		}
		end = max(end, c.seen+at+len(text))
	}
	c.seen = end
	return "", nil
}

func (c *console) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(string(c.text[max(0, len(c.text)-4000):]), "\r", "")
}

func (c *console) send(line string) {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(line + "\n")); err != nil {
		c.t.Fatal(err)
	}
}
