package annotations

import (
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// CPU is a processor as libvirt describes it (formatdomain, "CPU model and topology"),
// less what follows from the pod's limits.
type CPU struct {
	Mode       string       `json:"mode"`
	Match      string       `json:"match"`
	Check      string       `json:"check"`
	Migratable string       `json:"migratable"`
	Model      CPUModel     `json:"model"`
	Vendor     string       `json:"vendor"`
	Features   []CPUFeature `json:"features"`
}

// CPUModel is a name from libvirt's CPU map.
type CPUModel struct {
	Value    string `json:"value"`
	Fallback string `json:"fallback"`
}

// CPUFeature is a name from libvirt's CPU map and what to do about it.
type CPUFeature struct {
	Policy string `json:"policy"`
	Name   string `json:"name"`
}

func parseCPU(value string) (*CPU, error) {
	cpu := &CPU{}
	if err := yaml.UnmarshalStrict([]byte(value), cpu); err != nil {
		return nil, fmt.Errorf("cannot be read (%s)", strings.Join(strings.Fields(err.Error()), " "))
	}
	return cpu, nil
}
