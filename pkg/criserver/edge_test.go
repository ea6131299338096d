package criserver

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestToStatus(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"class at the end", fmt.Errorf("image x: %w", errdefs.ErrNotFound), codes.NotFound, "image x"},
		{"class wrapped twice", fmt.Errorf("pull: %w", fmt.Errorf("no disk: %w", errdefs.ErrInvalidArgument)), codes.InvalidArgument, "pull: no disk"},
		{"no class", errors.New("boom"), codes.Unknown, "boom"},
		{"deadline", fmt.Errorf("libvirt: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "libvirt: context deadline exceeded"},
		{"cancelled", context.Canceled, codes.Canceled, "context canceled"},
		{"already a status", status.Error(codes.ResourceExhausted, "full"), codes.ResourceExhausted, "full"},
		{"not built", fmt.Errorf("use SSH: %w", errdefs.ErrNotImplemented), codes.Unimplemented, "use SSH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := status.Convert(toStatus(c.err))
			if got.Code() != c.code || got.Message() != c.text {
				t.Errorf("got %v %q, want %v %q", got.Code(), got.Message(), c.code, c.text)
			}
		})
	}
	if err := toStatus(nil); err != nil {
		t.Errorf("no error became %v", err)
	}
}
