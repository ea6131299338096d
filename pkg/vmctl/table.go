package vmctl

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"sigs.k8s.io/yaml"
)

// Formats of output, as kubectl calls them; FormatTable is the empty one.
const (
	FormatTable = ""
	FormatJSON  = "json"
	FormatYAML  = "yaml"
	FormatName  = "name"
)

// nothing stands for a value that there is none of, in tables.
const nothing = "-"

// WriteVMs prints VMs in one of the formats; ages are as of now.
func WriteVMs(to io.Writer, format string, vms []VM, now time.Time) error {
	switch format {
	case FormatTable:
		rows := [][]string{{"NAME", "ID", "STATE", "IP", "CPUS", "MEMORY", "IMAGE", "AGE", "RESTARTS", "REBOOTS"}}
		for _, vm := range vms {
			rows = append(rows, vm.row(now))
		}
		return writeTable(to, rows)
	case FormatName:
		for _, vm := range vms {
			if _, err := fmt.Fprintln(to, vm.Name()); err != nil {
				return err
			}
		}
		return nil
	}
	if vms == nil {
		vms = []VM{}
	}
	return WriteDocument(to, format, struct {
		Items []VM `json:"items"`
	}{vms})
}

func (v VM) row(now time.Time) []string {
	cpus, memory := nothing, nothing
	if v.CPUs > 0 {
		cpus, memory = fmt.Sprint(v.CPUs), size(v.MemoryBytes)
	}
	return []string{
		v.Name(), v.ShortID(), v.stateText(), orNothing(strings.Join(v.IPs, ",")), cpus, memory,
		orNothing(v.Image), age(now.Sub(v.CreatedAt)), fmt.Sprint(v.Restarts), fmt.Sprint(v.Reboots),
	}
}

func (v VM) stateText() string {
	switch {
	case v.ExitCode != nil:
		return fmt.Sprintf("%s (%d %s)", v.State, *v.ExitCode, v.Reason)
	case v.Reason != "":
		return fmt.Sprintf("%s (%s)", v.State, v.Reason)
	}
	return v.State
}

func orNothing(text string) string {
	if text == "" {
		return nothing
	}
	return text
}

// writeTable aligns columns; the first row has the titles.
func writeTable(to io.Writer, rows [][]string) error {
	const gap = 2
	w := tabwriter.NewWriter(to, 0, 0, gap, ' ', 0)
	for _, row := range rows {
		// Guests and servers choose some of the texts: no tabs, no control characters.
		for i := range row {
			row[i] = printable(row[i])
		}
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

// WriteDocument prints a value as JSON or YAML.
func WriteDocument(to io.Writer, format string, value any) error {
	document, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	switch format {
	case FormatJSON:
		document = append(document, '\n')
	case FormatYAML:
		if document, err = yaml.JSONToYAML(document); err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
	default:
		return fmt.Errorf("output format %q is none of json, yaml and name: %w", format, errdefs.ErrInvalidArgument)
	}
	_, err = to.Write(document)
	return err
}

// size is a number of bytes for people, in the units of Kubernetes.
func size(bytes int64) string {
	const unit = 1 << 10
	if bytes < unit {
		return fmt.Sprintf("%d", bytes)
	}
	value, prefix := float64(bytes), ""
	for _, p := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if value < unit {
			break
		}
		value, prefix = value/unit, p
	}
	if value == float64(int64(value)) {
		return fmt.Sprintf("%d%s", int64(value), prefix)
	}
	return fmt.Sprintf("%.1f%s", value, prefix)
}

// age is a duration in its two largest units, as kubectl shows it.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(d, 0); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/day)
	}
}
