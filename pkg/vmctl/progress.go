package vmctl

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ambipod/ambipod/pkg/statushttp"
)

const (
	redraw    = 250 * time.Millisecond // on a terminal
	newLines  = 2 * time.Second        // elsewhere
	barLength = 30
)

// Progress shows downloads: on a terminal as bars that are drawn anew, elsewhere as
// lines. Errors of its writer are ignored: whoever does not look any more misses
// nothing.
type Progress struct {
	to       io.Writer
	terminal bool
	drawn    int // lines of bars on the terminal
}

// NewProgress returns a Progress that writes to a terminal or something else.
func NewProgress(to io.Writer, terminal bool) *Progress {
	return &Progress{to: to, terminal: terminal}
}

func (p *Progress) interval() time.Duration {
	if p.terminal {
		return redraw
	}
	return newLines
}

func (p *Progress) update(downloads []statushttp.Download) {
	var text strings.Builder
	if p.terminal {
		text.WriteString(p.erase())
	}
	for _, d := range downloads {
		fmt.Fprintln(&text, bar(d))
	}
	if p.terminal {
		p.drawn = len(downloads)
	}
	_, _ = io.WriteString(p.to, text.String())
}

// erase takes the bars away.
func (p *Progress) erase() string {
	if p.drawn == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\x1b[J", p.drawn)
}

func (p *Progress) end() {
	_, _ = io.WriteString(p.to, p.erase())
	p.drawn = 0
}

// note tells why there is no progress to be seen.
func (p *Progress) note(err error) {
	p.end()
	_, _ = fmt.Fprintln(p.to, "no progress is shown:", err)
}

// bar is one line about a download.
func bar(d statushttp.Download) string {
	const percent = 100
	text := fmt.Sprintf("%s  %s", printable(d.Name), size(d.DoneBytes))
	if d.TotalBytes > 0 {
		done := min(d.DoneBytes, d.TotalBytes)
		full := int(done * barLength / d.TotalBytes)
		text = fmt.Sprintf("%s  [%s%s] %3d%%  %s of %s", printable(d.Name), strings.Repeat("#", full), strings.Repeat(".", barLength-full),
			done*percent/d.TotalBytes, size(d.DoneBytes), size(d.TotalBytes))
	}
	text += fmt.Sprintf("  %s/s", size(d.BytesPerSecond))
	if d.RemainingSeconds >= 0 {
		text += fmt.Sprintf("  %s left", time.Duration(d.RemainingSeconds)*time.Second)
	}
	return text
}
