package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// spec is what became of one of critest's tests.
type spec struct {
	Name   string `json:"name"`
	State  string `json:"state"`            // Ginkgo's word: passed, failed, skipped, panicked …
	Reason string `json:"reason,omitempty"` // why it did not pass, one line
}

// suite is one run of critest.
type suite struct {
	critest  string    // the program
	network  string    // the network namespace to run in
	endpoint string    // the socket of the CRI server under test
	dir      string    // for files that specs make
	log      string    // file for critest's output
	seed     int       // of the specs' order
	progress io.Writer // gets a line now and then
}

// run returns what became of each spec. A failed spec is no error.
func (s suite) run(ctx context.Context) ([]spec, error) {
	report := filepath.Join(s.dir, "report.json")
	log, err := os.Create(s.log)
	if err != nil {
		return nil, fmt.Errorf("run critest: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+s.network, s.critest,
		"-config", filepath.Join(s.dir, "no-such-file"), // or else it reads the machine's
		"-runtime-endpoint", "unix://"+s.endpoint,
		"-ginkgo.json-report", report,
		"-ginkgo.v", "-ginkgo.no-color",
		fmt.Sprintf("-ginkgo.seed=%d", s.seed))
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "TMPDIR="+s.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("run critest: %w", err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run critest: %w", err)
	}
	copied := s.follow(io.TeeReader(out, log))
	ended := cmd.Wait()
	failed := (*exec.ExitError)(nil)
	if ended != nil && !errors.As(ended, &failed) {
		return nil, errors.Join(fmt.Errorf("run critest: %w", ended), copied)
	}
	specs, err := readReport(report)
	if err != nil {
		return nil, fmt.Errorf("critest ended (%w) without a report, see %s: %w", errors.Join(ended, copied), s.log, err)
	}
	return specs, nil
}

// follow reads critest's output and says how many specs are done.
func (s suite) follow(out io.Reader) error {
	const every = 10
	done := 0
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !isResult(lines.Text()) {
			continue
		}
		if done++; done%every == 0 {
			_, _ = fmt.Fprintf(s.progress, "    %d specs done\n", done)
		}
	}
	// Whatever the lines are, critest must be able to write on.
	_, err := io.Copy(io.Discard, out)
	return errors.Join(lines.Err(), err)
}

// isResult says whether a line of Ginkgo's output ends a spec.
func isResult(line string) bool {
	return strings.HasPrefix(line, "• [") || strings.HasPrefix(line, "S [SKIPPED]")
}

// ginkgoReport is the part of Ginkgo's JSON report that matters here.
type ginkgoReport struct {
	SpecReports []struct {
		ContainerHierarchyTexts []string
		LeafNodeType            string
		LeafNodeText            string
		State                   string
		Failure                 struct{ Message string }
	}
}

func readReport(path string) ([]spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read critest's report: %w", err)
	}
	var reports []ginkgoReport
	if err := json.Unmarshal(data, &reports); err != nil {
		return nil, fmt.Errorf("read critest's report: %w", err)
	}
	var specs []spec
	for _, report := range reports {
		for _, s := range report.SpecReports {
			reason, _, _ := strings.Cut(strings.TrimSpace(s.Failure.Message), "\n")
			// What critest's own filter leaves out (benchmarks) has no reason.
			if s.LeafNodeType != "It" || s.State == "skipped" && reason == "" {
				continue
			}
			name := strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
			specs = append(specs, spec{Name: name, State: s.State, Reason: reason})
		}
	}
	if len(specs) == 0 {
		return nil, fmt.Errorf("critest's report has no spec: %w", errdefs.ErrDataLoss)
	}
	return specs, nil
}
