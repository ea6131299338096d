package criserver

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statusTimeout bounds the look at libvirt and CNI: a hung libvirtd makes the runtime not
// ready, it must not make Status hang as well.
const statusTimeout = 3 * time.Second

// handlers are the runtime handlers that RunPodSandbox accepts; "" is the default.
var handlers = []string{"", "vm"}

// Status tells whether VMs can be run, by looking: at libvirt for RuntimeReady, at
// the CNI configuration for NetworkReady.
func (s *Server) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var networkErr error
	var looking sync.WaitGroup
	looking.Go(func() { networkErr = s.Network.Status(ctx) }) // beside libvirt, which may take all the time
	info, libvirtErr := s.Domains.Check(ctx)
	looking.Wait()
	response := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "LibvirtUnavailable", libvirtErr),
			condition(runtimeapi.NetworkReady, "CNINotReady", networkErr),
		}},
		Features: &runtimeapi.RuntimeFeatures{},
	}
	for _, name := range handlers {
		response.RuntimeHandlers = append(response.RuntimeHandlers,
			&runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{}})
	}
	if req.GetVerbose() {
		var err error
		response.Info, err = infoMap(map[string]any{
			"libvirt": info, "accelerator": s.Accel, "acceleratorReason": s.AccelReason, "layout": s.Layout,
			"libvirtURI": s.LibvirtURI, "libvirtLogs": s.DomainLogs, "statusAddress": s.StatusAddress,
			"abilities": s.abilities(ctx),
		})
		if err != nil {
			return nil, err
		}
	}
	return response, nil
}

// condition is true when there is no error, else the error says why.
func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	if err == nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// infoMap renders verbose information as the CRI wants it: JSON under each name.
func infoMap(values map[string]any) (map[string]string, error) {
	info := map[string]string{}
	for name, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode verbose information %s: %w", name, err)
		}
		info[name] = string(text)
	}
	return info, nil
}
