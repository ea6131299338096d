package guestagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Channel is the virtio-serial port that the agent opens in the guest.
const Channel = "org.qemu.guest_agent.0"

// answerTimeout bounds the wait for the answer to one command. The agent answers at
// once, also while a program that it started runs.
const answerTimeout = 10 * time.Second

// maxAnswer bounds an answer, in bytes: libvirt carries strings up to 4 MiB.
const maxAnswer = 4 << 20

// maxQuote bounds what an error quotes of a guest's words.
const maxQuote = 300

// ErrNoAgent says that no agent answers in the guest. It is an
// errdefs.ErrFailedPrecondition.
var ErrNoAgent = fmt.Errorf("no guest agent: %w", errdefs.ErrFailedPrecondition)

// Commander carries one command, a JSON object, to the agent of a domain and
// returns the answer.
//
// Its errors: ErrNoAgent when no agent is connected or none answers,
// errdefs.ErrAborted with the agent's words when the agent refused the command,
// any other when the way to the guest is broken.
type Commander interface {
	AgentCommand(ctx context.Context, uuid, command string) (string, error)
}

// Classify gives the errors of a carrier, of which silent and refused are those that
// speak of the agent, the meaning that Commander promises.
func Classify(err, silent, refused error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, silent):
		return fmt.Errorf("%w: %w", ErrNoAgent, err)
	case errors.Is(err, refused):
		return fmt.Errorf("%w: %w", errdefs.ErrAborted, err)
	}
	return err
}

// Agent is the guest agent of one VM.
type Agent struct {
	commander Commander
	uuid      string
	name      string
}

// New returns the agent of the domain with that UUID; name is what errors call the
// VM.
func New(commander Commander, uuid, name string) *Agent {
	return &Agent{commander: commander, uuid: uuid, name: name}
}

// Ping returns nil if the agent answers.
func (a *Agent) Ping(ctx context.Context) error {
	return a.call(ctx, "guest-ping", nil, &struct{}{})
}

// request is a command as the agent reads it.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

// call sends one command and decodes its answer into result.
func (a *Agent) call(ctx context.Context, command string, arguments, result any) error {
	line, err := json.Marshal(request{command, arguments})
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	limited, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer, err := a.commander.AgentCommand(limited, a.uuid, string(line))
	if err != nil {
		return a.explain(ctx, command, err)
	}
	if err := decode(answer, result); err != nil {
		return fmt.Errorf("guest agent of %s answered %s with nonsense: %w: %w", a.name, command, err, errdefs.ErrDataLoss)
	}
	return nil
}

// explain makes one sentence of what went wrong. That the caller's own time is up is
// the caller's error.
func (a *Agent) explain(ctx context.Context, command string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s in %s: %w", command, a.name, ctx.Err())
	case errors.Is(err, ErrNoAgent), errors.Is(err, context.DeadlineExceeded):
		return noAgent(fmt.Sprintf("%s has no guest agent that answers: install and start qemu-guest-agent in the guest (channel %s), "+
			"or wait until the guest has booted", a.name, Channel))
	case errdefs.IsAborted(err):
		return fmt.Errorf("guest agent of %s refused %s: %s: %w", a.name, command, quote(err.Error()), errdefs.ErrAborted)
	}
	return fmt.Errorf("%s in %s: %w", command, a.name, err)
}

// noAgent is the whole sentence of an ErrNoAgent.
type noAgent string

func (e noAgent) Error() string { return string(e) }
func (noAgent) Unwrap() error   { return ErrNoAgent }

// decode reads the one JSON object that an answer may consist of.
func decode(answer string, result any) error {
	if len(answer) > maxAnswer {
		return fmt.Errorf("%d bytes are more than the %d of the longest honest answer", len(answer), maxAnswer)
	}
	var reply struct {
		Return json.RawMessage `json:"return"`
	}
	if err := json.Unmarshal([]byte(answer), &reply); err != nil {
		return fmt.Errorf("%s is not JSON: %w", quote(answer), err)
	}
	value := bytes.TrimSpace(reply.Return)
	if len(value) == 0 || value[0] != '{' {
		return fmt.Errorf("%s lacks the object \"return\"", quote(answer))
	}
	if err := json.Unmarshal(value, result); err != nil {
		return fmt.Errorf("%s: %w", quote(answer), err)
	}
	return nil
}

// quote makes a guest's words fit for a log: short, one line, printable.
func quote(text string) string {
	if len(text) > maxQuote {
		text = strings.ToValidUTF8(text[:maxQuote], "") + "…"
	}
	return fmt.Sprintf("%q", text)
}
