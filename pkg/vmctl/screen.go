package vmctl

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/libvirttools"
)

// maxSide bounds the pictures that are converted, in pixels.
const maxSide = 16384

// Screenshot returns what a VM's screen shows, as PNG.
func (n *Node) Screenshot(ctx context.Context, vm VM) ([]byte, error) {
	domains, err := n.Domains(ctx)
	if err != nil {
		return nil, err
	}
	picture, err := domains.Screenshot(ctx, vm.DomainUUID)
	if err != nil {
		return nil, explainScreen(vm, err)
	}
	return toPNG(picture)
}

func explainScreen(vm VM, err error) error {
	if errors.Is(err, libvirttools.ErrNoScreen) {
		return fmt.Errorf(`VM %s has no screen, give its pod the annotation vm.ambipod.io/screen: "true" and create it anew: %w`, vm.Name(), errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("screen of VM %s: %w", vm.Name(), err)
}

// toPNG converts what older QEMUs write.
func toPNG(picture libvirttools.Picture) ([]byte, error) {
	if bytes.HasPrefix(picture.Data, []byte("\x89PNG\r\n\x1a\n")) {
		return picture.Data, nil
	}
	pixels, err := readPPM(picture.Data)
	if err != nil {
		return nil, fmt.Errorf("the screenshot is neither PNG nor PPM (libvirt calls it %s): %w", picture.MIME, err)
	}
	var out bytes.Buffer
	if err := png.Encode(&out, pixels); err != nil {
		return nil, fmt.Errorf("encode the screenshot: %w", err)
	}
	return out.Bytes(), nil
}

// readPPM reads a binary portable pixmap of 8 bits a colour.
func readPPM(data []byte) (image.Image, error) {
	const colours = 3
	r := bufio.NewReader(bytes.NewReader(data))
	var width, height, most int
	var end byte
	if _, err := fmt.Fscanf(r, "P6\n%d %d\n%d%c", &width, &height, &most, &end); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrDataLoss, err)
	}
	if most != 0xff || width <= 0 || height <= 0 || width > maxSide || height > maxSide {
		return nil, fmt.Errorf("a picture of %d × %d points with %d shades: %w", width, height, most, errdefs.ErrDataLoss)
	}
	out := image.NewNRGBA(image.Rect(0, 0, width, height))
	line := make([]byte, colours*width)
	for y := range height {
		if _, err := io.ReadFull(r, line); err != nil {
			return nil, fmt.Errorf("line %d of %d: %w: %w", y, height, errdefs.ErrDataLoss, err)
		}
		for x := range width {
			p := line[colours*x:]
			out.SetNRGBA(x, y, color.NRGBA{R: p[0], G: p[1], B: p[2], A: 0xff})
		}
	}
	return out, nil
}

// ServeScreen connects everybody who comes to the listener with a VM's screen until the
// context ends, which is no error. It calls ready once it has seen that there is a
// screen, and complain for connections that fail.
func (n *Node) ServeScreen(ctx context.Context, vm VM, listener net.Listener, ready func(), complain func(error)) error {
	domains, err := n.Domains(ctx)
	if err != nil {
		return err
	}
	open := func(ctx context.Context) (*os.File, error) { return domains.OpenScreen(ctx, vm.DomainUUID) }
	probe, err := open(ctx)
	if err != nil {
		return explainScreen(vm, err)
	}
	if err := probe.Close(); err != nil {
		return err
	}
	ready()
	return relay(ctx, listener, open, func(err error) { complain(explainScreen(vm, err)) })
}

// relay connects each client with a stream socket of its own.
func relay(ctx context.Context, listener net.Listener, open func(context.Context) (*os.File, error), complain func(error)) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	for {
		client, err := listener.Accept()
		if ctx.Err() != nil {
			return nil // the end was asked for
		}
		if err != nil {
			return fmt.Errorf("wait for viewers: %w", err)
		}
		clients.Go(func() {
			if err := relayOne(ctx, client, open); err != nil && ctx.Err() == nil {
				complain(err)
			}
		})
	}
}

func relayOne(ctx context.Context, client net.Conn, open func(context.Context) (*os.File, error)) error {
	defer func() { _ = client.Close() }()
	file, err := open(ctx)
	if err != nil {
		return err
	}
	screen, err := net.FileConn(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("use the screen's socket: %w", err)
	}
	defer func() { _ = screen.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(client.Close(), screen.Close()) })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(screen, client)
		_ = screen.Close() // VNC has no half-closed connections
	}()
	_, _ = io.Copy(client, screen)
	_ = client.Close()
	<-done
	return nil
}
