package cloudinit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/kdomanski/iso9660"
)

// isoNamePattern are the paths that ISO 9660 images keep without extensions: other
// names would be changed by the library, and guests would not find the file.
var isoNamePattern = regexp.MustCompile(`^([a-z0-9_-]{1,28}/)*[a-z0-9_-]{1,20}(\.[a-z0-9]{1,8})?$`)

// maxLabel is the size of a volume identifier (ECMA-119, 8.4.7).
const maxLabel = 32

// WriteISO makes an ISO 9660 image with a volume label. An existing file at path
// is replaced in one step; the image is complete and on disk when it has its name.
// It is readable by its owner alone, since user-data may hold secrets.
func WriteISO(path, label string, files Files) (err error) {
	if label == "" || len(label) > maxLabel {
		return invalid("volume label %q does not have 1 to %d bytes", label, maxLabel)
	}
	writer, err := iso9660.NewWriter()
	if err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	defer func() {
		if cleanErr := writer.Cleanup(); cleanErr != nil && err == nil {
			err = fmt.Errorf("write image %s: %w", path, cleanErr)
		}
	}()
	for name, content := range files {
		if !isoNamePattern.MatchString(name) {
			return invalid("file name %q cannot be kept in an ISO 9660 image", name)
		}
		if err := writer.AddFile(bytes.NewReader(content), name); err != nil {
			return fmt.Errorf("write image %s: add %s: %w", path, name, err)
		}
	}
	if err := writeImage(path, label, writer); err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	return nil
}

func writeImage(path, label string, writer *iso9660.ImageWriter) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) //nolint:errcheck // gone already when all went well
	defer temp.Close()           //nolint:errcheck // closed below when all went well
	if err := writer.WriteTo(temp, label); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}
