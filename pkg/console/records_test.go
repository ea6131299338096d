package console

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testTime = time.Date(2026, 11, 21, 9, 30, 0, 120_000_000, time.FixedZone("", 3600))

const testStamp = "2026-11-21T08:30:00.120000000Z"

func TestAppendRecords(t *testing.T) {
	long := strings.Repeat("x", maxContent)
	for name, test := range map[string]struct {
		raw      string
		flush    bool
		want     []string // tag, blank, content
		leftover string
	}{
		"nothing":                     {"", true, nil, ""},
		"a line":                      {"login\n", false, []string{"F login"}, ""},
		"empty lines":                 {"\n\r\n\n", false, []string{"F ", "F ", "F "}, ""},
		"line ends of terminals":      {"a\r\nb\r\r\nc\rd\r\n", false, []string{"F a", "F b", "F c\rd"}, ""},
		"an unfinished line waits":    {"a\nlogin: ", false, []string{"F a"}, "login: "},
		"a prompt":                    {"a\nlogin: ", true, []string{"F a", "P login: "}, ""},
		"a prompt before its newline": {"login: \r", true, []string{"P login: "}, "\r"},
		"only a carriage return":      {"\r", true, nil, "\r"},
		"a line of the greatest size": {long + "\r\n", false, []string{"F " + long}, ""},
		"a line too long":             {long + "y\n", false, []string{"P " + long, "F y"}, ""},
		"no split before it is known": {long, false, nil, long},
		"a long line without end":     {long + "y", false, []string{"P " + long}, "y"},
		"a split before line ends":    {long[1:] + "\r\r", false, []string{"P " + long[1:]}, "\r\r"},
		"carriage returns alone":      {strings.Repeat("\r", maxContent+1), false, []string{"P " + strings.Repeat("\r", maxContent)}, "\r"},
		"bytes that are no text":      {"\x00\xff\x1b[2J\u2028\n", false, []string{"F \x00\xff\x1b[2J\u2028"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var want strings.Builder
			for _, record := range test.want {
				want.WriteString(testStamp + " stdout " + record + "\n")
			}
			got, consumed := appendRecords(nil, []byte(test.raw), testTime, test.flush)
			if diff := cmp.Diff(want.String(), string(got)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.leftover, test.raw[consumed:]); diff != "" {
				t.Errorf("left over: %s", diff)
			}
		})
	}
}

var recordPattern = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout ([PF]) $`)

// decode is what kubelet does with a log: it joins partial records.
func decode(t *testing.T, log []byte) string {
	t.Helper()
	const header = len(testStamp) + len(fullTag)
	var plain bytes.Buffer
	for len(log) > 0 {
		end := bytes.IndexByte(log, '\n')
		if end < header || !recordPattern.Match(log[:header]) {
			t.Fatalf("not a record: %.80q", log)
		}
		if end-header > maxContent {
			t.Fatalf("a record has %d bytes of content", end-header)
		}
		plain.Write(log[header:end])
		if log[header-2] == 'F' {
			plain.WriteByte('\n')
		}
		log = log[end+1:]
	}
	return plain.String()
}

// plain is what must remain of raw output: line ends lose their carriage returns.
func plain(raw []byte) string {
	lines := strings.Split(string(raw), "\n")
	for i := range lines[:len(lines)-1] {
		lines[i] = strings.TrimRight(lines[i], "\r")
	}
	return strings.Join(lines, "\n")
}

// However output is cut into pieces, the log says the same.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("boot\r\nlogin: \r\rroot\n"), []byte{3, 200, 1})
	f.Add(bytes.Repeat([]byte("0123456789abcdef\r"), 3000), []byte{255, 255, 254})
	f.Fuzz(func(t *testing.T, raw, cuts []byte) {
		var log, held []byte
		rest := raw
		for i := 0; len(rest) > 0; i++ {
			size, flush := len(rest), false
			if i < len(cuts) {
				size, flush = min(size, int(cuts[i]>>1)*256), cuts[i]&1 == 1
			}
			held = append(held, rest[:size]...)
			rest = rest[size:]
			var consumed int
			log, consumed = appendRecords(log, held, testTime, flush)
			held = held[consumed:]
			if len(held) > maxContent {
				t.Fatalf("%d bytes are held back", len(held))
			}
			if i > len(cuts)+1 {
				break
			}
		}
		log, consumed := appendRecords(log, held, testTime, true)
		held = held[consumed:]
		if len(bytes.Trim(held, "\r")) > 0 {
			t.Fatalf("%q is held back in spite of flush", held)
		}
		if want, got := plain(raw), plain([]byte(decode(t, log)+string(held))); got != want {
			t.Errorf("%q became %q", want, got)
		}
	})
}
