//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
)

// TestOutOfMemory: a pod whose control group is too small for its VM is told so, by
// the words that kubelet knows.
func TestOutOfMemory(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	group := path.Join("/", n.Cgroup(), "small")
	must(t, cgroup.Create(group, cgroup.Limits{}))
	t.Cleanup(func() { must(t, cgroup.Delete(group)) })
	writeLimit(t, group, 128<<20)
	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.config.Linux.CgroupParent = group
	// A pod that declares its overhead gets no more than it declared.
	p.config.Linux.Overhead = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}
	must(t, p.tryRun(t))
	eventually(t, "the VM is killed for its memory", func(ctx context.Context) error {
		status, err := p.status(ctx)
		if err != nil {
			return err
		}
		if status.GetReason() != "OOMKilled" || status.GetExitCode() != 137 || status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %s with the exit code %d (%s)", status.GetState(), status.GetExitCode(), status.GetReason())
		}
		return nil
	})
	p.removeAtEnd(t)
	nothingLeft(t, n)
}

// writeLimit sets the memory limit of a control group of either version.
func writeLimit(t *testing.T, group string, bytes int) {
	t.Helper()
	for _, file := range []string{"/sys/fs/cgroup/memory" + group + "/memory.limit_in_bytes", "/sys/fs/cgroup" + group + "/memory.max"} {
		err := os.WriteFile(file, []byte(strconv.Itoa(bytes)), 0)
		if err == nil {
			return
		}
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	t.Fatalf("control group %s has no memory limit", group)
}

// TestCommandsAndCPUs: the container's environment is in the guest's file and in
// commands, and a set of CPUs that comes later confines QEMU without lifting its quota.
func TestCommandsAndCPUs(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.container.Envs = []*runtimeapi.KeyValue{{Key: "COLOUR", Value: []byte("light blue")}}
	p.container.Command, p.container.Args = []string{"/bin/sh", "-c"}, []string{`echo "$0 is ""$COLOUR"`, "the command's colour"}
	must(t, p.tryRun(t))
	eventually(t, "commands in the guest see the environment", func(ctx context.Context) error {
		answer, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
			ContainerId: p.id, Cmd: []string{"sh", "-c", `echo "$COLOUR"; cat /etc/cloud/environment`}, Timeout: 60,
		})
		if err != nil {
			return err
		}
		if got, want := string(answer.GetStdout()), "light blue\nCOLOUR='light blue'\n"; got != want {
			return fmt.Errorf("they see %q, want %q", got, want)
		}
		return nil
	})
	eventually(t, "the container's command has run", func(context.Context) error {
		log, err := os.ReadFile(p.logPath())
		if err == nil && !strings.Contains(string(log), "the command's colour is light blue") {
			err = errors.New("its words are not in the log")
		}
		return err
	})
	_, err := p.UpdateContainerResources(deadline(t), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: p.id, Linux: &runtimeapi.LinuxContainerResources{CpusetCpus: "0"},
	})
	must(t, err)
	for _, pid := range membersOf(t, n, p.id) {
		text, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
		must(t, err)
		if _, cpus, _ := strings.Cut(string(text), "\nCpus_allowed_list:"); strings.Fields(cpus)[0] != "0" {
			t.Errorf("process %s may use the CPUs %s", pid, strings.Fields(cpus)[0])
		}
	}
	status, err := p.status(deadline(t))
	must(t, err)
	if limits := status.GetResources().GetLinux(); limits.GetCpuQuota() != 100000 || limits.GetCpusetCpus() != "0" {
		t.Errorf("limits in force: %v", limits)
	}
	p.removeAtEnd(t)
	nothingLeft(t, n)
}
