package libvirttools

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode"
)

const (
	// logTail is how much of a domain's log is read, from its end.
	logTail = 64 << 10
	// lastLines and lastBytes bound what is quoted of QEMU's words.
	lastLines = 3
	lastBytes = 500
)

// End is what libvirtd's log of a domain says about the domain's last run.
type End struct {
	// At is when libvirtd saw it end; zero if the log does not tell.
	At     time.Time
	Reason Reason
	// Words are the last lines that QEMU, or the program that started it, complained
	// in, as one line; warnings are left out.
	Words string
}

var (
	// libvirtd's own lines, as in "2026-11-21 10:02:43.755+0000: shutting down, reason=destroyed".
	logLine  = regexp.MustCompile(`^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+\d{4}): (.*)$`)
	qemuTime = regexp.MustCompile(`^\d{4}-\d\d-\d\dT[0-9:.]+Z `)
)

const (
	logTime   = "2006-01-02 15:04:05.000-0700"
	logStart  = "starting up "
	logFinish = "shutting down, reason="
)

// logReasons are libvirt's words (virDomainShutoffReasonTypeToString).
var logReasons = map[string]Reason{
	"shutdown":      ReasonShutdown,
	"destroyed":     ReasonDestroyed,
	"crashed":       ReasonCrashed,
	"migrated":      ReasonMigrated,
	"saved":         ReasonSaved,
	"failed":        ReasonFailed,
	"from snapshot": ReasonSnapshot,
	"daemon":        ReasonDaemon,
}

// ReadEnd reads the end of a domain's log, which libvirtd keeps at path. It survives
// restarts of libvirtd, which its memory of why a domain ended does not. The guest
// can make QEMU write to it, so nothing but the message for people may depend on Words.
// An absent log tells nothing.
func ReadEnd(path string) (End, error) {
	data, err := readTail(path, logTail)
	if errors.Is(err, os.ErrNotExist) {
		return End{Reason: ReasonUnknown}, nil
	}
	if err != nil {
		return End{Reason: ReasonUnknown}, fmt.Errorf("read log of domain: %w", err)
	}
	return parseEnd(string(data)), nil
}

// parseEnd keeps what stands after the last start.
func parseEnd(text string) End {
	var (
		end     End
		words   []string
		command bool // QEMU's command line is being printed
	)
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		stamped := logLine.FindStringSubmatch(line)
		switch {
		case stamped != nil && strings.HasPrefix(stamped[2], logStart):
			end, words, command = End{}, nil, true
		case stamped != nil:
			if why, ok := strings.CutPrefix(stamped[2], logFinish); ok {
				end.Reason = logReasons[why]
				end.At, _ = time.Parse(logTime, stamped[1]) // zero if it is no time
			}
		case command:
			command = strings.HasSuffix(line, `\`)
		default:
			words = append(words, qemuTime.ReplaceAllString(line, ""))
		}
	}
	if end.Reason == "" {
		end.Reason = ReasonUnknown
	}
	end.Words = LastWords(words)
	return end
}

// LastWords makes one printable line of the last lines that are no warnings.
func LastWords(lines []string) string {
	var kept []string
	for _, line := range lines {
		if line = strings.TrimSpace(printable(line)); line != "" && !strings.Contains(line, "warning: ") {
			kept = append(kept, line)
		}
	}
	text := strings.Join(kept[max(0, len(kept)-lastLines):], "; ")
	if len(text) > lastBytes {
		text = "…" + strings.ToValidUTF8(text[len(text)-lastBytes:], "")
	}
	return text
}

// printable replaces what could move a terminal's cursor.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(line, "?"))
}

// readTail reads whole lines of up to size bytes from a file's end.
func readTail(path string, size int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-size)
	data, err := io.ReadAll(io.NewSectionReader(file, from, size))
	if err != nil || from == 0 {
		return data, err
	}
	_, whole, _ := bytes.Cut(data, []byte("\n"))
	return whole, nil
}
