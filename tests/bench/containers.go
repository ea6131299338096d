package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"sigs.k8s.io/yaml"

	"github.com/ambipod/ambipod/tests/defaultcgroup"
	"github.com/ambipod/ambipod/tests/node"
)

// critest's benchmark runs this often on each side, and each time takes this
// many samples of every operation.
const (
	critestRounds  = 8
	critestSamples = 6
)

// Images of the benchmark: containers run the node's busybox; another image is
// pulled and removed.
const (
	pulledRepository = "bench/pulled"
	pulledImage      = "registry.ambipod.test/" + pulledRepository + ":latest"
)

// measureContainers runs critest's own benchmark against containerd, directly
// and through criproxy, in turn.
func measureContainers(ctx context.Context, e environment) (_ section, err error) {
	s := section{
		Name: "containers", Base: "containerd", Ours: "through criproxy",
		Title: fmt.Sprintf("critest -benchmark, medians of %d samples in %d alternating rounds", critestRounds*critestSamples, critestRounds),
	}
	cgroups, err := defaultcgroup.Take()
	if err != nil {
		return s, err
	}
	n, err := node.Start(ctx, node.Config{
		Checkout: e.checkout,
		Name:     "bench",
		Without:  []string{node.ImageSite, node.Libvirtd, node.VMRuntime, node.Kubelet},
	})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, stopNode(ctx, n), cgroups.RemoveNew()) }()
	if err := pushPulled(ctx, n); err != nil {
		return s, err
	}
	operations := map[string]*pair{}
	var order []string
	for i := range critestRounds {
		sides := []string{n.ContainerdSocket(), n.CRIProxySocket()}
		if i%2 == 1 {
			sides[0], sides[1] = sides[1], sides[0]
		}
		for _, socket := range sides {
			results, err := critestBenchmark(ctx, e, n, socket)
			if err != nil {
				return s, err
			}
			for _, r := range results {
				p := operations[r.operation]
				if p == nil {
					p = &pair{}
					operations[r.operation] = p
					order = append(order, r.operation)
				}
				p.add(socket == n.CRIProxySocket(), r.took)
			}
		}
		_, _ = fmt.Fprintf(e.out, "    round %d of %d done\n", i+1, critestRounds)
	}
	const atMost limit = 1.05
	for _, operation := range order {
		s.Rows = append(s.Rows, ratioRow(operation, operations[operation].at(0.5), atMost))
	}
	return s, nil
}

func (p *pair) add(ours bool, took []time.Duration) {
	if ours {
		p.ours = append(p.ours, took...)
	} else {
		p.base = append(p.base, took...)
	}
}

func stopNode(ctx context.Context, n *node.Node) error {
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return n.Stop(ctx)
}

// pushPulled puts an image of some size into the node's registry.
func pushPulled(ctx context.Context, n *node.Node) error {
	const (
		layerBytes = 1 << 20
		layers     = 3
	)
	image, err := random.Image(layerBytes, layers)
	if err != nil {
		return fmt.Errorf("make an image to pull: %w", err)
	}
	ref, err := name.NewTag(n.RegistryAddress()+"/"+pulledRepository+":latest", name.Insecure)
	if err != nil {
		return fmt.Errorf("push an image to pull: %w", err)
	}
	if err := remote.Write(ref, image, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push an image to pull: %w", err)
	}
	return nil
}

// operationTimes are one operation's samples of one run.
type operationTimes struct {
	operation string
	took      []time.Duration
}

// critestBenchmark runs critest once, each kind of operation one after another.
func critestBenchmark(ctx context.Context, e environment, n *node.Node, socket string) ([]operationTimes, error) {
	dir, err := os.MkdirTemp(n.Root(), "critest-")
	if err != nil {
		return nil, fmt.Errorf("make folder for critest: %w", err)
	}
	parameters, err := yaml.Marshal(map[string]any{
		"containersNumber": critestSamples, "podsNumber": critestSamples, "imagesNumber": critestSamples,
		"imagePullingBenchmarkImage": pulledImage, "imageListingBenchmarkImages": []string{pulledImage},
	})
	if err != nil {
		return nil, fmt.Errorf("configure critest: %w", err)
	}
	images, err := yaml.Marshal(map[string]string{"defaultTestContainerImage": node.ContainerImage})
	if err != nil {
		return nil, fmt.Errorf("configure critest: %w", err)
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "parameters.yaml"), parameters, 0o600),
		os.WriteFile(filepath.Join(dir, "images.yaml"), images, 0o600))
	if err != nil {
		return nil, fmt.Errorf("configure critest: %w", err)
	}
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+n.Namespace(), filepath.Join(e.checkout, "_tools", "bin", "critest"),
		"-benchmark", "-config", filepath.Join(dir, "no-such-file"),
		"-runtime-endpoint", "unix://"+socket,
		"-benchmarking-params-file", filepath.Join(dir, "parameters.yaml"),
		"-benchmarking-output-dir", dir,
		"-test-images-file", filepath.Join(dir, "images.yaml"))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("run critest -benchmark: %w: %s", err, out)
	}
	return readDatapoints(dir)
}

// readDatapoints reads what critest -benchmark wrote into a folder.
func readDatapoints(dir string) ([]operationTimes, error) {
	var all []operationTimes
	for _, file := range []string{"pod", "container", "image_lifecycle", "image_listing"} {
		path := filepath.Join(dir, file+"_benchmark_data.json")
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read critest's datapoints: %w", err)
		}
		var result struct {
			OperationsNames []string
			Datapoints      []struct{ OperationsDurationsNs []int64 }
		}
		if err := json.Unmarshal(data, &result); err != nil {
			return nil, fmt.Errorf("read critest's datapoints in %s: %w", path, err)
		}
		for i, name := range result.OperationsNames {
			times := operationTimes{operation: name}
			for _, point := range result.Datapoints {
				if i < len(point.OperationsDurationsNs) {
					times.took = append(times.took, time.Duration(point.OperationsDurationsNs[i]))
				}
			}
			if len(times.took) == 0 {
				return nil, fmt.Errorf("critest has no datapoint for %s in %s: %w", name, path, errdefs.ErrDataLoss)
			}
			all = append(all, times)
		}
	}
	return all, nil
}
