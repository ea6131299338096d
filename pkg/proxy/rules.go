package proxy

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// What a rewritten field holds; see objectIDs, imageIDs and imageNames.
const (
	objectID wire.Kind = iota + 1
	imageID
	imageName
)

// rule is a row of the table made ready for use.
type rule struct {
	row
	full string // "/service/method"

	// Where the signals are; an empty path means that there is none of its sort.
	idsAt     []idPath
	imageAt   wire.Path   // name or ID in the ImageSpec
	podAt     []wire.Path // annotations, of the pod or copied into the ImageSpec
	handlerAt []wire.Path

	asks     protoreflect.MessageDescriptor
	request  *wire.Schema
	response *wire.Schema
	answer   protoreflect.MessageDescriptor
	shape    *wire.Shape       // of an answer
	listing  *rule             // toEveryStream: rule of the list method
	effect   func(*deed) error // what success does to the owner's lists; nil: nothing
}

// ruleset is the compiled table.
type ruleset struct {
	services []protoreflect.ServiceDescriptor
	rules    map[string]*rule // by full name
	kept     []*rule          // those of lists that survive a restart
}

// named is the rule of a method by its short name, nil if there is none.
func (s *ruleset) named(method string) *rule {
	for _, r := range s.rules {
		if r.method == method {
			return r
		}
	}
	return nil
}

// runtime is the rule of a method of the RuntimeService.
func (s *ruleset) runtime(method string) *rule { return s.rules["/runtime.v1.RuntimeService/"+method] }

// compileRules checks the table against the CRI's own description and compiles it.
func compileRules() (*ruleset, error) {
	file := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto
	kinds, err := collectKinds(file)
	if err != nil {
		return nil, err
	}
	set := &ruleset{rules: map[string]*rule{}}
	for name, rows := range map[protoreflect.Name][]row{"RuntimeService": runtimeRows(), "ImageService": imageRows()} {
		service := file.Services().ByName(name)
		set.services = append(set.services, service)
		for _, row := range rows {
			r, err := compileRule(service, row, kinds)
			if err != nil {
				return nil, fmt.Errorf("compile routing table, row %s: %w", row.method, err)
			}
			set.rules[r.full] = r
			if r.keep {
				set.kept = append(set.kept, r)
			}
		}
	}
	for _, r := range set.rules {
		if r.list != "" {
			service, _, _ := strings.Cut(r.full[1:], "/")
			r.listing = set.rules["/"+service+"/"+r.list]
		}
	}
	return set, nil
}

func compileRule(service protoreflect.ServiceDescriptor, row row, kinds wire.Kinds) (*rule, error) {
	method := service.Methods().ByName(protoreflect.Name(row.method))
	if method == nil {
		return nil, fmt.Errorf("service %s has no such method", service.FullName())
	}
	r := &rule{
		row:      row,
		full:     "/" + string(service.FullName()) + "/" + row.method,
		asks:     method.Input(),
		request:  wire.Compile(method.Input(), kinds),
		response: wire.Compile(method.Output(), kinds),
		answer:   method.Output(),
		shape:    wire.ShapeOf(method.Output()),
		effect:   effects()[row.method],
	}
	if r.merge == nil {
		r.merge = mergeLists
	}
	return r, r.compilePaths(method.Input())
}

// hasSignals tells whether requests say anything about their owner.
func (r *rule) hasSignals() bool {
	return len(r.idsAt)+len(r.imageAt)+len(r.podAt)+len(r.handlerAt) > 0
}

// isComplete tells whether a list request has no filter, so that its answer is
// all that the backend has. An empty filter, alone or with an empty ImageSpec in
// it, is none; any other content, even an empty message, selects something.
func (r *rule) isComplete(request *frame) bool {
	if len(r.idsAt)+len(r.imageAt) == 0 {
		return true
	}
	switch string(request.bytes()) {
	case "", "\x0a\x00":
		return true
	case "\x0a\x02\x0a\x00":
		return len(r.imageAt) > 0
	}
	return false
}

// compilePaths finds the signals in the request. An ImageSpec has three: its
// image, the pod's annotations, which kubelet copies into it, and a handler.
func (r *rule) compilePaths(request protoreflect.MessageDescriptor) (err error) {
	for dotted := range strings.FieldsSeq(r.ids) {
		at, err := wire.CompilePath(request, dotted)
		if err != nil {
			return err
		}
		subject := subjectContainer
		if strings.HasSuffix(dotted, "pod_sandbox_id") || strings.Contains(r.method, "Sandbox") {
			subject = subjectSandbox
		}
		r.idsAt = append(r.idsAt, idPath{field: at, subject: subject})
	}
	pods, handlers := strings.Fields(r.pod), strings.Fields(r.handler)
	if r.image != "" {
		if r.imageAt, err = wire.CompilePath(request, r.image+".image"); err != nil {
			return err
		}
		pods = append(pods, r.image+".annotations")
		handlers = append(handlers, r.image+".runtime_handler")
	}
	if r.podAt, err = compileAll(request, pods...); err != nil {
		return err
	}
	r.handlerAt, err = compileAll(request, handlers...)
	return err
}

func compileAll(request protoreflect.MessageDescriptor, dotted ...string) ([]wire.Path, error) {
	var paths []wire.Path
	for _, d := range dotted {
		path, err := wire.CompilePath(request, d)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// collectKinds expands the field lists of routes.go; every name in them must
// stand for at least one string field.
func collectKinds(file protoreflect.FileDescriptor) (wire.Kinds, error) {
	kinds := wire.Kinds{}
	for kind, names := range map[wire.Kind][]string{objectID: objectIDs(), imageID: imageIDs(), imageName: imageNames()} {
		for _, name := range names {
			found := 0
			for i := range file.Messages().Len() {
				message := file.Messages().Get(i)
				owner, field, _ := strings.Cut(name, ".")
				f := message.Fields().ByName(protoreflect.Name(field))
				if f == nil || f.Kind() != protoreflect.StringKind || owner != "*" && owner != string(message.Name()) {
					continue
				}
				kinds[f.FullName()] = kind
				found++
			}
			if found == 0 {
				return nil, fmt.Errorf("compile routing table: no string field %s in the CRI", name)
			}
		}
	}
	return kinds, nil
}
