package criserver

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// badValues has a value that each annotation must refuse, by its name without domain.
var badValues = map[string]string{
	"target-runtime": "containers", "vcpu-count": "1.5", "root-volume-size": "big", "replace-root": "maybe", "disk-bus": "floppy", "disks": "[{name: a}]", "folders": "nfs",
	"system-uuid": "0000", "user-data": "- a list", "user-data-script": "echo without an interpreter",
	"user-data-source": "pod/x", "user-data-source-key": "", "user-data-source-encoding": "rot13", "user-data-overwrite": "yes please",
	"ssh-key-source": "configmap", "files-from-data-source": "volume/x", "config-volumes": "symlink", "chown-mounts": "perhaps",
	"instance-id": "a b", "network-config": "v3", "meta-data": "[1, 2]", "force-dhcp": "2", "cloud-init-datasource": "floppy",
	"cpu-model": "max,+vmx", "libvirt-cpu-setting": "topology: {cores: 4}", "screen": "4k", "ingress-bandwidth": "-1", "egress-bandwidth": "fast",
	"allow-spoofing": "please", "machine": "isapc", "firmware": "coreboot", "tpm": "1.2", "watchdog": "bark", "clock": "sidereal",
	"serial-number": "a,uuid=b", "nic-model": "ne2k_pci", "nic-queues": "9", "ssh-keys": "ssh-ed25519",
}

// TestEveryAnnotationRefusesABadValue: CreateContainer answers with InvalidArgument and
// one sentence that names the annotation, the value and what is allowed, and nothing is
// left of the attempt.
func TestEveryAnnotationRefusesABadValue(t *testing.T) {
	t.Parallel()
	records, err := metadata.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = records.Close() })
	server := testServer()
	server.Records, server.locks = records, newKeyedMutex()
	known := map[string]bool{}
	for _, row := range annotations.Table {
		name, _ := strings.CutPrefix(row.Name, annotations.Domain)
		known[name] = true
		value, have := badValues[name]
		if !have {
			t.Errorf("no bad value of annotation %s is tried, add one to badValues", row.Name)
			continue
		}
		for _, spelling := range []string{row.Name, row.Alias} {
			if spelling != "" {
				refuses(t, server, spelling, value, row.Allowed)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(badValues)) {
		if !known[name] {
			t.Errorf("there is no annotation %s", name)
		}
	}
	if left, err := records.Containers.List(); err != nil || len(left) > 0 {
		t.Errorf("containers left: %v, %v", left, err)
	}
}

// refuses tries one annotation in a pod of its own.
func refuses(t *testing.T, server *Server, name, value, allowed string) {
	t.Helper()
	id := randomHex(idBytes)
	encoded, err := proto.Marshal(&runtimeapi.PodSandboxConfig{
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: id},
		Annotations: map[string]string{name: value},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Records.Sandboxes.Create(id, metadata.Sandbox{ID: id, State: metadata.SandboxReady, Config: encoded}); err != nil {
		t.Fatal(err)
	}
	_, err = server.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: id, Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "machine"}},
	})
	answer := status.Convert(toStatus(err))
	if answer.Code() != codes.InvalidArgument {
		t.Errorf("%s: %q: %v, want InvalidArgument", name, value, err)
		return
	}
	for _, part := range []string{name, value, allowed} {
		if !strings.Contains(answer.Message(), part) {
			t.Errorf("%s: %q: the answer does not say %q: %s", name, value, part, answer.Message())
		}
	}
	if strings.Contains(answer.Message(), "\n") {
		t.Errorf("%s: %q: the answer has several lines: %s", name, value, answer.Message())
	}
}
