//go:build e2e

package e2e

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// What guests print on their consoles, as long as they live. It begins when they have
// booted: words of their own would be in the midst of it.
const (
	counts = `i=0; while :; do echo "number $i of a guest that counts"; i=$((i+1)); usleep 2000; done`
	floods = `yes flood`
)

// mostConsole bounds the files of one console: virtlogd's four of 2 MiB, and the one
// that is being written.
const mostConsole = 12 << 20

// TestLogsUnderKubelet follows a guest that counts through kubelet's log rotation and
// restarts of the daemons, beside a guest that floods its console.
func TestLogsUnderKubelet(t *testing.T) {
	n := tunedNode(t)
	apply(t, n, light(examplePod(t, "vm-pod.yaml", "counts", node.VMImage)))
	apply(t, n, light(examplePod(t, "vm-pod.yaml", "floods", node.VMImage)))
	pod, flood := waitBooted(t, n, "counts", vmKind.ready), waitBooted(t, n, "floods", vmKind.ready)
	streamsByTLS(t, n, pod)
	printFrom(t, n, pod, counts, "number 100 ")
	sinceAndTail(t, n, pod)
	followRotation(t, n, pod)
	printFrom(t, n, flood, floods, "flood")
	for _, fault := range []struct {
		daemon string
		end    func(context.Context, string) error
	}{
		{node.VMRuntime, n.Terminate}, {node.VMRuntime, n.Kill}, {node.Libvirtd, n.Kill}, {node.CRIProxy, n.Kill},
	} {
		must(t, fault.end(deadline(t), fault.daemon))
		must(t, n.StartDaemon(deadline(t), fault.daemon))
		waitRotation(t, n, pod)
	}
	last := numbers(t, n, pod)
	t.Logf("%d numbers in %d files", last+1, len(logFiles(t, n, pod)))
	if size := consoleSize(t, n, flood); size > mostConsole {
		t.Errorf("a flooded console takes %d bytes of the disk, more than %d", size, mostConsole)
	}
	must(t, n.Delete("counts"))
	must(t, n.Delete("floods"))
	nothingLeft(t, n)
}

// printFrom has a guest print until its log shows some of it.
func printFrom(t *testing.T, n *node.Node, pod *corev1.Pod, script, shows string) {
	t.Helper()
	eventually(t, "commands run in the guest", func(ctx context.Context) error {
		_, err := execIn(ctx, n, pod, "true")
		return err
	})
	_, err := execIn(deadline(t), n, pod, "setsid sh -c '"+script+"' </dev/null >/dev/ttyS0 2>&1 &")
	must(t, err)
	if _, err := node.WaitPodLog(deadline(t), logOf(n, pod, 0), shows); err != nil {
		t.Fatal(err)
	}
}

