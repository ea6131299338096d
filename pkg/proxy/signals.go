package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// signal is one hint in a request about the backend that it is meant for.
type signal struct {
	backend *backend
	subject string // such as "annotation", for people
	value   string // what was found there
}

func (s signal) String() string {
	return fmt.Sprintf("%s %q (runtime %s)", s.subject, s.value, s.backend.name)
}

// decision is where a call goes. A nil backend means: no signal at all.
type decision struct {
	backend *backend
	signals []signal // in the order of their strength
	// nowhere: a filter names objects of two backends, so that nothing can match.
	nowhere bool
}

// decide collects the signals of a request. Signals that disagree are the
// caller's mistake, except in a filter, where they match nothing.
func (v *view) decide(r *rule, request []byte) (decision, error) {
	var d decision
	collect := func(at []wire.Path, read func(wire.Path, []byte) ([]signal, error)) error {
		for _, path := range at {
			found, err := read(path, request)
			if err != nil {
				return err
			}
			d.signals = append(d.signals, found...)
		}
		return nil
	}
	var image []wire.Path
	if len(r.imageAt) > 0 {
		image = []wire.Path{r.imageAt}
	}
	for _, step := range []struct {
		at   []wire.Path
		read func(wire.Path, []byte) ([]signal, error)
	}{
		{r.idsAt, v.idSignals},
		{image, v.imageSignals(r)},
		{r.podAt, v.podSignals},
		{r.handlerAt, v.handlerSignals},
	} {
		if err := collect(step.at, step.read); err != nil {
			return decision{}, asStatus(r, err)
		}
	}
	return d, d.settle(r)
}

// settle finds the one backend that all signals lead to.
func (d *decision) settle(r *rule) error {
	for _, s := range d.signals {
		if d.backend == nil {
			d.backend = s.backend
		}
		if s.backend == d.backend {
			continue
		}
		if r.do == toEvery || r.do == toEveryStream {
			d.nowhere = true
			return nil
		}
		return status.Errorf(codes.InvalidArgument, "%s: %s contradicts %s: make both mean the same runtime or drop one",
			r.method, s, d.signals[0])
	}
	return nil
}

// idSignals: an ID names its owner by its prefix; one without prefix is the default's.
func (v *view) idSignals(at wire.Path, request []byte) ([]signal, error) {
	values, err := at.Values(request)
	if err != nil {
		return nil, err
	}
	var found []signal
	for _, id := range values {
		if len(id) == 0 {
			continue
		}
		found = append(found, signal{backend: v.ownerOf(id), subject: "ID", value: string(id)})
	}
	return found, nil
}

// imageSignals: a prefix names the owner. Without one an image is nobody's in
// particular, unless a sandbox is named too: there it must be the default's, so
// that a container image in a VM pod is refused.
func (v *view) imageSignals(r *rule) func(wire.Path, []byte) ([]signal, error) {
	return func(at wire.Path, request []byte) ([]signal, error) {
		image, err := at.Value(request)
		if err != nil || len(image) == 0 {
			return nil, err
		}
		if b := v.imageOwner(image); b != nil {
			return []signal{{backend: b, subject: "image", value: string(image)}}, nil
		}
		if len(r.idsAt) > 0 {
			return []signal{{backend: v.fallback, subject: "image", value: string(image)}}, nil
		}
		return nil, nil
	}
}

// podSignals: an annotation that the configuration knows must have a value that
// the configuration knows.
func (v *view) podSignals(at wire.Path, request []byte) ([]signal, error) {
	var found []signal
	var unknown error
	err := at.Entries(request, func(key, value []byte) {
		owners, routing := v.annotations[string(key)]
		if !routing {
			return
		}
		b, known := owners[string(value)]
		if !known {
			unknown = status.Errorf(codes.InvalidArgument, "annotation %s has the value %q, which names no runtime of this node: use %s or drop it",
				key, value, choices(owners))
			return
		}
		found = append(found, signal{backend: b, subject: "annotation " + string(key), value: string(value)})
	})
	if err != nil {
		return nil, err
	}
	return found, unknown
}

// handlerSignals: the handlers of the other backends are configured; all others
// are the default's, which itself refuses those it does not know.
func (v *view) handlerSignals(at wire.Path, request []byte) ([]signal, error) {
	handler, err := at.Value(request)
	if err != nil || len(handler) == 0 {
		return nil, err
	}
	b, known := v.handlers[string(handler)]
	if !known {
		b = v.fallback
	}
	return []signal{{backend: b, subject: "runtime handler", value: string(handler)}}, nil
}

// choices lists the values of an annotation for people.
func choices(owners map[string]*backend) string {
	return strings.Join(slices.Sorted(maps.Keys(owners)), ", ")
}

// asStatus gives an error about the request itself its code.
func asStatus(r *rule, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Errorf(codes.InvalidArgument, "%s: read the request: %v", r.method, err)
}
