package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTableSaysWhetherTargetsAreMet(t *testing.T) {
	s := section{Name: "x", Title: "Title", Base: "direct", Ours: "criproxy", Rows: []row{
		ratioRow("slow", comparison{Base: 10, Ours: 13, Ratio: 1.3, Low: 1.1, High: 1.45, Samples: 7}, 1.2),
		ratioRow("fast", comparison{Base: 0.1, Ours: 0.15, Ratio: 1.5, Low: 1.5, High: 1.5, Samples: 9}, 2),
		ratioRow("without", comparison{Base: 100, Ours: 1234, Ratio: 12.34, Low: 1, High: 20, Samples: 1}, 0),
		memoryRow("memory", 31e6, idleMemory),
		differenceRow("start", pair{
			base: []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond},
			ours: []time.Duration{350 * time.Millisecond, 450 * time.Millisecond, 550 * time.Millisecond},
		}, 300),
		rateRow("rate", pair{
			base: []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond},
			ours: []time.Duration{125 * time.Millisecond, 250 * time.Millisecond, 300 * time.Millisecond},
		}, 50, "MB/s", 0.95),
	}}
	want := `### Title

| what | direct | criproxy | compared | spread | target | met | samples |
|---|---|---|---|---|---|---|---|
| slow | 10.0 ms | 13.0 ms | 1.30× | 1.10–1.45× | ≤ 1.20× | **no** | 7 |
| fast | 0.100 ms | 0.150 ms | 1.50× | 1.50–1.50× | ≤ 2.00× | yes | 9 |
| without | 100 ms | 1234 ms | 12.34× | 1.00–20.00× |  |  | 1 |
| memory |  | 31.0 MB |  |  | ≤ 30 MB | **no** | 1 |
| start | 200 ms | 450 ms | +250 ms | +250 … +250 ms | ≤ +300 ms | yes | 3 |
| rate | 250 MB/s | 200 MB/s | 0.80× | 0.80–1.00× | ≥ 0.95× | **no** | 3 |

`
	if diff := cmp.Diff(want, s.markdown()); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

// Where an operation takes less than one process more in the way does, the table has
// the price of that process instead of a target.
func TestShortOperationsAreShownBesideTheHop(t *testing.T) {
	of := func(milliseconds float64) []time.Duration {
		return []time.Duration{time.Duration(milliseconds * float64(time.Millisecond))}
	}
	s := section{Title: "Title", Base: "direct", Ours: "criproxy", Hop: "bytes", Rows: []row{
		operationRow("long", of(100), of(104), of(101)),
		operationRow("too long", of(100), of(106), of(101)),
		operationRow("short", of(0.5), of(1), of(0.75)),
	}}
	want := `### Title

| what | direct | criproxy | bytes | compared | spread | target | met | samples |
|---|---|---|---|---|---|---|---|---|
| long | 100 ms | 104 ms | 101 ms, 1.01× | 1.04× | 1.04–1.04× | ≤ 1.05× | yes | 1 |
| too long | 100 ms | 106 ms | 101 ms, 1.01× | 1.06× | 1.06–1.06× | ≤ 1.05× | **no** | 1 |
| short | 0.500 ms | 1.00 ms | 0.750 ms, 1.50× | 2.00× | 2.00–2.00× | the hop |  | 1 |

`
	if diff := cmp.Diff(want, s.markdown()); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

func TestSavedSectionHasMachineAndNumbers(t *testing.T) {
	dir := t.TempDir()
	s := section{Name: "x", Rows: []row{memoryRow("memory", 31e6, idleMemory)}}
	if err := s.save(dir, machine{CPU: "some CPU"}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "x.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Machine machine
		Rows    []row
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Machine.CPU != "some CPU" || len(got.Rows) != 1 || got.Rows[0].Value != 31 || got.Rows[0].Met == nil || *got.Rows[0].Met {
		t.Errorf("got %+v", got)
	}
}

func TestThisMachineIsDescribed(t *testing.T) {
	m, err := thisMachine()
	if err != nil {
		t.Fatal(err)
	}
	if m.Cores < 1 || m.Memory < 1<<20 || m.Kernel == "" || m.Load == "" {
		t.Errorf("got %+v", m)
	}
}

func TestStatusBytes(t *testing.T) {
	const status = "Name:\tcriproxy\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n"
	if got, err := statusBytes(status, "VmRSS:"); err != nil || got != 1<<20 {
		t.Errorf("got %d, %v", got, err)
	}
	if got, err := statusBytes(status, "VmSwap:"); err == nil {
		t.Errorf("a missing line gave %d", got)
	}
}

func TestEverySectionHasItsPlaceInThePage(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	docs := t.TempDir()
	if err := os.WriteFile(filepath.Join(docs, "benchmarks.md"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, part := range parts() {
		if err := (section{Name: part.name, Title: part.name}).document(docs, machine{}); err != nil {
			t.Error(err)
		}
	}
}
