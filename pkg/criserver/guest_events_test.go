package criserver

import (
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/metadata"
)

// SeaBIOS resets the machine again after a guest's reset; what is measured is in
// guest_events.go.
func TestResetsOfOneRebootCountOnce(t *testing.T) {
	type reset struct{ at, used time.Duration }
	const ms = time.Millisecond
	for _, test := range []struct {
		name   string
		resets []reset
		want   uint64
	}{
		{"one", []reset{{0, 4 * time.Second}}, 1},
		{"of the firmware, at once", []reset{{0, 4000 * ms}, {90 * ms, 4040 * ms}, {91 * ms, 4041 * ms}}, 1},
		{"of the firmware, starved", []reset{{0, 4000 * ms}, {5900 * ms, 4060 * ms}, {6100 * ms, 4061 * ms}}, 1},
		{"of the firmware, told late", []reset{{0, 4000 * ms}, {90 * ms, 5500 * ms}}, 1},
		{"of a guest that boots in between", []reset{{0, 4000 * ms}, {90 * ms, 4040 * ms}, {9 * time.Second, 7000 * ms}, {9090 * ms, 7050 * ms}}, 2},
		{"of a guest that can do nothing else", []reset{{0, 0}, {1000 * ms, 300 * ms}, {2000 * ms, 600 * ms}, {3000 * ms, 900 * ms}, {4000 * ms, 1200 * ms}}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			var record metadata.Container
			began := time.Date(2026, 11, 21, 17, 53, 9, 0, time.UTC)
			counted := uint64(0)
			for _, r := range test.resets {
				if noteReset(&record, began.Add(r.at), r.used) {
					counted++
				}
			}
			if record.Reboots != test.want || counted != test.want {
				t.Errorf("%d resets are %d reboots, of which %d were reported; want %d", len(test.resets), record.Reboots, counted, test.want)
			}
			if first := test.resets[0]; test.want == 1 && (!record.RebootedAt.Equal(began.Add(first.at)) || record.RebootedCPU != first.used) {
				t.Errorf("the reboot is recorded at %s after %s of work", record.RebootedAt, record.RebootedCPU)
			}
		})
	}
}
