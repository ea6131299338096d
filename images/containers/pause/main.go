// Pause is the process that keeps a pod sandbox of the container runtime alive:
// it waits for a signal to end and meanwhile reaps orphans, as the first process
// of a shared process namespace must.
package main

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGINT, unix.SIGTERM)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	reap() // nobody is told of those that ended before
	for {
		select {
		case <-end:
			return
		case <-children:
			reap()
		}
	}
}

// reap collects every child that has ended: signals of several may have merged.
func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err != unix.EINTR && (err != nil || pid <= 0) {
			return
		}
	}
}
