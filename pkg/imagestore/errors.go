package imagestore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// Sentinels that steer a pull; each belongs to a class of errdefs as well.
var (
	// errNoDisk: content is refused for what it is.
	errNoDisk = classed(errdefs.ErrInvalidArgument, "not a usable disk image")
	// errTemporary: trying again may help.
	errTemporary = classed(errdefs.ErrUnavailable, "temporary failure")
	// errStalled: a server sends nothing or next to nothing.
	errStalled = classed(errTemporary, "the server stopped sending")
	// errRestart: the bytes received so far are of no use any more.
	errRestart = classed(errdefs.ErrUnavailable, "the content changed during the download")
	// errCorrupt: the index file cannot be read as an index.
	errCorrupt = classed(errdefs.ErrDataLoss, "the image index is corrupt")
	// errBadFile: a file is not the image that its name says.
	errBadFile = classed(errdefs.ErrDataLoss, "bad image file")
	// errClosing: the store is closed under a pull.
	errClosing = classed(errdefs.ErrUnavailable, "the image store is closing")
	// errNotModified: the place still has what is stored.
	errNotModified = errors.New("not modified")
)

// classedError is a sentence for people that belongs to a class for programs,
// without the class's name in the sentence.
type classedError struct {
	text  error
	class error
}

// classed makes an error of a class; %w works in the format.
func classed(class error, format string, args ...any) error {
	return &classedError{text: fmt.Errorf(format, args...), class: class}
}

func (e *classedError) Error() string { return e.text.Error() }

func (e *classedError) Unwrap() []error { return []error{e.text, e.class} }

// writeError is an error of writing to the store, in the class of a full disk if
// it is one.
func writeError(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return classed(errdefs.ErrResourceExhausted, "%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// joinedError is several errors in one sentence.
type joinedError []error

// join is errors.Join without line breaks: these errors end up in one line of
// kubectl's output.
func join(errs ...error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	return joinedError(errs)
}

func (e joinedError) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e joinedError) Unwrap() []error { return e }
