package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// podTable shows both pods as kubelet sees them and the memory that their
// runtime reports.
func (d *demo) podTable(ctx context.Context) (string, error) {
	memory, err := workingSets(ctx, d.n.CRISocket())
	if err != nil {
		return "", err
	}
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table, "  NAME\tKIND\tPHASE\tIP\tIMAGE\tSTARTED\tMEMORY")
	for _, row := range []struct {
		kind string
		pod  *corev1.Pod
	}{{"container", d.container}, {"VM", d.machine}} {
		pod, err := d.n.Pod(ctx, strings.TrimSuffix(row.pod.Name, d.n.PodName("")))
		if err != nil {
			return "", err
		}
		state := pod.Status.ContainerStatuses[0]
		_, id, _ := strings.Cut(state.ContainerID, "://")
		used, ok := memory[id]
		if !ok {
			return "", fmt.Errorf("the runtime reports no memory for container %s of pod %s", id, pod.Name)
		}
		_, _ = fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\t%s\t%.1f MiB\n", pod.Name, row.kind, pod.Status.Phase,
			pod.Status.PodIP, pod.Spec.Containers[0].Image, started(state), float64(used)/(1<<20))
	}
	err = table.Flush()
	return text.String(), err
}

func started(state corev1.ContainerStatus) string {
	if state.State.Running == nil {
		return "not running"
	}
	return state.State.Running.StartedAt.Local().Format(time.TimeOnly)
}

// workingSets are the bytes of memory in use by container ID.
func workingSets(ctx context.Context, socket string) (map[string]uint64, error) {
	conn, err := node.Dial(socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	answer, err := runtimeapi.NewRuntimeServiceClient(conn).ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for the containers' memory: %w", err)
	}
	used := map[string]uint64{}
	for _, s := range answer.GetStats() {
		used[s.GetAttributes().GetId()] = s.GetMemory().GetWorkingSetBytes().GetValue()
	}
	return used, nil
}

// lapTable lists the steps and their sum.
func lapTable(laps []lap, total time.Duration) string {
	var text strings.Builder
	for _, l := range laps {
		fmt.Fprintf(&text, "  %-58s %6.1f s\n", l.name, l.took.Seconds())
	}
	fmt.Fprintf(&text, "  %-58s %6.1f s\n", "all of it", total.Seconds())
	return text.String()
}
