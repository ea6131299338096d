package annotations

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// cpuModel is how names in libvirt's CPU map look.
var cpuModel = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

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
	return cpu, cpu.check()
}

// check refuses words that libvirt would not take.
func (c *CPU) check() error {
	for _, word := range []struct {
		field, value string
		allowed      []string
	}{
		{"mode", c.Mode, []string{"custom", "host-model", "host-passthrough", "maximum"}},
		{"match", c.Match, []string{"minimum", "exact", "strict"}},
		{"check", c.Check, []string{"none", "partial", "full"}},
		{"migratable", c.Migratable, []string{"on", "off"}},
		{"fallback", c.Model.Fallback, []string{"allow", "forbid"}},
	} {
		if word.value != "" && !slices.Contains(word.allowed, word.value) {
			return fmt.Errorf("has the %s %q, which is none of %s", word.field, word.value, strings.Join(word.allowed, ", "))
		}
	}
	for _, name := range []string{c.Model.Value, c.Vendor} {
		if name != "" && !cpuModel.MatchString(name) {
			return fmt.Errorf("has the name %q, which cannot be in libvirt's CPU map", name)
		}
	}
	policies := []string{"force", "require", "optional", "disable", "forbid"}
	for _, feature := range c.Features {
		if !cpuModel.MatchString(feature.Name) || feature.Policy != "" && !slices.Contains(policies, feature.Policy) {
			return fmt.Errorf("has the feature %q with the policy %q, which is none of %s", feature.Name, feature.Policy, strings.Join(policies, ", "))
		}
	}
	return nil
}
