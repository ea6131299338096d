package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// How often a step that lasts shows that it is alive: on a terminal, where one
// line ticks, and elsewhere, where each sign is a line.
const (
	tickTerminal = 200 * time.Millisecond
	tickPlain    = 10 * time.Second
)

// lap is how long one step took.
type lap struct {
	name string
	took time.Duration
}

// progress shows steps while they last. One step runs at a time.
type progress struct {
	out      io.Writer
	terminal bool
	laps     []lap // of the steps that succeeded
}

func newProgress(out *os.File) *progress {
	info, err := out.Stat()
	return &progress{out: out, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// step shows that a step has begun; what it returns ends it.
func (p *progress) step(name string) func(error) {
	began := time.Now()
	stop := make(chan struct{})
	var ticker sync.WaitGroup
	ticker.Go(func() { p.tick(name, began, stop) })
	return func(err error) {
		close(stop)
		ticker.Wait()
		took := time.Since(began)
		start := ""
		if p.terminal {
			start = "\r\033[K"
		}
		if err != nil {
			p.printf("%s  %-58s failed after %.1f s\n", start, name, took.Seconds())
			return
		}
		p.laps = append(p.laps, lap{name, took})
		p.printf("%s  %-58s %6.1f s\n", start, name, took.Seconds())
	}
}

// do runs one step.
func (p *progress) do(name string, step func() error) error {
	done := p.step(name)
	err := step()
	done(err)
	return err
}

func (p *progress) tick(name string, began time.Time, stop <-chan struct{}) {
	format, every := "  %s ... %.0f s\n", tickPlain
	if p.terminal {
		format, every = "\r  %-58s %6.1f s\033[K", tickTerminal
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
			p.printf(format, name, time.Since(began).Seconds())
		}
	}
}

// printf writes to the screen; when nobody can read it, there is nobody to tell.
func (p *progress) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(p.out, format, args...)
}
