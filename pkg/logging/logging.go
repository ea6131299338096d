// Package logging connects the structured loggers that Ambipod's code is handed
// with glog, whose flags (-v, -logtostderr, -log_dir …) operators know.
//
// Every package logs through an injected *slog.Logger; only this one imports
// glog. Levels map as: Error and Warn to glog's severities, Info to info, Debug
// to info at -v=4; slog's levels have steps of 4, and each step below Debug asks
// for one more -v. Attributes are printed as key=value after the message.
package logging

import (
	"context"
	"log/slog"
	"strconv"
	"strings"

	"github.com/golang/glog"
)

const (
	// debugVerbosity is the glog -v level from which Debug records are written;
	// each levelStep below Debug asks for one more.
	debugVerbosity = 4
	levelStep      = 4
)

// stackDepth is the number of frames between glog and the line that logged:
// Handle, slog's log and slog's Info (or its siblings).
const stackDepth = 3

// New returns a logger that writes through glog. Flags must have been parsed.
func New() *slog.Logger { return slog.New(handler{}) }

// handler is a slog.Handler over glog; prefix holds attributes set by With,
// group the dotted name of the open group.
type handler struct {
	prefix string
	group  string
}

func (h handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || bool(glog.V(verbosity(level)))
}

// verbosity is the glog -v level from which records of a level are written.
func verbosity(level slog.Level) glog.Level {
	return debugVerbosity + glog.Level((slog.LevelDebug-level)/levelStep) //nolint:gosec // levels are small numbers
}

func (h handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	b.WriteString(h.prefix)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&b, h.group, a)
		return true
	})
	switch {
	case r.Level >= slog.LevelError:
		glog.ErrorDepth(stackDepth, b.String())
	case r.Level >= slog.LevelWarn:
		glog.WarningDepth(stackDepth, b.String())
	default:
		glog.InfoDepth(stackDepth, b.String())
	}
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	b.WriteString(h.prefix)
	for _, a := range attrs {
		appendAttr(&b, h.group, a)
	}
	h.prefix = b.String()
	return h
}

func (h handler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.group += name + "."
	}
	return h
}

func appendAttr(b *strings.Builder, group string, a slog.Attr) {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, member := range value.Group() {
			appendAttr(b, group, member)
		}
		return
	}
	if a.Equal(slog.Attr{}) {
		return
	}
	text := value.String()
	if text == "" || strings.ContainsAny(text, " \t\n\"=") {
		text = strconv.Quote(text)
	}
	b.WriteString(" " + group + a.Key + "=" + text)
}
