package proxy

import (
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
)

// Explain tells where the proxy would send a request and why, without any
// backend. The question is a JSON object with the name of the CRI method and the
// request in protobuf's JSON form:
//
//	{"method": "RunPodSandbox", "request": {"runtime_handler": "vm"}}
//
// A request that the proxy would refuse is an error with the proxy's sentence.
func Explain(config *Config, question []byte) (string, error) {
	var q struct {
		Method  string          `json:"method"`
		Request json.RawMessage `json:"request"`
	}
	if err := json.Unmarshal(question, &q); err != nil {
		return "", fmt.Errorf("read the question: %w", err)
	}
	rules, err := compileRules()
	if err != nil {
		return "", err
	}
	v := paperView(config, rules)
	r := rules.named(q.Method)
	if r == nil {
		return fmt.Sprintf("%s goes to runtime %s at %s, byte for byte: the proxy does not know the method.\n", q.Method, v.fallback.name, v.fallback.socket), nil
	}
	request, err := encodeRequest(r, q.Request)
	if err != nil {
		return "", fmt.Errorf("read the request of %s: %w", q.Method, err)
	}
	d, err := v.decide(r, request)
	if err != nil {
		return "", fmt.Errorf("refused: %w", err)
	}
	return v.describe(r, d), nil
}

// paperView is a view whose backends are not connected.
func paperView(config *Config, rules *ruleset) *view {
	var backends []*backend
	for _, c := range config.Backends {
		backends = append(backends, &backend{identity: c.identity(), node: &node{rules: rules}, sources: map[string]*source{}})
	}
	return newView(config, backends)
}

func encodeRequest(r *rule, text json.RawMessage) ([]byte, error) {
	message := dynamicpb.NewMessage(r.asks)
	if len(text) > 0 {
		if err := protojson.Unmarshal(text, message); err != nil {
			return nil, err
		}
	}
	return proto.Marshal(message)
}

// describe puts a decision into words.
func (v *view) describe(r *rule, d decision) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	owner := d.backend
	if owner == nil {
		owner = v.fallback
	}
	switch {
	case d.nowhere:
		line("%s is answered with an empty list: its filter names objects of different runtimes.", r.method)
	case r.do == toOwner, d.backend != nil:
		line("%s goes to runtime %s at %s.", r.method, owner.name, owner.socket)
	case r.do == toEachBackend:
		line("%s goes to every runtime; the answer is that of %s.", r.method, v.fallback.name)
	default:
		line("%s goes to every runtime and the answers are merged:", r.method)
		for _, each := range v.backends {
			line("  %s at %s", each.name, each.socket)
		}
	}
	for _, s := range d.signals {
		line("  because of %s", s)
	}
	if len(d.signals) == 0 && r.do == toOwner {
		line("  because nothing in the request points to another runtime")
	}
	if !owner.isDefault {
		line("IDs lose the prefix %q in the request and get it in the answer.", owner.idPrefix)
	}
	return b.String()
}
