package libvirttools

import (
	"context"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"
)

// defaultAgentTimeout holds for an AgentCommand whose context has no deadline.
const defaultAgentTimeout = 30 * time.Second

// AgentCommand sends one command, a JSON object, to the guest agent and returns its
// answer. libvirtd holds the agent's socket, so this is the only way to the agent.
// A guest without a running agent is errdefs.ErrUnavailable. The answer is the
// guest's: not to be trusted.
func (c *Client) AgentCommand(ctx context.Context, uuid, command string) (string, error) {
	timeout := agentTimeout(ctx)
	answer, err := act(ctx, c, func(conn *libvirt.Connect) (string, error) {
		return withDomain(conn, uuid, func(dom *libvirt.Domain) (string, error) {
			if _, err := c.markOf(dom); err != nil {
				return "", err
			}
			return dom.QemuAgentCommand(command, timeout, 0)
		})
	})
	if err != nil {
		return "", fmt.Errorf("guest agent of domain %s: %w", uuid, err)
	}
	return answer, nil
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
