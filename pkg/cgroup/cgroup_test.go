package cgroup

import "testing"

func TestPath(t *testing.T) {
	for _, c := range []struct{ name, parent, want string }{
		{"cgroupfs driver", "/kubepods/burstable/pod12", "/kubepods/burstable/pod12/ambipod-c1"},
		{"systemd driver", "kubepods-burstable-pod12.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12.slice/ambipod-c1"},
		{"systemd driver with a path", "/kubepods.slice/kubepods-pod12.slice", "/kubepods.slice/kubepods-pod12.slice/ambipod-c1"},
		{"no parent", "", "/ambipod-c1"},
		{"a parent that climbs", "../../x", "/x/ambipod-c1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Path(c.parent, "c1"); got != c.want {
				t.Errorf("Path(%q) = %q, want %q", c.parent, got, c.want)
			}
		})
	}
}

func TestLimitsSpec(t *testing.T) {
	cpu := Limits{Shares: 512, Quota: 150000, Period: 100000, CPUSet: "0-1", MemSet: "0"}.spec().CPU
	if *cpu.Shares != 512 || *cpu.Quota != 150000 || *cpu.Period != 100000 || cpu.Cpus != "0-1" || cpu.Mems != "0" {
		t.Errorf("all set: %+v", cpu)
	}
	cpu = Limits{}.spec().CPU
	if cpu.Shares != nil || *cpu.Quota != -1 || cpu.Period != nil || cpu.Cpus != "" {
		t.Errorf("nothing set: %+v", cpu)
	}
}
