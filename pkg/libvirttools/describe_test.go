package libvirttools

import (
	"os"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"
)

func TestHideEnvironment(t *testing.T) {
	text, err := os.ReadFile("testdata/plain.xml")
	if err != nil {
		t.Fatal(err)
	}
	var described libvirtxml.Domain
	if err := described.Unmarshal(string(text)); err != nil {
		t.Fatal(err)
	}
	if described.QEMUCommandline == nil || len(described.QEMUCommandline.Envs) == 0 {
		t.Fatal("the golden file has no environment")
	}
	values := described.QEMUCommandline.Envs
	kept := make([]string, len(values))
	for i, variable := range values {
		kept[i] = variable.Value
	}
	hideEnvironment(&described)
	shown, err := described.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for i, value := range kept {
		if strings.Contains(shown, `value="`+value+`"`) || !strings.Contains(shown, `name="`+values[i].Name+`"`) {
			t.Errorf("variable %s with value %q: %s", values[i].Name, value, shown)
		}
	}
	hideEnvironment(&libvirtxml.Domain{}) // a domain without one
}
