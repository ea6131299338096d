package main

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine describes where figures come from.
type machine struct {
	Date   string `json:"date"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory int64  `json:"memory_bytes"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Load   string `json:"load"` // averages over 1, 5 and 15 minutes at the start
}

func thisMachine() (machine, error) {
	m := machine{
		Date: time.Now().UTC().Format("2006-01-02 15:04 UTC"), Cores: runtime.NumCPU(), Go: runtime.Version(),
		CPU: "unknown CPU",
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	if name := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(cpuinfo); name != nil {
		m.CPU = string(name[1])
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	if m.Memory, err = statusBytes(string(meminfo), "MemTotal:"); err != nil {
		return m, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	const averages = 3
	m.Load = strings.Join(strings.Fields(string(load))[:averages], " ")
	return m, nil
}

func (m machine) String() string {
	return fmt.Sprintf("%s; %s, %d cores, %.0f GiB, Linux %s, %s; load average at the start %s",
		m.Date, m.CPU, m.Cores, float64(m.Memory)/(1<<30), m.Kernel, m.Go, m.Load)
}
