package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAwaitSkipsLeftoversAndTakesNothingElse(t *testing.T) {
	for name, before := range map[string]string{
		"nothing":                 "",
		"lines":                   "\n\nlogin: \n",
		"line without an end":     "\x00\x01garbage",
		"hello of an earlier one": Hello("other"),
		"half a hello":            "AMBIPOD-HELLO 1 tok",
		"binary":                  strings.Repeat("\xff\x00", 10_000),
	} {
		t.Run(name, func(t *testing.T) {
			r := bufio.NewReader(strings.NewReader(before + Hello("token") + "rest"))
			if err := Await(r, Hello("token")); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(r); err != nil || string(rest) != "rest" {
				t.Errorf("left %q, %v", rest, err)
			}
		})
	}
}

// endless says the same for ever.
type endless struct{ read int }

func (e *endless) ReadByte() (byte, error) {
	e.read++
	return 'x', nil
}

func TestAwaitIsBounded(t *testing.T) {
	e := &endless{}
	if err := Await(e, Hello("token")); err == nil || e.read > maxStale {
		t.Errorf("%v after %d bytes, want an error after %d", err, e.read, maxStale)
	}
	if err := Await(bufio.NewReader(strings.NewReader(Hello("guess"))), Hello("token")); !errors.Is(err, io.EOF) {
		t.Errorf("hello with another token: %v", err)
	}
}

func TestSendAndReceive(t *testing.T) {
	var line bytes.Buffer
	sent := Request{Argv: []string{"sh", "-c", "echo 'a\nb' \x01"}, TTY: true}
	if err := Send(&line, sent); err != nil {
		t.Fatal(err)
	}
	if bytes.Count(line.Bytes(), []byte("\n")) != 1 {
		t.Errorf("it is no line: %q", line.String())
	}
	var got Request
	r := bufio.NewReader(&line)
	if err := Receive(r, &got); err != nil || strings.Join(got.Argv, "|") != strings.Join(sent.Argv, "|") || !got.TTY {
		t.Errorf("%+v %v", got, err)
	}
	if err := Receive(r, &got); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestReceiveRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		input string
		want  error
	}{
		"no end":   {`{"exitCode":1}`, io.ErrUnexpectedEOF},
		"too long": {strings.Repeat("x", MaxLine+1) + "\n", ErrTooLong},
		"endless":  {strings.Repeat("x", 2*MaxLine), ErrTooLong},
		"no JSON":  {"hello\n", nil},
		"overflow": {`{"exitCode":1e99}` + "\n", nil},
	} {
		var event Event
		err := Receive(bufio.NewReader(strings.NewReader(c.input)), &event)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzReceive(f *testing.F) {
	for _, seed := range []string{"{}\n", `{"error":"x"}` + "\n", "{", "\n", "\xff\n", `{"resize":{"rows":70000}}` + "\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(_ *testing.T, input []byte) {
		_ = Receive(bufio.NewReader(bytes.NewReader(input)), &Event{})
		_ = Receive(bufio.NewReader(bytes.NewReader(input)), &Control{})
		_ = Receive(bufio.NewReader(bytes.NewReader(input)), &Request{})
	})
}
