package proxy

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// listItems is the number of the field that holds the items, in every list
// answer of the CRI; routes_test.go checks that.
const listItems = protowire.Number(1)

// filterKnown applies a list request's filter to remembered items, as the silent
// backend would have done.
func filterKnown(r *rule, request, known []byte) ([]byte, error) {
	matches, err := matcher(r, request)
	if err != nil {
		return nil, err
	}
	var kept []byte
	err = wire.Each(known, listItems, func(item []byte) error {
		ok, err := matches(item)
		if err == nil && ok {
			kept = protowire.AppendTag(kept, listItems, protowire.BytesType)
			kept = protowire.AppendBytes(kept, item)
		}
		return err
	})
	return kept, err
}

// matcher decodes the filter of a list request.
func matcher(r *rule, request []byte) (func(item []byte) (bool, error), error) {
	switch r.method {
	case "ListPodSandbox":
		return match(request, func(q *runtimeapi.ListPodSandboxRequest, s *runtimeapi.PodSandbox) bool {
			f := q.GetFilter()
			return matchID(f.GetId(), s.GetId()) && matchLabels(f.GetLabelSelector(), s.GetLabels()) &&
				(f.GetState() == nil || f.GetState().GetState() == s.GetState())
		})
	case "ListContainers":
		return match(request, func(q *runtimeapi.ListContainersRequest, c *runtimeapi.Container) bool {
			f := q.GetFilter()
			return matchID(f.GetId(), c.GetId()) && matchID(f.GetPodSandboxId(), c.GetPodSandboxId()) &&
				matchLabels(f.GetLabelSelector(), c.GetLabels()) &&
				(f.GetState() == nil || f.GetState().GetState() == c.GetState())
		})
	case "ListContainerStats":
		// Container statistics do not name their sandbox; a label of kubelet's does not either.
		return match(request, func(q *runtimeapi.ListContainerStatsRequest, c *runtimeapi.ContainerStats) bool {
			f := q.GetFilter()
			return matchID(f.GetId(), c.GetAttributes().GetId()) && f.GetPodSandboxId() == "" &&
				matchLabels(f.GetLabelSelector(), c.GetAttributes().GetLabels())
		})
	case "ListPodSandboxStats":
		return match(request, func(q *runtimeapi.ListPodSandboxStatsRequest, s *runtimeapi.PodSandboxStats) bool {
			f := q.GetFilter()
			return matchID(f.GetId(), s.GetAttributes().GetId()) && matchLabels(f.GetLabelSelector(), s.GetAttributes().GetLabels())
		})
	default: // ListImages
		return match(request, func(q *runtimeapi.ListImagesRequest, i *runtimeapi.Image) bool {
			name := q.GetFilter().GetImage().GetImage()
			return name == "" || name == i.GetId() || slices.Contains(i.GetRepoTags(), name) || slices.Contains(i.GetRepoDigests(), name)
		})
	}
}

// message is the constraint that P is the pointer to a protobuf struct T.
type message[T any] interface {
	*T
	proto.Message
}

func match[Q, I any, PQ message[Q], PI message[I]](request []byte, test func(PQ, PI) bool) (func([]byte) (bool, error), error) {
	query := PQ(new(Q))
	if err := proto.Unmarshal(request, query); err != nil {
		return nil, err
	}
	return func(encoded []byte) (bool, error) {
		item := PI(new(I))
		if err := proto.Unmarshal(encoded, item); err != nil {
			return false, err
		}
		return test(query, item), nil
	}, nil
}

// matchID accepts a shortened ID, as runtimes do.
func matchID(wanted, id string) bool { return strings.HasPrefix(id, wanted) }

func matchLabels(wanted, labels map[string]string) bool {
	for key, value := range wanted {
		if actual, ok := labels[key]; !ok || actual != value {
			return false
		}
	}
	return true
}
