package criserver

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/metadata"
)

// idBytes makes IDs of 64 hex digits, as containerd's are. No dashes: kubelet splits
// the names of log links at them.
const idBytes = 32

func randomHex(bytes int) string {
	raw := make([]byte, bytes)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	return hex.EncodeToString(raw)
}

// sandbox is a record together with its decoded configuration.
type sandbox struct {
	metadata.Sandbox
	config *runtimeapi.PodSandboxConfig
}

// container is a record together with its decoded configuration.
type container struct {
	metadata.Container
	config *runtimeapi.ContainerConfig
}

func (s *Server) findSandbox(id string) (sandbox, error) {
	record, err := s.Records.Sandboxes.Find(id)
	if err != nil {
		return sandbox{}, err
	}
	return decodeSandbox(record)
}

func (s *Server) findContainer(id string) (container, error) {
	record, err := s.Records.Containers.Find(id)
	if err != nil {
		return container{}, err
	}
	return decodeContainer(record)
}

// sandboxes returns all, or an error; see metadata.Table.List.
func (s *Server) sandboxes() ([]sandbox, error) {
	return decodeAll(s.Records.Sandboxes.List, decodeSandbox)
}

// containers returns all, or an error; see metadata.Table.List.
func (s *Server) containers() ([]container, error) {
	return decodeAll(s.Records.Containers.List, decodeContainer)
}

// containersOf returns the containers of one sandbox.
func (s *Server) containersOf(sandboxID string) ([]container, error) {
	all, err := s.containers()
	if err != nil {
		return nil, err
	}
	var own []container
	for _, c := range all {
		if c.SandboxID == sandboxID {
			own = append(own, c)
		}
	}
	return own, nil
}

func decodeAll[R, D any](list func() ([]R, error), decode func(R) (D, error)) ([]D, error) {
	records, err := list()
	if err != nil {
		return nil, err
	}
	decoded := make([]D, len(records))
	for i, record := range records {
		if decoded[i], err = decode(record); err != nil {
			return nil, err
		}
	}
	return decoded, nil
}

func decodeSandbox(record metadata.Sandbox) (sandbox, error) {
	config := &runtimeapi.PodSandboxConfig{}
	if err := proto.Unmarshal(record.Config, config); err != nil {
		return sandbox{}, fmt.Errorf("decode configuration of sandbox %s: %w", record.ID, err)
	}
	return sandbox{record, config}, nil
}

func decodeContainer(record metadata.Container) (container, error) {
	config := &runtimeapi.ContainerConfig{}
	if err := proto.Unmarshal(record.Config, config); err != nil {
		return container{}, fmt.Errorf("decode configuration of container %s: %w", record.ID, err)
	}
	return container{record, config}, nil
}
