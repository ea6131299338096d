package vmctl

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambipod/ambipod/pkg/redact"
)

const (
	// maxTail is how much of the end of a log goes into an archive, in bytes.
	maxTail = 1 << 20
	// maxLogs bounds how many files of one folder do.
	maxLogs = 200
)

// archive writes a compressed tar file, of which every member has been cleaned of
// secrets. Its first failure ends it.
type archive struct {
	name     string // of the folder in it
	packed   *gzip.Writer
	files    *tar.Writer
	now      time.Time
	err      error
	problems []string // what could not be had
}

func newArchive(to io.Writer, name string, now time.Time) *archive {
	packed := gzip.NewWriter(to)
	return &archive{name: name, packed: packed, files: tar.NewWriter(packed), now: now}
}

// problem notes that something is missing; nil is nothing.
func (a *archive) problem(what string, err error) {
	if err != nil {
		a.problems = append(a.problems, what+": "+strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// text adds a file of any format.
func (a *archive) text(name, content string) { a.add(name, []byte(redact.Text(content))) }

// document adds JSON; err is why there is none.
func (a *archive) document(name string, document []byte, err error) {
	if err == nil {
		document, err = redact.JSON(document, harmless)
	}
	if err != nil {
		a.problem(name, err)
		return
	}
	a.add(name, document)
}

func (a *archive) add(name string, content []byte) {
	if a.err != nil {
		return
	}
	header := &tar.Header{Name: path.Join(a.name, name), Mode: 0o600, Size: int64(len(content)), ModTime: a.now, Typeflag: tar.TypeReg}
	if a.err = a.files.WriteHeader(header); a.err == nil {
		_, a.err = a.files.Write(content)
	}
}

// tail adds the end of a file.
func (a *archive) tail(name, file string) {
	content, err := readTail(file)
	if err != nil {
		a.problem(name, err)
		return
	}
	a.text(name, content)
}

// readTail reads the end of a regular file, from the beginning of a line. It follows
// no link and waits for no pipe: some folders belong to less trusted users.
func readTail(file string) (_ string, err error) {
	info, err := os.Lstat(file)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	cut := max(info.Size()-maxTail, 0)
	data, err := io.ReadAll(io.NewSectionReader(f, cut, maxTail))
	text := strings.ToValidUTF8(string(data), "?")
	if cut > 0 {
		_, text, _ = strings.Cut(text, "\n")
		text = fmt.Sprintf("[the first %d bytes are left out]\n", cut) + text
	}
	return text, err
}

// tree adds the ends of a file, or of all regular files in a folder, below a name.
func (a *archive) tree(name, root string) {
	count := 0
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if count++; count > maxLogs {
			return fmt.Errorf("only the first %d files are here", maxLogs)
		}
		relative, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if relative == "." {
			relative = filepath.Base(file)
		}
		if entry.Type().IsRegular() {
			a.tail(path.Join(name, relative), file)
		}
		return nil
	})
	a.problem(name, err)
}

// close writes the list of problems and ends the archive.
func (a *archive) close() error {
	if len(a.problems) > 0 {
		a.text("problems.txt", strings.Join(a.problems, "\n")+"\n")
	}
	if err := errors.Join(a.err, a.files.Close(), a.packed.Close()); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}
