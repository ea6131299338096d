// Command standin plays the programs in the images that critest runs: a web
// server called nginx, one called httpd, a program that tells its effective user,
// and one that does nothing. Which one it is depends on the name of its file.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Files of the image that has the web server called nginx.
const (
	nginxPath = "/usr/sbin/nginx"
	nginxPort = "/etc/nginx/port"    // the port in decimal digits
	nginxPID  = "/var/run/nginx.pid" // written when the server listens
)

// masterTitle is what nginx calls its first process in process lists.
const masterTitle = "nginx: master process " + nginxPath

func main() {
	if err := run(os.Args[0], os.Stdout); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, os.Args[0]+":", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

// run is main with the name by which the program was called.
func run(name string, out io.Writer) error {
	switch {
	case strings.HasPrefix(name, masterTitle):
		return nginx()
	case filepath.Base(name) == "nginx":
		// The process's title changes, its PID and the kernel's name for it do not.
		return syscall.Exec(nginxPath, []string{masterTitle}, os.Environ())
	case filepath.Base(name) == "httpd":
		_, err := fmt.Fprintln(out, "httpd: configured -- resuming normal operations")
		return errors.Join(err, serve(":80", nil))
	case filepath.Base(name) == "nonewprivs":
		_, err := fmt.Fprintf(out, "Effective uid: %d\n", os.Geteuid())
		return err
	case filepath.Base(name) == "pause":
		stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer cancel()
		<-stop.Done()
		return nil
	}
	return fmt.Errorf("%q is none of nginx, httpd, nonewprivs and pause: name this program's file so", name)
}

func nginx() error {
	text, err := os.ReadFile(nginxPort)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 16)
	if err != nil {
		return fmt.Errorf("read %s: %w", nginxPort, err)
	}
	return serve(":"+strconv.FormatUint(port, 10), func() error {
		return os.WriteFile(nginxPID, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644) //nolint:gosec // as nginx does
	})
}

// serve answers every request with one page; ready is called once it listens.
func serve(address string, ready func() error) error {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	if ready != nil {
		if err := ready(); err != nil {
			return err
		}
	}
	const patience = 10 * time.Second
	server := &http.Server{
		ReadHeaderTimeout: patience,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<html><body>It works.</body></html>\n")
		}),
	}
	return server.Serve(listener)
}
