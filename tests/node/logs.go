package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// LogLine is one line of a container's log file in the CRI's format.
type LogLine struct {
	Time    time.Time
	Stream  string // stdout or stderr
	Partial bool   // its text goes on in the next line
	Text    string
}

// ReadPodLog reads a container's log. A line that is not in the CRI's format is
// errdefs.ErrDataLoss; a last line that is still being written is left out.
func ReadPodLog(path string) ([]LogLine, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read pod log: %w", err)
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	var lines []LogLine
	for text := range strings.Lines(string(data)) {
		line, err := parseLogLine(strings.TrimSuffix(text, "\n"))
		if err != nil {
			return nil, fmt.Errorf("line %d of %s: %w", len(lines)+1, path, err)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func parseLogLine(text string) (LogLine, error) {
	const parts = 4
	fields := strings.SplitN(text, " ", parts)
	if len(fields) != parts {
		return LogLine{}, fmt.Errorf("%q lacks time, stream or tag: %w", text, errdefs.ErrDataLoss)
	}
	at, err := time.Parse(time.RFC3339Nano, fields[0])
	if err != nil {
		return LogLine{}, fmt.Errorf("%q: %w: %w", text, errdefs.ErrDataLoss, err)
	}
	stream, tag := fields[1], fields[2]
	if stream != "stdout" && stream != "stderr" || tag != "F" && tag != "P" {
		return LogLine{}, fmt.Errorf("%q has stream %q and tag %q: %w", text, stream, tag, errdefs.ErrDataLoss)
	}
	return LogLine{Time: at, Stream: stream, Partial: tag == "P", Text: fields[3]}, nil
}

// WaitPodLog returns the log when one of its lines contains text.
func WaitPodLog(ctx context.Context, path, text string) ([]LogLine, error) {
	var lines []LogLine
	err := Until(ctx, fmt.Sprintf("%q is in %s", text, path), func(context.Context) (err error) {
		if lines, err = ReadPodLog(path); err != nil {
			return err
		}
		for _, line := range lines {
			if strings.Contains(line.Text, text) {
				return nil
			}
		}
		if len(lines) == 0 {
			return fmt.Errorf("the log is empty: %w", errdefs.ErrUnavailable)
		}
		return fmt.Errorf("its last line of %d is %q: %w", len(lines), lines[len(lines)-1].Text, errdefs.ErrUnavailable)
	})
	return lines, err
}

// SaveLogs copies what the daemons and pods wrote to a folder that outlives the
// node; the folder's earlier content goes.
func (n *Node) SaveLogs(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("save logs of node: %w", err)
	}
	for name, from := range map[string]string{
		"daemons": n.path(dirLog),
		"libvirt": n.path(dirLibvirt, "log"),
		"pods":    n.PodLogDir(),
		"etc":     n.path(dirEtc),
	} {
		if err := copyTree(from, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("save logs of node: %w", err)
		}
	}
	return nil
}

// copyTree copies the regular files of a folder, which may change meanwhile.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil { //nolint:gosec // for people to read
			return err
		}
		return copyFile(path, target, 0o644)
	})
}
