package proxy

import (
	"encoding/json"
	"fmt"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// Fields of runtime.v1.StatusResponse.
const (
	statusHandlers = protowire.Number(3)
	statusFeatures = protowire.Number(4)
)

// infoKey is where Status's verbose info tells about the other backends.
const infoKey = "ambipod.io/runtimes"

// mergeStatus adds to the default's status, which alone decides whether the node
// is ready, the runtime handlers of the others. What some runtime says it cannot
// do is no feature of the node. Asked for verbose, info has every other
// runtime's state.
func mergeStatus(m *merging) (*frame, error) {
	if len(m.parts) == 0 || !m.parts[0].backend.isDefault {
		return nil, grpcstatus.Errorf(codes.Unavailable, "%s: the default runtime has not answered", m.rule.method)
	}
	own := m.parts[0].reply.frame.bytes()
	merged, err := withoutClaimedHandlers(own, m.view)
	if err != nil {
		return nil, m.view.fallback.garbage(m.rule, err)
	}
	var request runtimeapi.StatusRequest
	if err := proto.Unmarshal(m.request.bytes(), &request); err != nil {
		return nil, asStatus(m.rule, err)
	}
	extra := &runtimeapi.StatusResponse{}
	reports := map[string]report{}
	for _, b := range m.view.backends[1:] {
		theirs, stale, err := m.statusOf(b)
		if err != nil {
			return nil, err
		}
		extra.RuntimeHandlers = append(extra.RuntimeHandlers, m.view.handlersOf(b, theirs)...)
		merged = denyFeatures(merged, theirs.GetFeatures())
		reports[b.name] = m.view.report(b, theirs, stale)
	}
	if request.GetVerbose() {
		text, err := json.Marshal(reports)
		if err != nil {
			return nil, fmt.Errorf("describe the runtimes: %w", err)
		}
		extra.Info = map[string]string{infoKey: string(text)}
	}
	tail, err := proto.Marshal(extra)
	if err != nil {
		return nil, fmt.Errorf("merge status: %w", err)
	}
	return frameOf(append(merged, tail...)), nil
}

// statusOf is another backend's part, nil if it has none.
func (m *merging) statusOf(b *backend) (theirs *runtimeapi.StatusResponse, stale bool, err error) {
	for _, part := range m.parts {
		if part.backend != b {
			continue
		}
		theirs = &runtimeapi.StatusResponse{}
		if err := proto.Unmarshal(part.reply.frame.bytes(), theirs); err != nil {
			return nil, false, b.garbage(m.rule, err)
		}
		return theirs, part.stale, nil
	}
	return nil, false, nil
}

// withoutClaimedHandlers drops from the default's status the handlers that the
// configuration gives to another backend: names must be unique.
func withoutClaimedHandlers(own []byte, v *view) ([]byte, error) {
	var kept []byte
	for len(own) > 0 {
		f, rest, err := wire.Next(own)
		if err != nil {
			return nil, err
		}
		own = rest
		if f.Number == statusHandlers {
			name, err := wire.Path{1}.Value(f.Value)
			if err != nil {
				return nil, err
			}
			if owner := v.handlers[string(name)]; owner != nil && owner != v.fallback {
				continue
			}
		}
		kept = append(kept, f.Raw...)
	}
	return kept, nil
}

// handlersOf are the handlers of a backend by which a pod can reach it.
func (v *view) handlersOf(b *backend, theirs *runtimeapi.StatusResponse) []*runtimeapi.RuntimeHandler {
	var reachable []*runtimeapi.RuntimeHandler
	for _, handler := range theirs.GetRuntimeHandlers() {
		if v.handlers[handler.GetName()] == b {
			reachable = append(reachable, handler)
		}
	}
	return reachable
}

// handlersOffered are the handlers with a name in the backend's last status, none
// if it has not told any.
func (b *backend) handlersOffered() []string {
	list, _, err := b.source(b.node.rules.runtime("Status")).memory.recall()
	if err != nil || list == nil {
		return nil
	}
	defer list.free()
	var known runtimeapi.StatusResponse
	if err := proto.Unmarshal(list.bytes(), &known); err != nil {
		b.log.Warn("runtime sends no readable status", "error", err)
		return nil
	}
	var names []string
	for _, handler := range known.GetRuntimeHandlers() {
		if handler.GetName() != "" {
			names = append(names, handler.GetName())
		}
	}
	return names
}

// denyFeatures switches off, in an encoded StatusResponse that has features,
// those that theirs lacks. A runtime that reports no features at all has no say.
func denyFeatures(merged []byte, theirs *runtimeapi.RuntimeFeatures) []byte {
	if theirs == nil {
		return merged
	}
	if own, err := (wire.Path{statusFeatures}).Value(merged); err != nil || own == nil {
		return merged
	}
	var denied []byte
	fields := theirs.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.Kind() == protoreflect.BoolKind && !theirs.ProtoReflect().Get(field).Bool() {
			denied = protowire.AppendTag(denied, field.Number(), protowire.VarintType)
			denied = protowire.AppendVarint(denied, 0)
		}
	}
	merged = protowire.AppendTag(merged, statusFeatures, protowire.BytesType)
	return protowire.AppendBytes(merged, denied)
}

// report is one backend's state in Status's verbose info.
type report struct {
	Socket     string            `json:"socket"`
	Connection string            `json:"connection"`
	Seen       bool              `json:"seen"`
	Stale      bool              `json:"stale"` // its part of Status is from memory
	Conditions map[string]string `json:"conditions,omitempty"`
	Info       map[string]string `json:"info,omitempty"`
	Problems   []string          `json:"problems,omitempty"`
}

func (v *view) report(b *backend, theirs *runtimeapi.StatusResponse, stale bool) report {
	r := report{Socket: b.socket, Connection: b.conn.GetState().String(), Seen: b.seen.Load(), Stale: stale, Info: theirs.GetInfo()}
	if !b.isReady() {
		r.Problems = append(r.Problems, "does not answer: "+b.whyAway())
	}
	if trouble := v.cgroupTrouble(b); trouble != "" {
		r.Problems = append(r.Problems, trouble)
	}
	for _, condition := range theirs.GetStatus().GetConditions() {
		if r.Conditions == nil {
			r.Conditions = map[string]string{}
		}
		text := "true"
		if !condition.GetStatus() {
			text = fmt.Sprintf("false: %s: %s", condition.GetReason(), condition.GetMessage())
		}
		r.Conditions[condition.GetType()] = text
	}
	return r
}
