package guestagent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is an agent that gives prepared answers and keeps what it was asked.
type script struct {
	mu      sync.Mutex
	answers []any // a string, an error, or a function of the context
	asked   []string
}

func (s *script) AgentCommand(ctx context.Context, _, command string) (string, error) {
	s.mu.Lock()
	s.asked = append(s.asked, command)
	if len(s.answers) == 0 {
		s.mu.Unlock()
		return "", fmt.Errorf("unexpected command %s", command)
	}
	next := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	s.mu.Unlock()
	switch answer := next.(type) {
	case error:
		return "", answer
	case func(context.Context) (string, error):
		return answer(ctx)
	default:
		return fmt.Sprint(answer), nil
	}
}

func (s *script) agent() *Agent { return New(s, "uuid", "VM of pod a/b") }

func silent(ctx context.Context) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

func b64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func TestRunSaysWhatAndReturnsHow(t *testing.T) {
	s := &script{answers: []any{
		`{"return":{"pid":7}}`,
		`{"return":{"exited":false}}`,
		`{"return":{"exited":true,"exitcode":3,"out-data":"` + b64("out\x00\xff") + `","err-data":"` + b64("err") + `","out-truncated":true}}`,
	}}
	result, err := s.agent().Run(t.Context(), Command{Argv: []string{"/bin/cat", "-n", "a b"}, Env: []string{"X=1"}, Stdin: []byte("in")})
	if err != nil {
		t.Fatal(err)
	}
	want := Result{ExitCode: 3, Stdout: []byte("out\x00\xff"), Stderr: []byte("err"), Truncated: true}
	if diff := cmp.Diff(want, result); diff != "" {
		t.Errorf("result differs (-want +got):\n%s", diff)
	}
	wantAsked := []string{
		`{"execute":"guest-exec","arguments":{"path":"/bin/cat","arg":["-n","a b"],"env":["X=1"],"input-data":"` + b64("in") + `","capture-output":true}}`,
		`{"execute":"guest-exec-status","arguments":{"pid":7}}`,
		`{"execute":"guest-exec-status","arguments":{"pid":7}}`,
	}
	if diff := cmp.Diff(wantAsked, s.asked); diff != "" {
		t.Errorf("commands differ (-want +got):\n%s", diff)
	}
}

func TestSignalBecomesAShellsExitCode(t *testing.T) {
	s := &script{answers: []any{`{"return":{"pid":7}}`, `{"return":{"exited":true,"signal":9}}`}}
	result, err := s.agent().Run(t.Context(), Command{Argv: []string{"x"}})
	if err != nil || result.ExitCode != 137 {
		t.Errorf("%d %v, want 137", result.ExitCode, err)
	}
}

// TestLies gives answers that no honest agent gives; none may be believed.
func TestLies(t *testing.T) {
	started := `{"return":{"pid":7}}`
	for name, answers := range map[string][]any{
		"no JSON":                 {"hello"},
		"half an object":          {`{"return":{"pid":`},
		"nothing":                 {""},
		"two objects":             {started + started},
		"an array":                {`[{"return":{"pid":1}}]`},
		"no return":               {`{"error":{"class":"GenericError"}}`},
		"return is null":          {`{"return":null}`},
		"return is a number":      {`{"return":1}`},
		"PID is a text":           {`{"return":{"pid":"7"}}`},
		"PID is negative":         {`{"return":{"pid":-1}}`},
		"PID is zero":             {`{"return":{"pid":0}}`},
		"PID is huge":             {`{"return":{"pid":1e300}}`},
		"longer than all honest":  {`{"return":{"pid":1}}` + strings.Repeat(" ", maxAnswer)},
		"deep":                    {strings.Repeat(`{"return":`, 100_000)},
		"ended without a code":    {started, `{"return":{"exited":true}}`},
		"exit code too large":     {started, `{"return":{"exited":true,"exitcode":256}}`},
		"exit code negative":      {started, `{"return":{"exited":true,"exitcode":-1}}`},
		"signal too large":        {started, `{"return":{"exited":true,"signal":128}}`},
		"output is not base64":    {started, `{"return":{"exited":true,"exitcode":0,"out-data":"***"}}`},
		"output is an object":     {started, `{"return":{"exited":true,"exitcode":0,"out-data":{}}}`},
		"exited is a text":        {started, `{"return":{"exited":"yes"}}`},
		"invalid UTF-8 and noise": {"\xff\xfe\x00{\"return\":\x1b[2J"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{answers: answers}
			_, err := s.agent().Run(t.Context(), Command{Argv: []string{"x"}})
			if !errdefs.IsDataLoss(err) {
				t.Fatalf("%v, want ErrDataLoss", err)
			}
			if text := err.Error(); len(text) > 1000 || !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\x1b\n") {
				t.Errorf("the error passes the guest's bytes on: %q", text)
			}
		})
	}
}

func TestGuestWithoutAgentIsOneSentence(t *testing.T) {
	s := &script{answers: []any{fmt.Errorf("libvirt says so: %w", ErrNoAgent)}}
	_, err := s.agent().Run(t.Context(), Command{Argv: []string{"x"}})
	if !errors.Is(err, ErrNoAgent) || !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("%v, want ErrNoAgent, an ErrFailedPrecondition", err)
	}
	for _, part := range []string{"VM of pod a/b", "qemu-guest-agent", Channel} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %s", err, part)
		}
	}
}

