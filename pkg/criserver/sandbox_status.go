package criserver

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network"
)

// PodSandboxStatus tells what is known of a sandbox, with its VM's status. Whoever asks
// for all there is, as people do, is also told what the CNI plugins' verb CHECK says.
func (s *Server) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	box, err := s.findSandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	result, err := networkResult(box.Sandbox)
	if err != nil {
		return nil, err
	}
	vms, err := s.containersOf(box.ID)
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.PodSandboxStatusResponse{
		Status:             sandboxStatus(box, result),
		ContainersStatuses: s.statuses(vms),
		Timestamp:          time.Now().UnixNano(),
	}
	if req.GetVerbose() {
		response.Info, err = infoMap(map[string]any{
			"network": result, "networkCheck": s.networkCheck(ctx, box), "state": box.State, "config": box.config,
		})
		if err != nil {
			return nil, err
		}
	}
	return response, nil
}

// networkCheck is "passed", or what is wrong with a sandbox's network.
func (s *Server) networkCheck(ctx context.Context, box sandbox) string {
	if box.State != metadata.SandboxReady {
		return "the sandbox has no network any more"
	}
	if err := s.Network.Check(ctx, box.ID); err != nil {
		return err.Error()
	}
	return "passed"
}

func sandboxStatus(box sandbox, result *network.Result) *runtimeapi.PodSandboxStatus {
	status := &runtimeapi.PodSandboxStatus{
		Id:             box.ID,
		Metadata:       box.config.GetMetadata(),
		State:          sandboxState(box.State),
		CreatedAt:      box.CreatedAt.UnixNano(),
		Labels:         box.config.GetLabels(),
		Annotations:    box.config.GetAnnotations(),
		RuntimeHandler: box.Handler,
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{
			Namespaces: &runtimeapi.Namespace{Options: box.config.GetLinux().GetSecurityContext().GetNamespaceOptions()},
		},
	}
	for i, ip := range addresses(result) {
		if i == 0 {
			status.Network.Ip = ip
			continue
		}
		status.Network.AdditionalIps = append(status.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
	}
	return status
}

func sandboxState(state metadata.SandboxState) runtimeapi.PodSandboxState {
	if state == metadata.SandboxReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// networkResult returns what CNI gave a sandbox; nil before it has been.
func networkResult(record metadata.Sandbox) (*network.Result, error) {
	if len(record.Network) == 0 {
		return nil, nil //nolint:nilnil // no result yet is a state, not an error
	}
	result := &network.Result{}
	if err := json.Unmarshal(record.Network, result); err != nil {
		return nil, fmt.Errorf("decode network result of sandbox %s: %w", record.ID, err)
	}
	return result, nil
}

// addresses lists a pod's IPs as kubelet counts them: those of its first interface.
func addresses(result *network.Result) []string {
	if result == nil || len(result.Interfaces) == 0 {
		return nil
	}
	var ips []string
	for _, prefix := range result.Interfaces[0].Addresses {
		ips = append(ips, prefix.Addr().String())
	}
	return ips
}
