package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
	"github.com/ambipod/ambipod/pkg/volumes"
	"github.com/ambipod/ambipod/tests/node"
)

// Targets of the issue.
const (
	pullRatio   limit = 1.10
	pullMemory  limit = 64e6
	manyRatio   limit = 1.15
	rootTime    limit = 50 // ms
	imagesTime  limit = 20 // ms
	unpackRatio limit = 1.15
)

// Sizes of what is measured.
const (
	diskSize  = 1 << 30 // bytes
	pullTurns = 7
	fastest   = 0 // the quantile
	manyPulls = 50
	rootDisks = 300
	listings  = 100
	tinyDisks = 5000
	tinySize  = 4096 // bytes
	fillers   = 16   // pulls at once
)

// measurePulls compares pulls with curl, and pulls at once with a single one.
func measurePulls(ctx context.Context, e environment) (section, error) {
	s := section{
		Name: "pulls", Base: "command line, or one pull", Ours: "vmruntime",
		Title: "Pull of an image of 1 GiB from loopback HTTP, the fastest of all turns",
	}
	return measureOnRig(ctx, e, s, 0, func(ctx context.Context, r *imageRig) ([]row, error) {
		if err := writeDisk(r.file("disk")); err != nil {
			return nil, err
		}
		return collect(ctx, r.pullMemory, r.pullAgainstCurl, r.manyPulls)
	})
}

// measureImages looks at what images cost that are there.
func measureImages(ctx context.Context, e environment) (section, error) {
	s := section{Name: "images", Base: "-", Ours: "vmruntime", Title: "Images that are present"}
	const state = 1 << 30 // the pulls of small images are no part of what is measured
	return measureOnRig(ctx, e, s, state, func(ctx context.Context, r *imageRig) ([]row, error) {
		return collect(ctx, r.rootDisks, r.listImages)
	})
}

// measureOnRig fills a section with what is measured on an image rig.
func measureOnRig(ctx context.Context, e environment, s section, stateBytes int64, measure func(context.Context, *imageRig) ([]row, error)) (_ section, err error) {
	r, err := startImageRig(ctx, e, "bench-"+s.Name, stateBytes)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, r.stop(ctx)) }()
	s.Rows, err = measure(ctx, r)
	return s, err
}

func collect(ctx context.Context, measures ...func(context.Context) ([]row, error)) (all []row, err error) {
	for _, measure := range measures {
		rows, err := measure(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, rows...)
	}
	return all, nil
}

// writeDisk writes a raw disk whose bytes nobody can guess.
func writeDisk(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write a disk: %w", err)
	}
	source := rand.NewChaCha8([32]byte{1})
	chunk := imagetest.Raw("benchmark", 1<<20)
	for range diskSize / len(chunk) {
		if _, err := file.Write(chunk); err != nil {
			return errors.Join(fmt.Errorf("write a disk: %w", err), file.Close())
		}
		_, _ = source.Read(chunk)
	}
	return errors.Join(file.Sync(), file.Close())
}

func (r *imageRig) pullAgainstCurl(ctx context.Context) ([]row, error) {
	took, err := turns(pullTurns,
		func() (time.Duration, error) {
			return r.timedCopy(ctx, `curl -sSf "$1" | tee "$3" | sha256sum`, "disk")
		},
		func() (time.Duration, error) { return r.pullFresh(ctx, r.spec("disk"), 1) })
	return []row{ratioRow("hashed and verified, beside `curl` into a file piped through `sha256sum`", pair{took[0], took[1]}.at(fastest), pullRatio)}, err
}

