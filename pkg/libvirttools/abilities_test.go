package libvirttools

import (
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
)

func TestParseAbilities(t *testing.T) {
	t.Parallel()
	const before, after = `<domainCapabilities><path>/q</path><domain>qemu</domain><arch>x86_64</arch>`, `</domainCapabilities>`
	for name, test := range map[string]struct {
		text string
		want Abilities
	}{
		"nothing said": {before + after, Abilities{}},
		"BIOS only":    {before + `<os supported='yes'><enum name='firmware'/><loader supported='yes'><enum name='secure'><value>no</value></enum></loader></os>` + after, Abilities{}},
		"UEFI":         {before + `<os supported='yes'><enum name='firmware'><value>efi</value></enum><loader supported='yes'><enum name='secure'><value>no</value></enum></loader></os>` + after, Abilities{UEFI: true}},
		"no loader":    {before + `<os supported='yes'><enum name='firmware'><value>efi</value></enum></os>` + after, Abilities{UEFI: true}},
		"secure":       {before + `<os supported='yes'><enum name='firmware'><value>bios</value><value>efi</value></enum><loader supported='yes'><enum name='secure'><value>yes</value><value>no</value></enum></loader></os>` + after, Abilities{UEFI: true, SecureBoot: true}},
		"processors": {
			before + `<cpu><mode name='host-model' supported='yes'><model>A</model></mode><mode name='custom' supported='yes'><model usable='yes'>qemu64</model><model usable='no'>EPYC</model></mode></cpu>` + after,
			Abilities{CPUModels: []string{"qemu64", "EPYC"}},
		},
		"secure no UEFI": {before + `<os supported='yes'><loader supported='yes'><enum name='secure'><value>yes</value></enum></loader></os>` + after, Abilities{}},
	} {
		if got, err := parseAbilities(test.text); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, test.want)
		}
	}
	if _, err := parseAbilities("<no"); !errdefs.IsDataLoss(err) {
		t.Errorf("no XML: %v", err)
	}
}