func TestRefusalCarriesTheAgentsWords(t *testing.T) {
	s := &script{answers: []any{fmt.Errorf("Command guest-exec has been disabled: %w", errdefs.ErrAborted)}}
	_, err := s.agent().Run(t.Context(), Command{Argv: []string{"x"}})
	if !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "has been disabled") {
		t.Errorf("%v", err)
	}
}

func TestBrokenWayIsNotTheGuestsFault(t *testing.T) {
	s := &script{answers: []any{fmt.Errorf("libvirtd is gone: %w", errdefs.ErrUnavailable)}}
	if err := s.agent().Ping(t.Context()); !errdefs.IsUnavailable(err) || errors.Is(err, ErrNoAgent) {
		t.Errorf("%v, want ErrUnavailable and not ErrNoAgent", err)
	}
}

func TestClassify(t *testing.T) {
	noAnswer, refused, other := errors.New("silent"), errors.New("refused"), errors.New("other")
	for _, c := range []struct{ in, class error }{
		{fmt.Errorf("a: %w", noAnswer), ErrNoAgent},
		{fmt.Errorf("b: %w", refused), errdefs.ErrAborted},
		{other, other},
	} {
		if got := Classify(c.in, noAnswer, refused); !errors.Is(got, c.class) || !errors.Is(got, c.in) {
			t.Errorf("Classify(%v) = %v, want class %v", c.in, got, c.class)
		}
	}
	if err := Classify(nil, noAnswer, refused); err != nil {
		t.Error(err)
	}
}

func TestSilentAgentCostsNoMoreThanTheCallersTime(t *testing.T) {
	s := &script{answers: []any{silent}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.agent().Ping(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoAgent) {
		t.Errorf("%v, want the caller's own DeadlineExceeded", err)
	}
}

func TestProgramOfACallerWhoGivesUpIsKilled(t *testing.T) {
	ended := false
	s := &script{answers: []any{
		`{"return":{"pid":7}}`,
		`{"return":{"exited":false}}`,
	}}
	ctx, cancel := context.WithCancel(t.Context())
	s.answers[1] = func(context.Context) (string, error) {
		if ended {
			return `{"return":{"exited":true,"signal":9}}`, nil
		}
		var last request
		if err := json.Unmarshal([]byte(s.asked[len(s.asked)-1]), &last); err != nil {
			return "", err
		}
		if last.Execute == "guest-exec" { // the killer
			ended = true
			return `{"return":{"pid":8}}`, nil
		}
		cancel()
		return `{"return":{"exited":false}}`, nil
	}
	_, err := s.agent().Run(ctx, Command{Argv: []string{"x"}})
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "goes on running") {
		t.Errorf("%v, want Canceled alone", err)
	}
	var killer struct {
		Arguments struct {
			Path string
			Arg  []string
		}
	}
	for _, line := range s.asked {
		if strings.Contains(line, "/bin/sh") {
			if err := json.Unmarshal([]byte(line), &killer); err != nil {
				t.Fatal(err)
			}
		}
	}
	if arg := killer.Arguments.Arg; len(arg) != 3 || arg[2] != "7" {
		t.Errorf("killed with %q, want the process 7", arg)
	}
}

func TestProgramThatCannotBeKilledIsTold(t *testing.T) {
	s := &script{}
	ctx, cancel := context.WithCancel(t.Context())
	s.answers = []any{
		`{"return":{"pid":7}}`,
		func(context.Context) (string, error) { cancel(); return `{"return":{"exited":false}}`, nil },
		fmt.Errorf("no shell: %w", errdefs.ErrAborted),
	}
	_, err := s.agent().Run(ctx, Command{Argv: []string{"x"}})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "goes on running") {
		t.Errorf("%v", err)
	}
}

func TestCommandIsChecked(t *testing.T) {
	for name, c := range map[string]Command{
		"no program":   {},
		"empty name":   {Argv: []string{""}},
		"input is big": {Argv: []string{"cat"}, Stdin: make([]byte, MaxInput+1)},
	} {
		s := &script{}
		if _, err := s.agent().Run(t.Context(), c); !errdefs.IsInvalidArgument(err) || len(s.asked) > 0 {
			t.Errorf("%s: %v, asked %q", name, err, s.asked)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"return":{"exited":true,"exitcode":0,"out-data":"aGk="}}`, `{"return":{"exited":true,"signal":9}}`,
		`{"return":{}}`, `{"error":{}}`, ``, `{"return":{"exited":1}}`, "\xff",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, answer string) {
		s := &script{answers: []any{answer}}
		result, ended, err := s.agent().Status(t.Context(), 1)
		if err == nil && ended && (result.ExitCode < 0 || result.ExitCode > 255) {
			t.Errorf("exit code %d", result.ExitCode)
		}
		if len(result.Stdout)+len(result.Stderr) > len(answer) {
			t.Error("more output than was sent")
		}
	})
}
