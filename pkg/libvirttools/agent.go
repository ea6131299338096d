package libvirttools

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
)

// defaultAgentTimeout holds for an AgentCommand whose context has no deadline.
const defaultAgentTimeout = 30 * time.Second

// What AgentCommand says of the guest, as opposed to libvirtd.
var (
	// ErrAgentSilent says that no agent is connected, or that it does not answer.
	ErrAgentSilent = fmt.Errorf("guest agent is silent: %w", errdefs.ErrUnavailable)
	// ErrAgentRefused comes with the words of an agent that did not do as told.
	ErrAgentRefused = fmt.Errorf("guest agent refused: %w", errdefs.ErrFailedPrecondition)
)

// refusal is how libvirt introduces an agent's own words.
const refusal = "unable to execute QEMU agent command"

// AgentCommand sends one command, a JSON object, to the guest agent and returns its
// answer. libvirtd holds the agent's socket, so this is the only way to the agent.
// The answer is the guest's: not to be trusted. A command is sent at most once, also
// when the connection to libvirtd breaks: running a program twice is no repair.
//
// Agents have a connection of their own, since each that hangs keeps one of the few
// calls busy that libvirtd takes from a connection at once.
func (c *Client) AgentCommand(ctx context.Context, uuid, command string) (string, error) {
	if err := c.prepare(); err != nil {
		return "", err
	}
	timeout := agentTimeout(ctx)
	answer, err := callOnce(ctx, c.talks, func(conn *libvirt.Connect) (string, error) {
		return withDomain(conn, uuid, func(dom *libvirt.Domain) (string, error) {
			if _, err := c.markOf(dom); err != nil {
				return "", err
			}
			return dom.QemuAgentCommand(command, timeout, 0)
		})
	})
	if err != nil {
		return "", fmt.Errorf("guest agent of domain %s: %w", uuid, c.explainAgent(err))
	}
	return answer, nil
}

// explainAgent tells an agent's faults from libvirtd's.
func (c *Client) explainAgent(err error) error {
	explained := c.talks.explain(err)
	for _, code := range []libvirt.ErrorNumber{
		libvirt.ERR_AGENT_UNRESPONSIVE, libvirt.ERR_AGENT_UNSYNCED, libvirt.ERR_AGENT_COMMAND_TIMEOUT,
	} {
		if hasCode(err, code) {
			return fmt.Errorf("%w: %w", ErrAgentSilent, explained)
		}
	}
	var raw libvirt.Error
	if errors.As(err, &raw) && (raw.Code == libvirt.ERR_AGENT_COMMAND_FAILED || strings.Contains(raw.Message, refusal)) {
		return fmt.Errorf("%w: %w", ErrAgentRefused, explained)
	}
	return explained
}

// agentTimeout makes libvirtd give up when the caller does, in whole seconds.
func agentTimeout(ctx context.Context) libvirt.DomainQemuAgentCommandTimeout {
	left := defaultAgentTimeout
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	seconds := (left + time.Second - 1) / time.Second
	return libvirt.DomainQemuAgentCommandTimeout(max(1, seconds))
}
