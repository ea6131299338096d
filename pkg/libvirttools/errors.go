package libvirttools

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
)

// maxMessage bounds what is taken over from libvirt's texts, which may hold all
// that QEMU wrote before it died.
const maxMessage = 1000

// classes gives libvirt's error codes the meaning that callers act on. Any other
// code is errdefs.ErrInternal.
var classes = map[libvirt.ErrorNumber]error{
	libvirt.ERR_NO_DOMAIN:             errdefs.ErrNotFound,
	libvirt.ERR_DOM_EXIST:             errdefs.ErrAlreadyExists,
	libvirt.ERR_OPERATION_INVALID:     errdefs.ErrFailedPrecondition,
	libvirt.ERR_OPERATION_TIMEOUT:     errdefs.ErrUnavailable,
	libvirt.ERR_OPERATION_ABORTED:     errdefs.ErrAborted,
	libvirt.ERR_RESOURCE_BUSY:         errdefs.ErrUnavailable,
	libvirt.ERR_AGENT_UNRESPONSIVE:    errdefs.ErrUnavailable,
	libvirt.ERR_AGENT_UNSYNCED:        errdefs.ErrUnavailable,
	libvirt.ERR_AGENT_COMMAND_TIMEOUT: errdefs.ErrUnavailable,
	libvirt.ERR_AGENT_COMMAND_FAILED:  errdefs.ErrFailedPrecondition,
	libvirt.ERR_XML_ERROR:             errdefs.ErrInvalidArgument,
	libvirt.ERR_XML_DETAIL:            errdefs.ErrInvalidArgument,
	libvirt.ERR_XML_INVALID_SCHEMA:    errdefs.ErrInvalidArgument,
	libvirt.ERR_INVALID_ARG:           errdefs.ErrInvalidArgument,
	libvirt.ERR_CONFIG_UNSUPPORTED:    errdefs.ErrInvalidArgument,
	libvirt.ERR_CPU_INCOMPATIBLE:      errdefs.ErrInvalidArgument,
	libvirt.ERR_NO_SUPPORT:            errdefs.ErrNotImplemented,
	libvirt.ERR_OPERATION_UNSUPPORTED: errdefs.ErrNotImplemented,
	libvirt.ERR_ARGUMENT_UNSUPPORTED:  errdefs.ErrNotImplemented,
	libvirt.ERR_NO_MEMORY:             errdefs.ErrResourceExhausted,
	libvirt.ERR_ACCESS_DENIED:         errdefs.ErrPermissionDenied,
	libvirt.ERR_OPERATION_DENIED:      errdefs.ErrPermissionDenied,
	libvirt.ERR_AUTH_FAILED:           errdefs.ErrPermissionDenied,
	libvirt.ERR_AUTH_CANCELLED:        errdefs.ErrPermissionDenied,
	libvirt.ERR_AUTH_UNAVAILABLE:      errdefs.ErrPermissionDenied,
	libvirt.ERR_NO_CONNECT:            errdefs.ErrUnavailable,
	libvirt.ERR_INVALID_CONN:          errdefs.ErrUnavailable,
	libvirt.ERR_RPC:                   errdefs.ErrUnavailable,
}

// hasCode says whether err comes from libvirt with that code.
func hasCode(err error, code libvirt.ErrorNumber) bool {
	var e libvirt.Error
	return errors.As(err, &e) && e.Code == code
}

// isBroken says whether the connection, rather than the call, failed. libvirt's
// client reports a socket that closed as an internal error of its RPC part.
func isBroken(err error) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case libvirt.ERR_INVALID_CONN, libvirt.ERR_RPC:
		return true
	case libvirt.ERR_INTERNAL_ERROR, libvirt.ERR_SYSTEM_ERROR:
		return e.Domain == libvirt.FROM_RPC
	default:
		return false
	}
}

// explain gives an error from libvirt its class and one line of text. Others,
// among them those it has been given before, pass.
func (l *link) explain(err error) error {
	var e libvirt.Error
	if !errors.As(err, &e) || isExplained(err) {
		return err
	}
	if isBroken(err) || e.Code == libvirt.ERR_NO_CONNECT || e.Code == libvirt.ERR_SYSTEM_ERROR && e.Domain == libvirt.FROM_REMOTE {
		return &explained{e, errdefs.ErrUnavailable, fmt.Sprintf(
			"libvirt at %s cannot be reached (%s), start libvirtd or correct the URI", l.uri, oneLine(e.Message))}
	}
	class, known := classes[e.Code]
	if !known {
		class = errdefs.ErrInternal
	}
	return &explained{e, class, "libvirt: " + oneLine(e.Message)}
}

func isExplained(err error) bool { return errors.As(err, new(*explained)) }

// explained is an error of libvirt's with its class.
type explained struct {
	cause libvirt.Error
	class error
	text  string
}

// Error is the text alone: the class is for programs, and would only repeat it.
func (e *explained) Error() string { return e.text }

// Unwrap gives errors.Is the class and errors.As libvirt's own error.
func (e *explained) Unwrap() []error { return []error{e.class, e.cause} }

// oneLine makes a sentence of a text that may have many lines.
func oneLine(text string) string {
	line := strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(line) > maxMessage {
		line = strings.ToValidUTF8(line[:maxMessage], "") + "…"
	}
	return line
}
