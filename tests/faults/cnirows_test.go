//go:build faults

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// faultyPlugin is the last plugin of the chain. The file "mode" beside it says what is
// wrong with it: VERB fails, VERB hangs, or nothing.
const faultyPlugin = `#!/bin/sh
input=$(cat)
case "$CNI_COMMAND $(cat "${0%/*}/mode")" in
"ADD ADD fails" | "DEL DEL fails")
	echo '{"cniVersion":"1.0.0","code":999,"msg":"this plugin is out of order"}'
	exit 1 ;;
"ADD ADD hangs" | "DEL DEL hangs")
	sleep 1000 & # a grandchild that keeps the pipe open
	sleep 1000 ;;
ADD*)
	printf %s "$input" | jq '.prevResult + {cniVersion: "1.0.0"}' ;;
VERSION*)
	echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
esac
`

func cniRows() []row {
	return []row{
		{component: "CNI plugin", moment: "ADD", fault: "fails", then: "refused with its words, again and again; then comes up", brief: true, run: withPlugin(addFails)},
		{component: "CNI plugin", moment: "ADD", fault: "hangs", then: "ends at the deadline; lists answer", brief: true, run: withPlugin(addHangs)},
		{component: "CNI plugin", moment: "DEL", fault: "fails", then: "not said to be stopped; then goes", run: withPlugin(delFails)},
		{component: "CNI plugin", moment: "DEL", fault: "hangs", then: "ends at the deadline; lists answer", brief: true, run: withPlugin(delHangs)},
		{component: "CNI plugin", moment: "DEL after a failed ADD", fault: "fails", then: "comes up when it works", run: withPlugin(bothFail)},
		{component: "CNI plugin", moment: "vmruntime starts after RunPodSandbox was cut", fault: "DEL hangs", then: "vmruntime serves", run: withPlugin(delHangsAtStart)},
	}
}

// plugin sets what is wrong with the faulty plugin.
type plugin func(mode string)

// withPlugin puts the faulty plugin into the chain while a row runs.
func withPlugin(run func(*testing.T, *rig, *pod, plugin)) func(*testing.T, *rig, *pod) {
	return func(t *testing.T, r *rig, p *pod) {
		set, uninstall := r.installPlugin(t)
		defer func() {
			uninstall()
			// The pod was made with the plugin, and goes with it.
			if err := p.remove(deadline(t)); err != nil {
				t.Error(err)
			}
			// One whose caller has left has a moment to get done, before it is killed.
			err := node.Until(deadline(t), "hung plugins are killed", func(context.Context) error {
				left, err := r.n.ProcessesNaming("sleep 1000")
				if err == nil && len(left) > 0 {
					err = fmt.Errorf("there are %v", left)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}()
		run(t, r, p, set)
	}
}

// installPlugin puts the faulty plugin at the end of the chain, well at first. set and
// uninstall may be called from other goroutines than the test's.
func (r *rig) installPlugin(t *testing.T) (set plugin, uninstall func()) {
	t.Helper()
	good, err := os.ReadFile(r.n.CNIConfig())
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(good, &config); err != nil {
		t.Fatal(err)
	}
	plugins, _ := config["plugins"].([]any)
	config["plugins"] = append(plugins, map[string]any{"type": "faulty"})
	bad, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	set = func(mode string) {
		if err := os.WriteFile(filepath.Join(r.n.PluginDir(), "mode"), []byte(mode), 0o600); err != nil {
			t.Error(err)
		}
	}
	set("well")
	for path, content := range map[string][]byte{filepath.Join(r.n.PluginDir(), "faulty"): []byte(faultyPlugin), r.n.CNIConfig(): bad} {
		if err := os.WriteFile(path, content, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return set, func() {
		set("well")
		if err := os.WriteFile(r.n.CNIConfig(), good, 0o600); err != nil {
			t.Error(err)
		}
	}
}

func addFails(t *testing.T, r *rig, p *pod, set plugin) {
	set("ADD fails")
	for range 3 {
		if err := p.sync(deadline(t)); err == nil || !strings.Contains(err.Error(), "out of order") {
			t.Errorf("with a plugin that fails: %v", err)
		}
	}
	if boxes, err := p.sandboxes(deadline(t)); err != nil || len(boxes) > 0 {
		t.Errorf("refused sandboxes are listed: %v, %v", boxes, err)
	}
	set("well")
	r.comesUp(t, p)
}

func addHangs(t *testing.T, r *rig, p *pod, set plugin) {
	set("ADD hangs")
	atDeadline(t, "RunPodSandbox", func(ctx context.Context) error {
		_, err := p.runSandbox(ctx, 0)
		return err
	})
	r.answersSoon(t, r.cri)
	set("well")
	r.comesUp(t, p)
}

func delFails(t *testing.T, r *rig, p *pod, set plugin) {
	container := r.up(t, p)
	set("DEL fails")
	for range 3 {
		err := p.stopSandbox(deadline(t), container.GetPodSandboxId())
		if err == nil || !strings.Contains(err.Error(), "out of order") {
			t.Errorf("StopPodSandbox with a plugin that fails: %v", err)
		}
	}
	boxes, err := p.sandboxes(deadline(t))
	if err != nil || len(boxes) != 1 {
		t.Errorf("a sandbox that could not be stopped is listed as %v, %v", boxes, err)
	}
	set("well")
}

func delHangs(t *testing.T, r *rig, p *pod, set plugin) {
	container := r.up(t, p)
	set("DEL hangs")
	for range 2 {
		atDeadline(t, "StopPodSandbox", func(ctx context.Context) error {
			_, err := p.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: container.GetPodSandboxId()})
			return err
		})
	}
	r.answersSoon(t, r.cri)
	set("well")
}

func bothFail(t *testing.T, r *rig, p *pod, set plugin) {
	set("ADD hangs") // so that DEL, too, comes when nobody waits any more
	ctx, cancel := context.WithTimeout(deadline(t), patience)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := p.runSandbox(ctx, 0)
		failed <- err
	}()
	<-ctx.Done()
	set("DEL fails")
	if err := <-failed; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("RunPodSandbox with a plugin that hangs: %v", err)
	}
	set("well")
	r.comesUp(t, p)
}

func delHangsAtStart(t *testing.T, r *rig, p *pod, set plugin) {
	if err := r.arm("RunPodSandbox/attached"); err != nil {
		t.Fatal(err)
	}
	_ = p.sync(deadline(t))
	if err := r.n.Process(node.VMRuntime).Wait(deadline(t)); err != nil {
		t.Fatal(err)
	}
	set("DEL hangs")
	if err := r.n.StartDaemon(deadline(t), node.VMRuntime); err != nil {
		t.Fatal(err)
	}
	r.answersSoon(t, r.direct)
	other := r.pod(sectorKind)
	set("well")
	r.comesUp(t, other)
	if err := other.remove(deadline(t)); err != nil {
		t.Error(err)
	}
	r.comesUp(t, p)
}
