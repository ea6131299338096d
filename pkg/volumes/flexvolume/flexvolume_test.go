package flexvolume

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// volume is a folder as the driver leaves it.
func volume(t *testing.T, options string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), vendor, "data")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, optionsFile), []byte(options), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// As kubelet 1.37 hands them over.
const fromKubelet = `"kubernetes.io/fsType":"","kubernetes.io/pod.name":"vm","kubernetes.io/pvOrVolumeName":"data",`

func TestRead(t *testing.T) {
	for _, test := range []struct {
		text string
		want Options
	}{
		{`{` + fromKubelet + `"kubernetes.io/readwrite":"rw","type":"qcow2","capacity":"512MiB","part":"1"}`, Options{Type: QCOW2, Capacity: 512 << 20}},
		{`{"kubernetes.io/readwrite":"rw","type":"qcow2"}`, Options{Type: QCOW2, Capacity: 1024000000}},
		{`{"type":"qcow2","capacity":"2 gb","uuid":"123"}`, Options{Type: QCOW2, Capacity: 2000000000}},
		{`{"type":"qcow2","capacity":"4096"}`, Options{Type: QCOW2, Capacity: 4096}},
		{`{"kubernetes.io/readwrite":"ro","type":"raw","path":"/dev/loop0"}`, Options{Type: Raw, Path: "/dev/loop0", Part: 1, ReadOnly: true}},
		{`{"type":"raw","path":"/dev/disk/by-id/x","part":"0"}`, Options{Type: Raw, Path: "/dev/disk/by-id/x"}},
		{`{"type":"ceph","monitor":"10.0.0.1:6789,[fd00::1]:3300","user":"libvirt","secret":"a2V5","pool":"p","volume":"v.1","uuid":"1","protocol":"rbd"}`, Options{
			Type: Ceph, Part: 1, RBD: RBD{Monitors: "10.0.0.1:6789,[fd00::1]:3300", Pool: "p", Image: "v.1", User: "libvirt", Key: "a2V5"},
		}},
		{`{"type":"ceph","monitor":"mon","pool":"p","volume":"v","part":"0"}`, Options{Type: Ceph, RBD: RBD{Monitors: "mon", Pool: "p", Image: "v"}}},
	} {
		if got, err := Read(volume(t, test.text)); err != nil || got != test.want {
			t.Errorf("%s is %+v, %v; want %+v", test.text, got, err, test.want)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for text, says := range map[string][]string{
		`[]`:                                {"data", "cannot read"},
		`{}`:                                {"data", `type ""`, "qcow2"},
		`{"type":"nfs"}`:                    {"data", `"nfs"`},
		`{"type":"qcow2","capacty":"1"}`:    {"data", "capacty", "capacity"},
		`{"type":"qcow2","capacity":"1PX"}`: {"data", `"1PX"`, "unit"},
		`{"type":"qcow2","capacity":"0"}`:   {"data", `"0"`},
		`{"type":"qcow2","capacity":"-1"}`:  {"data", `"-1"`},
		`{"type":"qcow2","capacity":"99999999999TiB"}`: {"data", "too much"},
		`{"type":"raw"}`: {"data", `path ""`},
		`{"type":"raw","path":"/dev/../etc/shadow"}`:                                          {"data", "/dev/../etc/shadow"},
		`{"type":"raw","path":"/etc/shadow"}`:                                                 {"data", "/etc/shadow", "/dev"},
		`{"type":"raw","path":"/dev/loop0","part":"first"}`:                                   {"data", `"first"`},
		`{"type":"raw","path":"/dev/loop0","part":"129"}`:                                     {"data", `"129"`},
		`{"type":"ceph","pool":"p","volume":"v"}`:                                             {"data", `monitor ""`},
		`{"type":"ceph","monitor":"m:0","pool":"p","volume":"v"}`:                             {"data", `monitor "m:0"`},
		`{"type":"ceph","monitor":"m,","pool":"p","volume":"v"}`:                              {"data", `monitor "m,"`},
		`{"type":"ceph","monitor":"fd00::1","pool":"p","volume":"v"}`:                         {"data", `monitor "fd00::1"`},
		`{"type":"ceph","monitor":"m","volume":"v"}`:                                          {"data", `pool ""`},
		`{"type":"ceph","monitor":"m","pool":"p","volume":"v:conf=/etc/shadow"}`:              {"data", `volume "v:conf=/etc/shadow"`},
		`{"type":"ceph","monitor":"m","pool":"p","volume":"v","user":"a b","secret":"a2V5"}`:  {"data", `user "a b"`},
		`{"type":"ceph","monitor":"m","pool":"p","volume":"v","user":"u"}`:                    {"data", "secret"},
		`{"type":"ceph","monitor":"m","pool":"p","volume":"v","secret":"a2V5"}`:               {"data", "secret"},
		`{"type":"ceph","monitor":"m","pool":"p","volume":"v","user":"u","secret":"no base"}`: {"data", "secret"},
		`{"type":"ceph","monitor":"m","pool":"p","volume":"v","part":"x"}`:                    {"data", `"x"`},
	} {
		_, err := Read(volume(t, text))
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", text, err)
			continue
		}
		for _, word := range says {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %s", text, err, word)
			}
		}
	}
	if _, err := Read(t.TempDir()); !errdefs.IsNotFound(err) {
		t.Errorf("a folder without options: %v", err)
	}
}

// A link in the folder leads nowhere.
func TestReadStaysInTheFolder(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte(`{"type":"qcow2"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, optionsFile)); err != nil {
		t.Fatal(err)
	}
	if options, err := Read(dir); err == nil {
		t.Errorf("read %+v through a link", options)
	}
}

func TestVolumeName(t *testing.T) {
	if name, ours := VolumeName("/var/lib/kubelet/pods/1/volumes/virtlet~flexvolume_driver/data"); name != "data" || !ours {
		t.Errorf("got %s, %t", name, ours)
	}
	if _, ours := VolumeName("/var/lib/kubelet/pods/1/volumes/other~driver/data"); ours {
		t.Error("a volume of another driver is taken for one of ours")
	}
}

// driverSays runs the installed driver and returns the status that it answers.
func driverSays(t *testing.T, program string, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), program, args...).Output()
	var answer struct{ Status string }
	if jsonErr := json.Unmarshal(output, &answer); jsonErr != nil {
		t.Fatalf("%q answers %q, %v: %v", args, output, err, jsonErr)
	}
	if (answer.Status == "Success") != (err == nil) {
		t.Errorf("%q answers %q and ends with %v", args, output, err)
	}
	return answer.Status
}

func TestInstall(t *testing.T) {
	plugins := filepath.Join(t.TempDir(), "plugins")
	program := filepath.Join(plugins, vendor, name)
	for range 2 {
		if err := Install(plugins); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(program, []byte("an older one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Install(plugins); err != nil {
		t.Fatal(err)
	}
	for call, want := range map[string]string{"init": "Success", "attach": "Not supported", "": "Not supported"} {
		if got := driverSays(t, program, call); got != want {
			t.Errorf("%q is answered %q, want %q", call, got, want)
		}
	}
	if files, err := os.ReadDir(filepath.Dir(program)); err != nil || len(files) != 1 {
		t.Errorf("kubelet finds %v, %v", files, err)
	}
}
