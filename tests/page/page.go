// Package page writes measured tables into the pages under docs, between two
// marker lines, so that the text around them stays a person's.
//
// Concurrency: none; two programs must not write into one page at a time.
package page

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
)

// Replace puts text between the lines "<!-- begin: by -->" and "<!-- end: by -->"
// of the page, where by says who writes it. A page without these lines is
// errdefs.ErrFailedPrecondition.
func Replace(path, by, text string) error {
	begin, end := []byte("<!-- begin: "+by+" -->\n"), []byte("<!-- end: "+by+" -->\n")
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write into page: %w", err)
	}
	head, rest, found := bytes.Cut(content, begin)
	_, tail, closed := bytes.Cut(rest, end)
	if !found || !closed {
		return fmt.Errorf("%s has no lines %q and %q to write between: %w", path, begin, end, errdefs.ErrFailedPrecondition)
	}
	content = slices.Concat(head, begin, []byte(text), end, tail)
	if err := os.WriteFile(path, content, 0o644); err != nil { //nolint:gosec // documentation
		return fmt.Errorf("write into page: %w", err)
	}
	return nil
}
