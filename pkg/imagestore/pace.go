package imagestore

import "time"

// paceWindow is how many bytes a download brings before its pace counts: there is room
// to read them ahead, however slowly they are used.
const paceWindow = copyBuffers * copyBuffer

// pace tells which of the two is slower: the place that sends the bytes of a
// download, or what becomes of them here. It is used by one goroutine.
type pace struct {
	bytes          int64
	awaited, spent time.Duration // for the place; between its answers
	since          time.Time     // when the last answer came; zero before the first
}

// asks begins an exchange with the place.
func (p *pace) asks(now time.Time) {
	if !p.since.IsZero() {
		p.spent += now.Sub(p.since)
	}
	p.since = now
}

// answered ends an exchange that brought n bytes.
func (p *pace) answered(n int, now time.Time) {
	p.awaited += now.Sub(p.since)
	p.since = now
	p.bytes += int64(n)
}

// outrun tells that the place sends faster than its bytes can be used.
func (p *pace) outrun() bool { return p.bytes >= paceWindow && p.awaited < p.spent }
