package console

import (
	"bytes"
	"time"
)

// The CRI log format: timestamp, stream, tag, content, newline. Tag P marks a
// record that the next one continues, F the last one of a line.
const (
	timestampFormat = "2006-01-02T15:04:05.000000000Z07:00"
	partialTag      = " stdout P "
	fullTag         = " stdout F "
)

// maxContent is where a long line is split, in bytes; containerd and CRI-O use
// the same.
const maxContent = 16 << 10

// appendRecords turns raw console output into CRI log records. It returns how
// many bytes of raw they stand for; the rest is an unfinished line shorter than
// maxContent. With flush the unfinished line becomes a partial record, except for
// carriage returns at its end: with the newline that may follow they are a line
// end, which is not part of the content. All other bytes are kept as they are.
func appendRecords(records, raw []byte, now time.Time, flush bool) (out []byte, consumed int) {
	stamp := now.UTC().Format(timestampFormat)
	for {
		content, size, tag := nextRecord(raw[consumed:], flush)
		if size == 0 {
			return records, consumed
		}
		records = append(records, stamp...)
		records = append(records, tag...)
		records = append(records, content...)
		records = append(records, '\n')
		consumed += size
	}
}

// nextRecord returns the content and tag of the first record in raw, and the size
// of what it stands for; size 0 means that there is none yet.
func nextRecord(raw []byte, flush bool) (content []byte, size int, tag string) {
	if end := bytes.IndexByte(raw, '\n'); end >= 0 {
		if line := trimReturns(raw[:end]); len(line) <= maxContent {
			return line, end + 1, fullTag
		}
	}
	if len(raw) > maxContent {
		chunk := trimReturns(raw[:maxContent])
		if len(chunk) == 0 { // nothing but carriage returns: no line end
			chunk = raw[:maxContent]
		}
		return chunk, len(chunk), partialTag
	}
	if !flush || bytes.IndexByte(raw, '\n') >= 0 {
		return nil, 0, ""
	}
	chunk := trimReturns(raw)
	return chunk, len(chunk), partialTag
}

func trimReturns(line []byte) []byte { return bytes.TrimRight(line, "\r") }