// streamsByTLS runs a command through kubelet, on a node whose streams are encrypted.
func streamsByTLS(t *testing.T, n *node.Node, pod *corev1.Pod) {
	t.Helper()
	eventually(t, "commands run in the guest", func(ctx context.Context) error {
		out, err := execIn(ctx, n, pod, "echo encrypted")
		if err == nil && out != "encrypted\n" {
			t.Errorf("a command printed %q", out)
		}
		return err
	})
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	ticket, err := dial(t, n).Exec(deadline(t), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
	must(t, err)
	if !strings.HasPrefix(ticket.GetUrl(), "https://127.0.0.1:") {
		t.Errorf("kubelet connects to %s, want TLS", ticket.GetUrl())
	}
}

func logPath(pod *corev1.Pod) string {
	return fmt.Sprintf("/containerLogs/%s/%s/%s", pod.Namespace, pod.Name, pod.Spec.Containers[0].Name)
}

// waitRotation waits until kubelet has rotated the pod's log once more and the new file
// is written to.
func waitRotation(t *testing.T, n *node.Node, pod *corev1.Pod) {
	t.Helper()
	before := len(logFiles(t, n, pod))
	eventually(t, "kubelet has rotated the log, and it goes on", func(context.Context) error {
		if now := len(logFiles(t, n, pod)); now <= before {
			return fmt.Errorf("%d files", now)
		}
		lines, err := node.ReadPodLog(logOf(n, pod, 0))
		if err == nil && len(lines) == 0 {
			err = errors.New("the new log is empty")
		}
		return err
	})
}

// logFiles are a container's log and what it was rotated to, the oldest first.
func logFiles(t *testing.T, n *node.Node, pod *corev1.Pod) []string {
	t.Helper()
	log := logOf(n, pod, 0)
	rotated, err := filepath.Glob(log + ".*")
	must(t, err)
	whole := slices.Clone(rotated)
	rotated = slices.DeleteFunc(rotated, func(name string) bool { // what kubelet packs is there twice for a moment
		return strings.HasSuffix(name, ".tmp") || slices.Contains(whole, name+".gz")
	})
	slices.Sort(rotated) // their names end with the time
	return append(rotated, log)
}

// numbers checks that the guest's numbers are all in the log, once and in order, and
// returns the last.
func numbers(t *testing.T, n *node.Node, pod *corev1.Pod) int {
	t.Helper()
	last := -1
	eventually(t, "the log can be read while nobody rotates it", func(context.Context) error {
		files := logFiles(t, n, pod)
		var text strings.Builder
		for _, name := range files {
			data, err := readLog(name)
			if err != nil {
				return err
			}
			text.Write(data)
		}
		if !slices.Equal(files, logFiles(t, n, pod)) {
			return errors.New("it was rotated meanwhile")
		}
		last = -1
		said := saidIn(text.String())
		for line := range strings.Lines(said) {
			_, rest, found := strings.Cut(line, "number ")
			if !found || !strings.HasSuffix(line, "counts\n") {
				continue
			}
			number, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil || number != last+1 {
				at := strings.Index(said, line)
				t.Fatalf("after number %d the log has %q", last, said[max(0, at-500):at+len(line)])
			}
			last = number
		}
		return nil
	})
	return last
}

// saidIn is what was said, of a log in the CRI's format: a line that took its time is
// in several records, of which all but the last are marked P.
func saidIn(log string) string {
	var said strings.Builder
	for record := range strings.Lines(log) {
		fields := strings.SplitN(record, " ", 4) // time, stream, mark, words
		if len(fields) != 4 {
			continue
		}
		if fields[2] == "P" {
			fields[3] = strings.TrimSuffix(fields[3], "\n")
		}
		said.WriteString(fields[3])
	}
	return said.String()
}

func readLog(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if !strings.HasSuffix(name, ".gz") {
		return io.ReadAll(file)
	}
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(unpacked)
}

// sinceAndTail asks kubelet for parts of the log.
func sinceAndTail(t *testing.T, n *node.Node, pod *corev1.Pod) {
	t.Helper()
	read := func(query string) []string {
		answer := kubeletStream(t, n, logPath(pod)+"?timestamps=true&"+query)
		defer answer.Close()
		data, err := io.ReadAll(answer)
		must(t, err)
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}
	// A log that was rotated this moment is short.
	eventually(t, "kubelet shows the last three lines", func(context.Context) error {
		if lines := read("tailLines=3"); len(lines) != 3 || !strings.Contains(lines[2], "number ") {
			return fmt.Errorf("they are %q", lines)
		}
		return nil
	})
	began := time.Now()
	// The first may be the end of a line that began earlier, as the guest's prompt: kubelet
	// puts a time only at the beginning.
	for _, line := range read("sinceSeconds=2")[1:] {
		stamp, _, _ := strings.Cut(line, " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); line != "" && (err != nil || at.Before(began.Add(-3*time.Second))) {
			t.Errorf("among the lines of the last 2 s at %s is %q (%v)", began, line, err)
		}
	}
}

// followRotation reads what kubelet follows, until a number comes that was printed
// after kubelet had rotated the log. A follower does not outlive vmruntime: kubelet
// gives up when nobody can say whether the container runs.
func followRotation(t *testing.T, n *node.Node, pod *corev1.Pod) {
	t.Helper()
	follow := kubeletStream(t, n, logPath(pod)+"?follow=true&tailLines=1")
	defer follow.Close()
	waitRotation(t, n, pod)
	until, last := numbers(t, n, pod), -1
	live := bufio.NewScanner(follow)
	for live.Scan() {
		_, said, found := strings.Cut(live.Text(), "number ")
		if !found {
			continue
		}
		number, err := strconv.Atoi(strings.Fields(said)[0])
		if err != nil || last >= 0 && number != last+1 {
			t.Fatalf("kubelet shows %q after number %d", live.Text(), last)
		}
		if last = number; last >= until {
			return
		}
	}
	t.Fatalf("kubelet's log ends with number %d, before %d: %v", last, until, live.Err())
}

// consoleSize is what the raw console of a pod's VM takes of the disk.
func consoleSize(t *testing.T, n *node.Node, pod *corev1.Pod) int64 {
	t.Helper()
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	files, err := filepath.Glob(filepath.Join(n.VMStateDir(), "vms", strings.TrimPrefix(id, "vm."), "console.log*"))
	must(t, err)
	var total int64
	for _, name := range files {
		if info, err := os.Stat(name); err == nil {
			total += info.Size()
		}
	}
	if total == 0 {
		t.Fatal("the VM has no console")
	}
	return total
}
