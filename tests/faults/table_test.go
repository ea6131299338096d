//go:build faults

package faults

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambipod/ambipod/tests/page"
)

// row is one line of the table.
type row struct {
	component, moment, fault string
	then                     string // what must be true beside the invariants
	brief                    bool   // part of the short table that every `make test` goes through
	run                      func(t *testing.T, r *rig, p *pod)
	kind                     kind // of the row's pod
	alone                    bool // without the witnesses, which it would end; no row comes after it that needs them
}

func (w row) name() string { return w.component + "/" + w.moment + "/" + w.fault }

// TestFaults goes through the table; with -short, through a part of it.
func TestFaults(t *testing.T) {
	r := theRig(t)
	var lines strings.Builder
	complete := !testing.Short()
	for _, w := range table() {
		if testing.Short() && !w.brief {
			continue
		}
		began := time.Now()
		ran := false
		passed := t.Run(w.name(), func(t *testing.T) {
			ran = true
			r.row(t, w)
		})
		complete = complete && ran && passed
		fmt.Fprintf(&lines, "| %s | %s | %s | %s | %.1f s |\n", w.component, w.moment, w.fault, w.then, time.Since(began).Seconds())
		if r.broken {
			t.Fatal("the rig is not what it was; the rows after this one would tell nothing")
		}
	}
	if complete {
		text := "| component | moment | fault | then, beside what is always true | took |\n|---|---|---|---|---|\n" + lines.String()
		if err := page.Replace(filepath.Join(r.n.Checkout(), "docs", "faults.md"), "written by make faults", text); err != nil {
			t.Error(err)
		}
	}
}

// table is the whole table, in the order of running.
func table() []row {
	var all []row
	for _, part := range [][]row{pointRows(), daemonRows(), guestRows(), stateRows(), cniRows()} {
		all = append(all, part...)
	}
	return append(all, rebootRow(), kubeletRow())
}

// row runs one line of the table.
func (r *rig) row(t *testing.T, w row) {
	if w.alone {
		r.dismissWitnesses(t)
	}
	before, err := r.snapshot(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if w.kind.name == "" {
		w.kind = sectorKind
	}
	p := r.pod(w.kind)
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), rowTime)
		defer cancel()
		if err := r.restore(ctx); err != nil {
			t.Error(err)
			r.broken = true
		}
		if err := p.remove(ctx); err != nil {
			t.Error(err)
		}
		short, cancelShort := context.WithTimeout(ctx, settleTime)
		defer cancelShort()
		if err := r.invariants(short, before); err != nil {
			t.Error(err)
			r.broken = true
		}
	}()
	w.run(t, r, p)
}

// settleTime is how long it may take until nothing is left of a row.

const settleTime = 30 * time.Second
