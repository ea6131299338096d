package statushttp

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// maxPage bounds what is read of a page, in bytes.
const maxPage = 64 << 20

// Download is the progress of an image that is being fetched.
type Download struct {
	Name             string    `json:"name"`             // of the image
	Source           string    `json:"source"`           // where it comes from, without secrets
	DoneBytes        int64     `json:"doneBytes"`        // that are here, those of earlier attempts included
	TotalBytes       int64     `json:"totalBytes"`       // -1 when the server does not say
	BytesPerSecond   int64     `json:"bytesPerSecond"`   // since this attempt began
	RemainingSeconds int64     `json:"remainingSeconds"` // at that rate; -1 when it cannot be told
	StartedAt        time.Time `json:"startedAt"`
}

// Downloads is the page PathDownloads, the oldest first.
type Downloads struct {
	Downloads []Download `json:"downloads"`
}

// DownloadsPage shows what list returns.
func DownloadsPage(list func() []Download) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(Downloads{list()}) // a caller that has gone needs no answer
	})
}

// Client reads the pages at one address.
type Client struct {
	address string
	host    string
	http    http.Client
}

// NewClient returns a Client of an address as Serve takes it. It keeps no connections.
func NewClient(address string) *Client {
	c := &Client{address: address, host: address}
	transport := &http.Transport{DisableKeepAlives: true}
	if path, ok := SocketPath(address); ok {
		c.host = "localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	c.http.Transport = transport
	return c
}

// Get returns a page. Errors: errdefs.ErrUnavailable when nobody answers,
// errdefs.ErrNotFound when the daemon has no such page.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.host+path, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w: %w", c.address, path, errdefs.ErrInvalidArgument, err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w: %w", c.address, path, errdefs.ErrUnavailable, err)
	}
	defer func() { _ = response.Body.Close() }()
	page, err := io.ReadAll(io.LimitReader(response.Body, maxPage))
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", path, c.address, err)
	}
	switch response.StatusCode {
	case http.StatusOK:
		return page, nil
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s has no page %s: %w", c.address, path, errdefs.ErrNotFound)
	default:
		return nil, fmt.Errorf("%s answers %s for %s: %s: %w", c.address, response.Status, path, strings.TrimSpace(string(page)), errdefs.ErrUnavailable)
	}
}

// Downloads lists the images that are being fetched.
func (c *Client) Downloads(ctx context.Context) ([]Download, error) {
	page, err := c.Get(ctx, PathDownloads)
	if err != nil {
		return nil, err
	}
	var list Downloads
	if err := json.Unmarshal(page, &list); err != nil {
		return nil, fmt.Errorf("read downloads of %s: %w: %w", c.address, errdefs.ErrDataLoss, err)
	}
	return list.Downloads, nil
}
