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
	subject string // such as "runtime handler", for people
	value   string // what was found there
}

func (s signal) String() string {
	return fmt.Sprintf("%s %q (runtime %s)", s.subject, s.value, s.backend.name)
}

// Subjects of signals.
const (
	subjectSandbox   = "pod sandbox"
	subjectContainer = "container"
	subjectImage     = "image"
	subjectHandler   = "runtime handler"
)

// decision is where a call goes. A nil backend means that there is no signal.
type decision struct {
	backend *backend
	signals []signal // the strongest first
	// nowhere: a filter names objects of two backends, so that nothing can match.
	nowhere bool
}

// decide collects the signals of a request. Signals that disagree are the
// caller's mistake, except in a filter, where they match nothing.
func (v *view) decide(r *rule, request []byte) (decision, error) {
	c := collector{view: v, rule: r}
	for _, at := range r.idsAt {
		c.collect(at.field.Each(request, func(id []byte) error { return c.id(at.subject, id) }))
	}
	if r.imageAt != nil {
		c.collect(r.imageAt.Each(request, c.image))
	}
	for _, at := range r.podAt {
		c.collect(at.Entries(request, c.annotation))
	}
	for _, at := range r.handlerAt {
		c.collect(at.Each(request, c.handler))
	}
	if c.err != nil {
		return decision{}, asStatus(r, c.err)
	}
	return v.settle(r, c.signals)
}

// settle finds the one backend that all signals lead to.
func (v *view) settle(r *rule, signals []signal) (decision, error) {
	d := decision{signals: signals}
	if len(signals) == 0 {
		return d, nil
	}
	d.backend = signals[0].backend
	for _, s := range signals[1:] {
		switch {
		case s.backend == d.backend:
		case r.do == toEvery, r.do == toEveryStream:
			d.nowhere = true
		default:
			return decision{}, v.contradiction(r, signals[0], s)
		}
	}
	return d, nil
}

// contradiction is one sentence about two signals that disagree.
func (v *view) contradiction(r *rule, one, other signal) error {
	advice := "make both mean the same runtime or drop one"
	if one.subject == subjectImage || other.subject == subjectImage {
		var known []string
		for _, owner := range v.images {
			known = append(known, fmt.Sprintf("of runtime %s begin with %s/", owner.backend.name, owner.prefix))
		}
		advice = "names of images " + strings.Join(known, ", ") + "; all others are of runtime " + v.fallback.name
	}
	return status.Errorf(codes.InvalidArgument, "%s: %s contradicts %s: %s", r.method, other, one, advice)
}

// collector gathers the signals of one request.
type collector struct {
	view    *view
	rule    *rule
	signals []signal
	err     error // the first one
}

func (c *collector) collect(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *collector) add(b *backend, subject string, value []byte) {
	c.signals = append(c.signals, signal{backend: b, subject: subject, value: string(value)})
}

// id names its owner by its prefix; one without prefix is the default's.
func (c *collector) id(subject string, id []byte) error {
	if len(id) > 0 {
		c.add(c.view.ownerOf(id), subject, id)
	}
	return nil
}

// image names its owner by its prefix. Without one it is nobody's in particular,
// unless a sandbox is named too: there it must be the default's, so that a
// container image in a VM pod is refused.
func (c *collector) image(image []byte) error {
	b := c.view.imageOwner(image)
	if b == nil && len(c.rule.idsAt) > 0 {
		b = c.view.fallback
	}
	if b != nil && len(image) > 0 {
		c.add(b, subjectImage, image)
	}
	return nil
}

// annotation is a signal if the configuration knows its key; then it must also
// know its value.
func (c *collector) annotation(key, value []byte) error {
	owners, routing := c.view.annotations[string(key)]
	if !routing {
		return nil
	}
	b, known := owners[string(value)]
	if !known {
		return status.Errorf(codes.InvalidArgument, "%s: annotation %s has the value %q, which names no runtime of this node: use %s or drop the annotation",
			c.rule.method, key, value, strings.Join(slices.Sorted(maps.Keys(owners)), ", "))
	}
	c.add(b, "annotation "+string(key), value)
	return nil
}

// handler is a configured one, or else the default's. The default itself refuses
// those that it does not know, but with a code and words of its own; if it has
// told what it knows, the proxy refuses them clearly.
func (c *collector) handler(handler []byte) error {
	if len(handler) == 0 {
		return nil
	}
	b, known := c.view.handlers[string(handler)]
	if !known {
		b = c.view.fallback
		if offered := b.handlersOffered(); len(offered) > 0 && !slices.Contains(offered, string(handler)) {
			return status.Errorf(codes.InvalidArgument, "%s: runtime handler %q is neither one of runtime %s (%s) nor configured for another (%s): correct the pod's RuntimeClass",
				c.rule.method, handler, b.name, strings.Join(offered, ", "), strings.Join(slices.Sorted(maps.Keys(c.view.handlers)), ", "))
		}
	}
	c.add(b, subjectHandler, handler)
	return nil
}

// asStatus gives an error about the request itself its code.
func asStatus(r *rule, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Errorf(codes.InvalidArgument, "%s: read the request: %v", r.method, err)
}

// idPath is where an ID is and what it is the ID of.
type idPath struct {
	field   wire.Path
	subject string
}
