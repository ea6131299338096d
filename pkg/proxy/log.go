package proxy

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/ambipod/ambipod/pkg/redact"
)

// Levels of the request log: calls that change something or fail, then those
// that only look, which kubelet makes every second, then all with their requests.
// pkg/logging shows them at -v=4, 5 and 6.
const (
	levelDeeds    = slog.LevelDebug
	levelLooks    = slog.LevelDebug - 4
	levelRequests = slog.LevelDebug - 8
)

// logCall writes one line about a call, as far as the verbosity asks for it.
func (p *Proxy) logCall(ctx context.Context, r *rule, request *frame, where string, started time.Time, err error) {
	level := levelDeeds
	if err == nil && r.looks() {
		level = levelLooks
	}
	if !p.log.Enabled(ctx, level) {
		return
	}
	attributes := []any{"method", r.method, "runtime", where, "took", time.Since(started).Round(time.Microsecond)}
	if err != nil {
		attributes = append(attributes, "code", status.Code(err), "error", status.Convert(err).Message())
	}
	if p.log.Enabled(ctx, levelRequests) {
		attributes = append(attributes, "request", redacted(r, request.bytes()))
	}
	p.log.Log(ctx, level, "call", attributes...)
}

// looks tells that a method changes nothing.
func (r *rule) looks() bool {
	if r.do != toOwner {
		return r.do != toEachBackend
	}
	for _, suffix := range []string{"Version", "Status", "Stats", "RuntimeConfig"} {
		if strings.HasSuffix(r.method, suffix) {
			return true
		}
	}
	return false
}

// redacted is a request as text, without what may be secret.
func redacted(r *rule, request []byte) string {
	message := dynamicpb.NewMessage(r.asks)
	if err := proto.Unmarshal(request, message); err != nil {
		return "unreadable: " + err.Error()
	}
	redact.Message(message)
	return strings.TrimSpace(prototext.MarshalOptions{}.Format(message))
}
