package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

// quiet is for how long a command that has ended may have nothing more to say
// before its output counts as complete. Programs that it left behind may hold the
// pipes open for ever.
const quiet = 250 * time.Millisecond

// defaultPath is where programs are looked for when the agent was started without a
// PATH; its folders are also added to one that lacks them.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// past is a deadline that ends a read which is under way.
var past = time.Unix(1, 0)

// command is a running program with our ends of its pipes or terminal.
type command struct {
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the program has been waited for
	stdin  *os.File      // the terminal's, or a pipe's writing end
	stdout *os.File      // the terminal's, or a pipe's reading end
	stderr *os.File      // nil with a terminal
	tty    bool
}

// start starts what a request says.
func start(request wire.Request) (*command, error) {
	if len(request.Argv) == 0 {
		return nil, errors.New("no command given")
	}
	env := environment(request.Env, request.TTY)
	path, err := lookPath(request.Argv[0], env)
	if err != nil {
		return nil, err
	}
	c := &command{
		cmd:   &exec.Cmd{Path: path, Args: request.Argv, Env: env, Dir: "/"},
		ended: make(chan struct{}),
		tty:   request.TTY,
	}
	theirs, err := c.connect()
	if err == nil {
		err = c.cmd.Start()
	}
	closeAll(theirs)
	if err != nil {
		closeAll(c.ours())
		return nil, fmt.Errorf("start %s: %w", request.Argv[0], err)
	}
	return c, nil
}

// connect makes the pipes or the terminal and returns the program's ends of them.
func (c *command) connect() (theirs []*os.File, err error) {
	if c.tty {
		master, slave, err := openTerminal()
		if err != nil {
			return nil, err
		}
		c.stdin, c.stdout = master, master
		c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		return []*os.File{slave}, nil
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, toIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.cmd.Stdin, c.stdin = in, toIn
	theirs = append(theirs, in)
	for _, output := range []struct {
		ours   **os.File
		theirs *io.Writer
	}{{&c.stdout, &c.cmd.Stdout}, {&c.stderr, &c.cmd.Stderr}} {
		from, out, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		*output.ours, *output.theirs = from, out
		theirs = append(theirs, out)
	}
	return theirs, nil
}

func (c *command) ours() []*os.File {
	if c.tty {
		return []*os.File{c.stdin}
	}
	return []*os.File{c.stdin, c.stdout, c.stderr}
}

func closeAll(files []*os.File) {
	for _, file := range files {
		if file != nil {
			_ = file.Close()
		}
	}
}

// copyUntilEnd carries input and output and returns the program's exit code once
// all output has been sent.
func (c *command) copyUntilEnd(s streams) int {
	var inputs, outputs sync.WaitGroup
	inputs.Go(func() { c.feed(s.stdio) })
	outputs.Go(func() { c.drain(s.stdio, c.stdout) })
	if c.stderr != nil {
		outputs.Go(func() { c.drain(s.stderr, c.stderr) })
	}
	_ = c.cmd.Wait() // ProcessState has it all
	close(c.ended)
	_ = s.stdio.SetReadDeadline(past)
	outputs.Wait()
	closeAll(c.ours()) // ends a write of input that nobody reads
	inputs.Wait()
	_, _ = s.stdio.Close(), s.stderr.Close()
	return exitCode(c.cmd.ProcessState)
}

// feed carries input to the program. The end of the input is the end of the pipe; a
// terminal is told by the character that ends input on terminals.
func (c *command) feed(from io.Reader) {
	_, err := io.Copy(onlyWriter{c.stdin}, from)
	if err != nil {
		return // the program has ended, or reads no more
	}
	if c.tty {
		const endOfTransmission = "\x04"
		_, _ = io.WriteString(c.stdin, endOfTransmission)
		return
	}
	_ = c.stdin.Close()
}

// drain carries output until its end, or until the program has ended and is quiet.
func (c *command) drain(to io.Writer, from *os.File) {
	stop := make(chan struct{})
	var waker sync.WaitGroup
	waker.Go(func() {
		select {
		case <-c.ended:
			_ = from.SetReadDeadline(time.Now().Add(quiet))
		case <-stop:
		}
	})
	defer waker.Wait()
	defer close(stop)
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				// Nobody reads it: let the program go on, or be killed by steer.
				to = io.Discard
			}
			c.extend(from)
		}
		if err != nil {
			return // EOF, or EIO of a terminal that all have left, or quiet
		}
	}
}

// extend grants a program that has ended, and has just been read from, more time:
// sending its output may have taken longer than quiet.
func (c *command) extend(from *os.File) {
	select {
	case <-c.ended:
		_ = from.SetReadDeadline(time.Now().Add(quiet))
	default:
	}
}

// steer obeys controls, and kills the program when the node ends them first.
func (c *command) steer(control *bufio.Reader) {
	for {
		var message wire.Control
		if err := wire.Receive(control, &message); err != nil {
			break
		}
		if message.Resize != nil && c.tty {
			_ = setSize(c.stdin, *message.Resize)
		}
	}
	select {
	case <-c.ended:
	default:
		// Setsid made the program leader of a group with its own number. The group
		// has its number until it has been waited for, also if it is ending now.
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	}
}

func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// environment is the agent's, completed by what a person who logs in has, and on top
// of it what the request says.
func environment(asked []string, tty bool) []string {
	values := map[string]string{}
	set := func(entries ...string) {
		for _, entry := range entries {
			name, value, _ := strings.Cut(entry, "=")
			values[name] = value
		}
	}
	set(os.Environ()...)
	set("HOME="+home(), "PATH="+path(os.Getenv("PATH")))
	if tty {
		set("TERM=xterm")
	}
	set(asked...)
	var env []string
	for name, value := range values {
		env = append(env, name+"="+value)
	}
	return env
}

func home() string {
	if self, err := user.Current(); err == nil && self.HomeDir != "" {
		return self.HomeDir
	}
	return "/"
}

// path adds the usual folders that a PATH lacks.
func path(current string) string {
	folders := strings.FieldsFunc(current, func(r rune) bool { return r == ':' })
	for folder := range strings.SplitSeq(defaultPath, ":") {
		if !strings.Contains(":"+current+":", ":"+folder+":") {
			folders = append(folders, folder)
		}
	}
	return strings.Join(folders, ":")
}

// lookPath finds a program as a shell does.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, entry := range env {
		value, isPath := strings.CutPrefix(entry, "PATH=")
		if !isPath {
			continue
		}
		for folder := range strings.SplitSeq(value, ":") {
			candidate := folder + "/" + name
			if info, err := os.Stat(candidate); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return candidate, nil
			}
		}
	}
	return "", fmt.Errorf("program %s is not in the guest's PATH", name)
}

// onlyWriter hides a file's other methods: io.Copy must not splice from a stream.
type onlyWriter struct{ io.Writer }
