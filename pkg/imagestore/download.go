package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

const (
	maxAttempts    = 5        // in a row without progress
	progress       = 64 << 10 // bytes that make an attempt count as progress
	maxRestarts    = 3        // of the whole download because the content changed
	tellEvery      = 10 * time.Second
	firstRetryWait = 200 * time.Millisecond
	lastRetryWait  = 5 * time.Second
)

// place is where bytes can be fetched from.
type place interface {
	// open asks for the bytes from offset have on; v describes the ones before.
	open(ctx context.Context, have int64, v validator) (*body, error)
	close()
}

// download reads the bytes of a place: first those that an earlier attempt left
// in the partial file, then those from the network, which it appends to that
// file as long as that is of use. Broken connections are mended.
type download struct {
	place    place
	part     *partial
	store    *Store
	transfer *transfer
	cancel   context.CancelFunc // makes all reads fail

	wrapped  bool  // the partial file is not what becomes the image
	passing  bool  // further bytes are not appended to the partial file
	pos      int64 // of the next byte for the reader
	body     *body // nil between connections
	watch    *watchdog
	pace     pace      // of this connection
	attempts int       // in a row without progress
	fresh    int64     // bytes since attempts was set
	told     time.Time // when the log was last told of the progress
}

// connect opens a connection, waiting between attempts. It is called once before
// the first read, so that bytes of old content are never handed out.
func (d *download) connect(ctx context.Context) error {
	for {
		err := d.connectOnce(ctx)
		if err == nil || !errors.Is(err, errTemporary) {
			return err
		}
		if err := d.waitToRetry(ctx, err); err != nil {
			return err
		}
	}
}

func (d *download) connectOnce(ctx context.Context) error {
	ctx, dog := watch(ctx, d.store.opts.StallTimeout)
	var opened *body
	err := dog.during(func() (n int, err error) {
		opened, err = d.place.open(ctx, d.have(), d.part.validator)
		return 0, err
	})
	if err != nil {
		dog.stop()
		return err
	}
	d.body, d.watch, d.pace = opened, dog, pace{}
	if err := d.adopt(opened); err != nil {
		return join(err, d.disconnect())
	}
	return nil
}

// adopt brings the partial file in line with what the place is about to send.
func (d *download) adopt(b *body) error {
	if b.offset == 0 {
		if d.pos > 0 {
			return errRestart
		}
		if err := d.part.reset(); err != nil {
			return err
		}
		if err := d.part.begin(b.validator); err != nil {
			return err
		}
	}
	d.transfer.expect(d.have(), b.validator.Total)
	return d.checkRoom(b.validator.Total)
}

// checkRoom refuses what is too big before its first byte is fetched.
func (d *download) checkRoom(total int64) error {
	if total > d.store.opts.MaxDownload {
		return classed(errdefs.ErrResourceExhausted, "the image has %d bytes; downloads are limited to %d", total, d.store.opts.MaxDownload)
	}
	return d.store.makeRoom(max(total-d.have(), 0))
}

func (d *download) disconnect() error {
	if d.body == nil {
		return nil
	}
	err := d.body.Close()
	d.watch.stop()
	d.body, d.watch = nil, nil
	return err
}

// reader is the whole content; read errors are final.
func (d *download) reader(ctx context.Context) io.Reader {
	return readerFunc(func(p []byte) (int, error) { return d.read(ctx, p) })
}

func (d *download) read(ctx context.Context, p []byte) (int, error) {
	if left := d.part.have - d.pos; left > 0 {
		n, err := d.part.file.ReadAt(p[:min(left, int64(len(p)))], d.pos)
		d.pos += int64(n)
		return n, err
	}
	for {
		if d.body == nil {
			if err := d.connect(ctx); err != nil {
				return 0, err
			}
		}
		n, err := d.readBody(p)
		if n > 0 {
			return n, d.keep(p[:n])
		}
		if errors.Is(err, io.EOF) && (d.part.validator.Total < 0 || d.have() == d.part.validator.Total) {
			return 0, io.EOF
		}
		if err == nil {
			continue
		}
		class := errTemporary
		if !d.part.validator.Strong {
			class = errRestart // nothing would tell whether the rest fits
		}
		err = classed(class, "the connection broke after %d bytes: %w", d.have(), err)
		if errors.Is(err, errRestart) {
			return 0, err
		}
		if err := join(d.disconnect(), d.waitToRetry(ctx, err)); err != nil {
			return 0, err
		}
	}
}

func (d *download) readBody(p []byte) (n int, err error) {
	d.pace.asks(time.Now())
	err = d.watch.during(func() (int, error) {
		n, err = d.body.Read(p)
		return n, err
	})
	d.pace.answered(n, time.Now())
	return n, err
}

// have is how many bytes need not be asked for: those in the partial file, and those
// that went by.
func (d *download) have() int64 { return max(d.part.have, d.pos) }

// worthKeeping tells whether the next bytes go into the partial file. Whoever goes on
// with a wrapped download must unwrap it from the first byte; if that takes longer than
// to fetch the bytes, as it always does for a file of this node, having them here would
// save no time, but writing them takes some now. The partial file then stays what it is:
// the beginning of the download.
func (d *download) worthKeeping() bool {
	d.passing = d.passing || d.wrapped && d.pace.outrun()
	return !d.passing
}

// keep takes bytes from the network into account.
func (d *download) keep(p []byte) error {
	if d.fresh += int64(len(p)); d.fresh >= progress {
		d.attempts, d.fresh = 0, 0
	}
	if d.worthKeeping() {
		if err := d.part.append(p); err != nil {
			return err
		}
	}
	d.pos += int64(len(p))
	d.transfer.add(len(p))
	if now := d.store.now(); now.Sub(d.told) >= tellEvery {
		d.told = now
		d.store.tell(d.transfer.public(now))
	}
	if d.have() > d.store.opts.MaxDownload {
		return classed(errdefs.ErrResourceExhausted, "the image has more than %d bytes, the limit of downloads", d.store.opts.MaxDownload)
	}
	return nil
}

// waitToRetry returns nil when it is time for another attempt, and else why not.
func (d *download) waitToRetry(ctx context.Context, cause error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	d.attempts++
	if d.attempts >= maxAttempts {
		return fmt.Errorf("gave up after %d attempts: %w", d.attempts, cause)
	}
	d.store.log.Debug("image download is tried again", "attempt", d.attempts, "cause", cause)
	return d.store.pause(ctx, d.attempts)
}

// pause waits before an attempt.
func (s *Store) pause(ctx context.Context, attempt int) error {
	select {
	case <-time.After(s.retryWait(attempt)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func backoff(attempt int) time.Duration {
	return min(firstRetryWait<<(attempt-1), lastRetryWait)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
