package libvirttools

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const logHead = `2026-11-21 10:02:41.405+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4 (Debian), qemu version: 7.2.13
LC_ALL=C \
PATH=/usr/bin \
/usr/bin/vmwrapper \
-name guest=ambipod-1,debug-threads=on \
-msg timestamp=on
2026-11-21 10:02:41.811+0000: Domain id=2 is tainted: custom-argv
`

func TestReadEnd(t *testing.T) {
	at := time.Date(2026, 11, 21, 10, 2, 43, 755e6, time.UTC)
	const finish = "2026-11-21 10:02:43.755+0000: shutting down, reason="
	for _, test := range []struct {
		name, log string
		want      End
	}{
		{"no log", "", End{Reason: ReasonUnknown}},
		{"guest powers off", logHead + finish + "shutdown\n", End{At: at, Reason: ReasonShutdown}},
		{
			"destroyed", logHead + "2026-11-21T10:02:42.146590Z qemu-system-x86_64: terminating on signal 15 from pid 6686 (/usr/sbin/libvirtd)\n" + finish + "destroyed\n",
			End{At: at, Reason: ReasonDestroyed, Words: "qemu-system-x86_64: terminating on signal 15 from pid 6686 (/usr/sbin/libvirtd)"},
		},
		{
			"crash with words and noise", logHead +
				"2026-11-21T10:02:42.1Z qemu-system-x86_64: warning: TCG doesn't support requested feature\none\ntwo\n\x1b[2Jthree\nmalloc(): corrupted\xff\n" + finish + "crashed\n",
			End{At: at, Reason: ReasonCrashed, Words: "two; [2Jthree; malloc(): corrupted?"},
		},
		{"only the last run counts", logHead + "old words\n" + finish + "crashed\n" + logHead, End{Reason: ReasonUnknown}},
		{"a reason of a later libvirt", logHead + finish + "bored\n", End{At: at, Reason: ReasonUnknown}},
		{"long words", logHead + strings.Repeat("x", 3*lastBytes) + "\n", End{Reason: ReasonUnknown, Words: "…" + strings.Repeat("x", lastBytes)}},
		{"a log whose beginning is out of reach", strings.Repeat("y", 10*logTail) + "\n" + finish + "crashed\n", End{At: at, Reason: ReasonCrashed}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vm.log")
			if err := os.WriteFile(path, []byte(test.log), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadEnd(path)
			if err != nil {
				t.Fatal(err)
			}
			if !got.At.Equal(test.want.At) || got.Reason != test.want.Reason || got.Words != test.want.Words {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
	if end, err := ReadEnd(filepath.Join(t.TempDir(), "absent")); err != nil || end != (End{Reason: ReasonUnknown}) {
		t.Errorf("without a log: %+v, %v", end, err)
	}
}