// pullMemory is how far vmruntime's resident memory rises during its first pull.
func (r *imageRig) pullMemory(ctx context.Context) ([]row, error) {
	folder := fmt.Sprintf("/proc/%d/", r.node.Process(node.VMRuntime).PID)
	const resetHighest = "5" // see proc(5), clear_refs
	if err := os.WriteFile(folder+"clear_refs", []byte(resetHighest), 0); err != nil {
		return nil, fmt.Errorf("reset highest memory of vmruntime: %w", err)
	}
	read := func(key string) (int64, error) {
		status, err := os.ReadFile(folder + "status")
		if err != nil {
			return 0, fmt.Errorf("read memory of vmruntime: %w", err)
		}
		return statusBytes(string(status), key)
	}
	idle, err := read("VmRSS:")
	if err != nil {
		return nil, err
	}
	if _, err := r.pullFresh(ctx, r.spec("disk"), 1); err != nil {
		return nil, err
	}
	highest, err := read("VmHWM:")
	return []row{memoryRow("highest memory of vmruntime during the first pull, above that before it", highest-idle, pullMemory)}, err
}

func (r *imageRig) manyPulls(ctx context.Context) ([]row, error) {
	most := int64(0)
	took, err := turns(pullTurns,
		func() (time.Duration, error) { return r.pullFresh(ctx, r.spec("disk"), 1) },
		func() (time.Duration, error) {
			before := r.asked.Load()
			defer func() { most = max(most, r.asked.Load()-before) }()
			return r.pullFresh(ctx, r.spec("disk"), manyPulls)
		})
	const oneDownload limit = 1
	return []row{
		ratioRow(fmt.Sprintf("%d pulls at once, beside one pull", manyPulls), pair{took[0], took[1]}.at(fastest), manyRatio),
		oneDownload.check(row{What: "the same, most downloads that the server saw", Ours: strconv.FormatInt(most, 10), Samples: pullTurns}, float64(most), "%.0f"),
	}, err
}

// rootDisks makes root disks over images of both formats.
func (r *imageRig) rootDisks(ctx context.Context) ([]row, error) {
	const large = 100 << 30
	if err := r.shell(ctx, `truncate --size="$2" "$1"`, r.file("disk"), strconv.Itoa(diskSize)); err != nil {
		return nil, err
	}
	if err := r.shell(ctx, `qemu-img create -q -f qcow2 "$1" "$2"`, r.file("large"), strconv.Itoa(large)); err != nil {
		return nil, err
	}
	var rows []row
	for _, base := range []volumes.Root{
		{Base: r.file("disk"), BaseFormat: string(imagestore.FormatRaw), VirtualSize: diskSize},
		{Base: r.file("large"), BaseFormat: string(imagestore.FormatQCOW2), VirtualSize: large},
	} {
		var took []time.Duration
		for i := range rootDisks {
			base.Path = filepath.Join(r.dir, "root-"+strconv.Itoa(i))
			t, err := timed(func() error { return volumes.CreateRoot(ctx, base) })
			if err != nil {
				return nil, err
			}
			took = append(took, t)
			if err := volumes.Remove(base.Path); err != nil {
				return nil, err
			}
		}
		rows = append(rows, timeRow(fmt.Sprintf("root disk for an image of %d GiB (virtual), p99", base.VirtualSize>>30), took, 0.99, rootTime))
	}
	return rows, nil
}

// timeRow reports a quantile of times that are compared with nothing.
func timeRow(what string, took []time.Duration, quantile float64, most limit) row {
	ms := milliseconds(quantileOf(took, quantile))
	r := row{What: what, Ours: formatMS(ms), Samples: len(took)}
	r.Spread = fmt.Sprintf("median %s", formatMS(milliseconds(quantileOf(took, 0.5))))
	return most.check(r, ms, "%.0f ms")
}

// listImages fills the store with small disks and lists them.
func (r *imageRig) listImages(ctx context.Context) ([]row, error) {
	group, pulling := errgroup.WithContext(ctx)
	group.SetLimit(fillers)
	for i := range tinyDisks {
		group.Go(func() error { return r.pull(pulling, r.spec("tiny/"+strconv.Itoa(i))) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var took []time.Duration
	for range listings {
		t, err := timed(func() error {
			answer, err := r.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			if err == nil && len(answer.GetImages()) != tinyDisks {
				err = fmt.Errorf("%d images are listed: %w", len(answer.GetImages()), errdefs.ErrDataLoss)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		took = append(took, t)
	}
	return []row{timeRow(fmt.Sprintf("ListImages with %d images, by RPC, p50", tinyDisks), took, 0.5, imagesTime)}, nil
}
