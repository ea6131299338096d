package console

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// logMode is that of container logs: their readers need not be root.
const logMode = 0o640

// sink is the log being written. It belongs to one goroutine.
type sink struct {
	path string
	file *os.File
	id   identity
	size int64
}

// openSink opens or creates the log. One that is longer than the state says was
// written to just before a crash and is cut back: these records come again.
func openSink(path string, s state) (*sink, error) {
	k := &sink{path: path}
	if err := k.open(); err != nil {
		return nil, err
	}
	if k.id != s.Log || k.size <= s.LogSize {
		return k, nil
	}
	if err := k.cut(s.LogSize); err != nil {
		return nil, errors.Join(err, k.file.Close())
	}
	return k, nil
}

func (k *sink) open() error {
	file, err := os.OpenFile(k.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, logMode)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	id, size, err := identify(file)
	if err != nil {
		return errors.Join(fmt.Errorf("open log: %w", err), file.Close())
	}
	if size == 0 { // whatever the umask is
		if err := file.Chmod(logMode); err != nil {
			return errors.Join(fmt.Errorf("open log: %w", err), file.Close())
		}
	}
	k.file, k.id, k.size = file, id, size
	return nil
}

// append writes records as a whole or not at all.
func (k *sink) append(records []byte) error {
	n, err := k.file.Write(records)
	if err != nil {
		err = fmt.Errorf("write log: %w", err)
		if n > 0 {
			err = errors.Join(err, k.cut(k.size))
		}
		return err
	}
	k.size += int64(n)
	return nil
}

func (k *sink) cut(size int64) error {
	if err := k.file.Truncate(size); err != nil {
		return fmt.Errorf("cut log: %w", err)
	}
	k.size = size
	return nil
}

// reopened opens the log by its name again, after the former file was moved. It
// returns the new sink; created tells whether the file did not exist before.
func (k *sink) reopened() (fresh *sink, created bool, err error) {
	_, err = os.Lstat(k.path)
	created = errors.Is(err, os.ErrNotExist)
	fresh = &sink{path: k.path}
	if err := fresh.open(); err != nil {
		return nil, false, err
	}
	return fresh, created, nil
}
