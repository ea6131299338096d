package libvirttools

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
)

// ErrNoScreen says that a domain was built without Domain.Screen.
var ErrNoScreen = fmt.Errorf("the VM has no screen: %w", errdefs.ErrFailedPrecondition)

// maxPicture bounds a screenshot, in bytes; it comes from QEMU.
const maxPicture = 64 << 20

// OpenScreen connects to the screen of a running domain that was built with one.
// The file is a stream socket that speaks VNC's protocol; its other end is QEMU, and
// thus not to be trusted. The caller closes it. Errors: ErrNoScreen.
func (c *Client) OpenScreen(ctx context.Context, uuid string) (*os.File, error) {
	file, err := act(ctx, c, func(conn *libvirt.Connect) (*os.File, error) {
		return withDomain(conn, uuid, func(dom *libvirt.Domain) (*os.File, error) {
			if err := c.checkScreen(dom); err != nil {
				return nil, err
			}
			// Whoever may call this may see the screen: QEMU need not ask again.
			return dom.OpenGraphicsFD(0, libvirt.DOMAIN_OPEN_GRAPHICS_SKIPAUTH)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("open screen of domain %s: %w", uuid, err)
	}
	return file, nil
}

// Picture is a screenshot in one of the formats that QEMU writes.
type Picture struct {
	MIME string // "image/png" or, of older QEMUs, "image/x-portable-pixmap"
	Data []byte
}

// Screenshot returns what a running domain's screen shows. Errors: ErrNoScreen.
func (c *Client) Screenshot(ctx context.Context, uuid string) (Picture, error) {
	picture, err := act(ctx, c, func(conn *libvirt.Connect) (Picture, error) {
		return withDomain(conn, uuid, func(dom *libvirt.Domain) (Picture, error) {
			if err := c.checkScreen(dom); err != nil {
				return Picture{}, err
			}
			return screenshot(conn, dom)
		})
	})
	if err != nil {
		return Picture{}, fmt.Errorf("take screenshot of domain %s: %w", uuid, err)
	}
	return picture, nil
}

func screenshot(conn *libvirt.Connect, dom *libvirt.Domain) (Picture, error) {
	stream, err := conn.NewStream(0)
	if err != nil {
		return Picture{}, err
	}
	defer func() { _ = stream.Free() }()
	kind, err := dom.Screenshot(stream, 0, 0)
	if err != nil {
		return Picture{}, err
	}
	data, err := io.ReadAll(io.LimitReader(streamReader{stream}, maxPicture+1))
	if err == nil && len(data) > maxPicture {
		err = fmt.Errorf("the picture has more than %d bytes: %w", maxPicture, errdefs.ErrDataLoss)
	}
	if err != nil {
		_ = stream.Abort()
		return Picture{}, err
	}
	return Picture{MIME: kind, Data: data}, stream.Finish()
}

// streamReader makes the end of a stream an io.EOF.
type streamReader struct{ stream *libvirt.Stream }

func (r streamReader) Read(p []byte) (int, error) {
	n, err := r.stream.Recv(p)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// checkScreen says whether a domain is ours and has a screen.
func (c *Client) checkScreen(dom *libvirt.Domain) error {
	if _, err := c.markOf(dom); err != nil {
		return err
	}
	described, err := describe(dom)
	if err != nil {
		return err
	}
	if described.Devices == nil || len(described.Devices.Graphics) == 0 {
		return ErrNoScreen
	}
	return nil
}
