package criserver

import (
	"context"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListPodSandbox lists the sandboxes that a filter lets pass.
func (s *Server) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	all, err := s.sandboxes()
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.ListPodSandboxResponse{}
	for _, box := range all {
		if !matchesSandbox(req.GetFilter(), box) {
			continue
		}
		response.Items = append(response.Items, &runtimeapi.PodSandbox{
			Id:             box.ID,
			Metadata:       box.config.GetMetadata(),
			State:          sandboxState(box.State),
			CreatedAt:      box.CreatedAt.UnixNano(),
			Labels:         box.config.GetLabels(),
			Annotations:    box.config.GetAnnotations(),
			RuntimeHandler: box.Handler,
		})
	}
	return response, nil
}

func matchesSandbox(filter *runtimeapi.PodSandboxFilter, box sandbox) bool {
	return strings.HasPrefix(box.ID, filter.GetId()) &&
		(filter.GetState() == nil || filter.GetState().GetState() == sandboxState(box.State)) &&
		matchesLabels(filter.GetLabelSelector(), box.config.GetLabels())
}

// matchesLabels tells whether labels have every pair of a selector (CRI: "Multiple
// labels are ANDed").
func matchesLabels(selector, labels map[string]string) bool {
	for key, value := range selector {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}
