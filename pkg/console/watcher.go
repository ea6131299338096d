package console

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Watcher wakes Followers when files change. One serves a whole process.
type Watcher struct {
	inotify *os.File
	log     *slog.Logger
	done    chan struct{}

	mu      sync.Mutex                           // guards watches
	watches map[int32]map[chan struct{}]struct{} // by descriptor: who is to be woken
}

// NewWatcher starts watching; Close ends it.
func NewWatcher(log *slog.Logger) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch consoles: inotify: %w; raise fs.inotify.max_user_instances if there are too many", err)
	}
	w := &Watcher{
		inotify: os.NewFile(uintptr(fd), "inotify"),
		log:     log,
		done:    make(chan struct{}),
		watches: map[int32]map[chan struct{}]struct{}{},
	}
	go w.run()
	return w, nil
}

// Close ends watching. Followers must have been stopped.
func (w *Watcher) Close() error {
	err := w.inotify.Close()
	<-w.done
	return err
}

// What wakes a Follower: in the console's folder only names, because disks are
// written there all the time; of the console itself its content and its writer.
const (
	folderEvents = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_ONLYDIR
	fileEvents   = unix.IN_MODIFY | unix.IN_CLOSE_WRITE
)

// add has wake signalled on events of a path. Two watches of one inode share a
// descriptor.
func (w *Watcher) add(path string, mask uint32, wake chan struct{}) (int32, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	descriptor, err := w.addInotify(path, mask|unix.IN_MASK_ADD)
	if err != nil {
		return 0, fmt.Errorf("watch %s: %w", path, err)
	}
	if w.watches[descriptor] == nil {
		w.watches[descriptor] = map[chan struct{}]struct{}{}
	}
	w.watches[descriptor][wake] = struct{}{}
	return descriptor, nil
}

func (w *Watcher) addInotify(path string, mask uint32) (int32, error) {
	var descriptor int
	var err error
	raw, rawErr := w.inotify.SyscallConn()
	if rawErr != nil {
		return 0, rawErr
	}
	rawErr = raw.Control(func(fd uintptr) {
		descriptor, err = unix.InotifyAddWatch(int(fd), path, mask)
	})
	return int32(descriptor), errors.Join(rawErr, err) //nolint:gosec // inotify counts up from 1
}

// addFile is add for an open file, whatever its name has become.
func (w *Watcher) addFile(f *os.File, mask uint32, wake chan struct{}) (int32, error) {
	return w.add("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), mask, wake)
}

// remove undoes add.
func (w *Watcher) remove(descriptor int32, wake chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	followers := w.watches[descriptor]
	delete(followers, wake)
	if followers == nil || len(followers) > 0 {
		return
	}
	delete(w.watches, descriptor)
	raw, err := w.inotify.SyscallConn()
	if err != nil {
		return // closed
	}
	//nolint:gosec // a descriptor is not negative
	_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(descriptor)) }) // fails only if the file is gone
}

func (w *Watcher) run() {
	defer close(w.done)
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := w.inotify.Read(buf)
		if err != nil || n == 0 {
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.EOF) {
				w.log.Error("watching consoles ended; logs of virtual machines stand still", "err", err)
			}
			return
		}
		w.dispatch(buf[:n])
	}
}

// dispatch wakes whom the events concern: which file changed and how matters
// little, since Followers look for themselves.
func (w *Watcher) dispatch(events []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		descriptor := int32(binary.NativeEndian.Uint32(events)) //nolint:gosec // that is how the kernel writes it
		mask := binary.NativeEndian.Uint32(events[4:])
		length := binary.NativeEndian.Uint32(events[12:])
		events = events[unix.SizeofInotifyEvent+length:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			for _, followers := range w.watches {
				wakeAll(followers)
			}
		case mask&unix.IN_IGNORED != 0: // the file is gone
			wakeAll(w.watches[descriptor])
			delete(w.watches, descriptor)
		default:
			wakeAll(w.watches[descriptor])
		}
	}
}

func wakeAll(followers map[chan struct{}]struct{}) {
	for wake := range followers {
		select {
		case wake <- struct{}{}:
		default: // it has been woken already
		}
	}
}

// watchedFile keeps an inotify watch on the file that is being read.
type watchedFile struct {
	watcher    *Watcher
	wake       chan struct{}
	file       *os.File
	descriptor int32
	err        error // why there is no watch
}

// follow moves the watch. It is called before reading, so that whatever is written
// after the last read wakes the Follower.
func (w *watchedFile) follow(file *os.File) {
	if file == w.file {
		return
	}
	w.forget()
	if file == nil {
		return
	}
	if w.descriptor, w.err = w.watcher.addFile(file, fileEvents, w.wake); w.err == nil {
		w.file = file
	}
}

func (w *watchedFile) forget() {
	if w.file != nil {
		w.watcher.remove(w.descriptor, w.wake)
		w.file = nil
	}
}
