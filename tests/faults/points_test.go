package faults

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// points are all fail points, by the operation that passes through them, in its
// order.
var points = []struct {
	operation string
	names     []string
}{
	{"RunPodSandbox", []string{
		"recorded", "attachment-saved", "namespace-made", "attached", "network-set-up", "ready",
	}},
	{"CreateContainer", []string{
		"recorded", "image-held", "folders-made", "root-made", "disks-made", "config-written", "domain-defined", "complete",
	}},
	{"StartContainer", []string{
		"connected", "console-followed", "granted", "admitted", "domain-started", "recorded",
	}},
	{"StopContainer", []string{
		"asked", "destroyed", "console-finished", "recorded", "undefined",
	}},
	{"RemoveContainer", []string{
		"marked", "cgroup-ended", "undefined", "files-removed", "image-released", "log-removed", "record-deleted",
	}},
	{"StopPodSandbox", []string{
		"machines-off", "detached", "namespace-removed", "network-down", "recorded",
	}},
	{"RemovePodSandbox", []string{"stopped", "machines-removed", "record-deleted"}},
}

// TestEveryFailPointIsDriven compares the table with the source.
func TestEveryFailPointIsDriven(t *testing.T) {
	t.Parallel()
	var driven []string
	for _, p := range points {
		for _, name := range p.names {
			driven = append(driven, p.operation+"/"+name)
		}
	}
	inSource := failPoints(t, "../../pkg", "../../cmd")
	for _, name := range inSource {
		if !slices.Contains(driven, name) {
			t.Errorf("no row drives the fail point %s", name)
		}
	}
	for _, name := range driven {
		if !slices.Contains(inSource, name) {
			t.Errorf("fail point %s is in no source", name)
		}
	}
}

func failPoints(t *testing.T, folders ...string) []string {
	t.Helper()
	call := regexp.MustCompile(`failpoint\.Hit\("([^"]*)"\)`)
	var found []string
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
				return err
			}
			text, err := os.ReadFile(path)
			for _, match := range call.FindAllStringSubmatch(string(text), -1) {
				if slices.Contains(found, match[1]) {
					t.Errorf("fail point %s is twice in the source", match[1])
				}
				found = append(found, match[1])
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}
