package vmctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

// Streams are a person's end of a console or a command.
type Streams struct {
	In       io.Reader // nil: none
	Out, Err io.Writer
	// Terminal makes the other end's; Sizes, if not nil, has this one's.
	Terminal bool
	Sizes    remotecommand.TerminalSizeQueue
}

// ExitError is the end of a command by a code other than 0.
type ExitError struct{ Code int }

// Error implements error.
func (e ExitError) Error() string { return fmt.Sprintf("the command ended with exit code %d", e.Code) }

// Exec runs a command in a VM to its end. Errors: ExitError when the command ended so.
func (n *Node) Exec(ctx context.Context, vm VM, argv []string, s Streams) error {
	request := &runtimeapi.ExecRequest{ContainerId: vm.ContainerID, Cmd: argv, Tty: s.Terminal, Stdin: s.In != nil, Stdout: true, Stderr: !s.Terminal}
	answer, err := n.Runtime.Exec(ctx, request)
	if err != nil {
		return fmt.Errorf("run %s in VM %s: %w", argv[0], vm.Name(), Native(err))
	}
	err = s.run(ctx, answer.GetUrl())
	var exit utilexec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return ExitError{exit.ExitStatus()}
	}
	if err != nil {
		return fmt.Errorf("run %s in VM %s: %w", argv[0], vm.Name(), err)
	}
	return nil
}

// Attach connects the streams with a VM's serial console until the VM ends or Ctrl-]
// comes from In.
func (n *Node) Attach(ctx context.Context, vm VM, s Streams) error {
	s.Terminal = true // Ctrl-] is for terminals, and a serial line is nothing else
	answer, err := n.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: vm.ContainerID, Tty: true, Stdin: s.In != nil, Stdout: true})
	if err == nil {
		err = s.run(ctx, answer.GetUrl())
	}
	if err != nil {
		return fmt.Errorf("attach to the console of VM %s: %w", vm.Name(), Native(err))
	}
	return nil
}

// run carries the streams of a URL that vmruntime has given out.
func (s Streams) run(ctx context.Context, ticket string) error {
	at, err := url.Parse(ticket)
	if err != nil {
		return fmt.Errorf("vmruntime's URL for streams: %w: %w", errdefs.ErrDataLoss, err)
	}
	client, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: at.Host}, http.MethodPost, at)
	if err != nil {
		return fmt.Errorf("prepare streams: %w", err)
	}
	options := remotecommand.StreamOptions{Stdin: s.In, Stdout: s.Out, Tty: s.Terminal}
	if !s.Terminal {
		options.Stderr = s.Err
	}
	if s.Terminal && s.Sizes != nil {
		options.TerminalSizeQueue = s.Sizes
	}
	return client.StreamWithContext(ctx, options)
}
