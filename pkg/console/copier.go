package console

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// bufferSize is what a Follower reads at once. It must exceed maxContent, so that
	// a full buffer always contains a record.
	bufferSize = 4 * maxContent
	// idleSize is what it has while its guest prints little: a node has many guests.
	idleSize = 4 << 10
)

// copier moves bytes from source to sink and keeps the state of it.
type copier struct {
	source    source
	sink      *sink
	statePath string
	log       *slog.Logger
	lost      func() // may be nil
	now       func() time.Time
	buffer    []byte // raw output not yet in the log, in its first held bytes
	held      int
	heldSince time.Time
	previous  position // end of the file before the source's, where held bytes may begin
	records   []byte
}

// position is a place in a console file.
type position struct {
	id identity
	at int64
}

func newCopier(o Options) (copier, error) {
	s, err := loadState(o.State)
	if errdefs.IsDataLoss(err) {
		o.Logger.Warn("a console is copied to its log from the start, because how far it was copied is unknown", "err", err)
		s, err = state{}, nil
	}
	if err != nil {
		return copier{}, err
	}
	c := copier{
		source: source{path: o.Console}, statePath: o.State, log: o.Logger.With("console", o.Console), lost: o.Lost,
		now: time.Now, buffer: make([]byte, idleSize),
	}
	if c.sink, err = openSink(o.Log, s); err != nil {
		return copier{}, err
	}
	err = c.source.resume(s.Console, s.Offset)
	if errors.Is(err, errOutputLost) {
		c.tellLoss(err)
		err = nil
	}
	if err == nil {
		err = c.save(0)
	}
	if err != nil {
		c.close()
		return copier{}, err
	}
	return c, nil
}

func (c *copier) close() {
	if err := errors.Join(c.source.close(), c.sink.file.Close()); err != nil {
		c.log.Warn("closing a console or its log failed", "err", err)
	}
}

// save records that all but the last unsaved bytes that were read are in the log.
func (c *copier) save(unsaved int) error {
	p := position{id: c.source.id, at: c.source.at - int64(unsaved)}
	if p.at < 0 {
		p = position{id: c.previous.id, at: c.previous.at + p.at}
	}
	return state{Console: p.id, Offset: p.at, Log: c.sink.id, LogSize: c.sink.size}.save(c.statePath)
}

// copySome copies until there is nothing more to read, or at most limit bytes. An
// unfinished line is kept back for promptTime, or copied at once with flush. It
// returns how soon to come again; 0 means when there is more to read.
func (c *copier) copySome(watched *watchedFile, limit int, flush bool) (time.Duration, error) {
	for limit > 0 {
		if err := c.commit(false); err != nil { // makes room in a full buffer
			return 0, err
		}
		watched.follow(c.source.file)
		n, err := c.source.read(c.buffer[c.held:])
		if err != nil {
			return 0, err
		}
		if n > 0 {
			if c.held == 0 {
				c.heldSince = c.now()
			}
			c.held += n
			limit -= n
			if c.held == len(c.buffer) {
				c.resize(bufferSize)
			}
			continue
		}
		moved, err := c.advance()
		if err != nil && !errors.Is(err, errRotated) {
			return 0, err
		}
		if !moved && err == nil {
			c.resize(idleSize)
			return c.copyPrompt(flush)
		}
	}
	return time.Nanosecond, c.commit(false)
}

// resize gives the buffer another size, unless what it holds would fill it.
func (c *copier) resize(size int) {
	if size == len(c.buffer) || size <= c.held {
		return
	}
	buffer := make([]byte, size)
	copy(buffer, c.buffer[:c.held])
	c.buffer, c.records = buffer, nil
}

func (c *copier) copyPrompt(flush bool) (time.Duration, error) {
	if c.held == 0 {
		return 0, nil
	}
	if wait := promptTime - c.now().Sub(c.heldSince); wait > 0 && !flush {
		return wait, nil
	}
	return 0, c.commit(true)
}

// commit writes records and then the state. If the state cannot be written the
// records are taken back, so that both can be tried again.
func (c *copier) commit(flush bool) error {
	var consumed int
	c.records, consumed = appendRecords(c.records[:0], c.buffer[:c.held], c.now(), flush)
	if consumed == 0 {
		return nil
	}
	before := c.sink.size
	if err := c.sink.append(c.records); err != nil {
		return err
	}
	if err := c.save(c.held - consumed); err != nil {
		return errors.Join(err, c.sink.cut(before))
	}
	c.held = copy(c.buffer, c.buffer[consumed:c.held])
	c.heldSince = c.now()
	return nil
}

func (c *copier) tellLoss(err error) {
	c.log.Warn("output is missing in a log", "err", err)
	if c.lost != nil {
		c.lost()
	}
}

// advance goes on to the next file when the current one is complete, which is when
// it has a successor: then nothing is written to it any more, and one more look
// shows what was written before.
func (c *copier) advance() (bool, error) {
	shrunk, err := c.source.shrunk()
	if err != nil {
		return false, err
	}
	if shrunk {
		c.held = 0
		c.tellLoss(errOutputLost)
		return true, nil
	}
	next, lost, err := c.source.newer()
	if err != nil || next == (named{}) {
		return false, err
	}
	if _, size, err := identifyOpen(c.source.file); err != nil || size > c.source.at {
		return err == nil, err
	}
	if lost || int64(c.held) > c.source.at { // the line goes on no more, or spans three files
		if err := c.commit(true); err != nil {
			return false, err
		}
		c.held = 0
	}
	if lost {
		c.tellLoss(errOutputLost)
	}
	end := position{id: c.source.id, at: c.source.at}
	if err := c.source.open(next); err != nil {
		return false, err
	}
	c.previous = end
	return true, nil
}

// identifyOpen is identify, for a console that may not exist yet.
func identifyOpen(f *os.File) (identity, int64, error) {
	if f == nil {
		return identity{}, 0, nil
	}
	return identify(f)
}

// reopen switches to a new log file.
func (c *copier) reopen() error {
	fresh, created, err := c.sink.reopened()
	if err != nil {
		return err
	}
	old := c.sink
	c.sink = fresh
	if err := c.save(c.held); err != nil {
		c.sink = old
		err = errors.Join(err, fresh.file.Close())
		if created {
			err = errors.Join(err, os.Remove(fresh.path))
		}
		return fmt.Errorf("reopen log %s: %w", fresh.path, err)
	}
	return old.file.Close()
}
