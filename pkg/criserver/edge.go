package criserver

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Interceptors returns what every call passes through: one log line with its
// duration, and the translation of error classes to gRPC codes.
func Interceptors(logger *slog.Logger) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			started := time.Now()
			resp, err := handler(ctx, req)
			logCall(ctx, logger, info.FullMethod, started, err)
			return resp, toStatus(err)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			started := time.Now()
			err := handler(srv, stream)
			logCall(stream.Context(), logger, info.FullMethod, started, err)
			return toStatus(err)
		}),
	}
}

// logCall writes calls that change something at info, the ones that kubelet repeats
// every second at debug, and what went wrong always.
func logCall(ctx context.Context, logger *slog.Logger, fullMethod string, started time.Time, err error) {
	method := fullMethod[strings.LastIndexByte(fullMethod, '/')+1:]
	logger = logger.With("method", method, "took", time.Since(started).Round(time.Microsecond))
	switch {
	case err != nil && !errdefs.IsNotFound(err) && !errdefs.IsCanceled(err):
		logger.ErrorContext(ctx, "call failed", "err", err)
	case isQuery(method):
		logger.DebugContext(ctx, "call", "err", err)
	default:
		logger.InfoContext(ctx, "call", "err", err)
	}
}

func isQuery(method string) bool {
	for _, part := range []string{"List", "Status", "Stats", "Version", "Info", "Config", "Stream"} {
		if strings.Contains(method, part) {
			return true
		}
	}
	return false
}

// toStatus maps an error's class to its code. The class itself ends many messages
// ("…: not found"); next to the code it would only stutter.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	mapped := status.Convert(errgrpc.ToGRPC(err))
	text := strings.ReplaceAll(mapped.Message(), "\n", "; ") // of joined errors
	for _, class := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition,
		errdefs.ErrUnavailable, errdefs.ErrResourceExhausted, errdefs.ErrDataLoss, errdefs.ErrNotImplemented,
	} {
		if errors.Is(err, class) {
			text = strings.TrimSuffix(text, ": "+class.Error())
		}
	}
	return status.Error(mapped.Code(), text)
}
