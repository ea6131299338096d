package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// mounts attaches the file systems that user-data lists: device, folder, type, options. Fields
// 3 and 4 have cloud-init's defaults, auto and defaults,nofail.
func (m machine) mounts(entries [][]string) error {
	var problems []error
	for _, entry := range entries {
		if len(entry) < 2 || !strings.HasPrefix(entry[1], "/") {
			m.sayf("mounts: %q is skipped, it names no folder", strings.Join(entry, " "))
			continue
		}
		fsType, options := "auto", "defaults"
		if len(entry) > 2 {
			fsType = entry[2]
		}
		if len(entry) > 3 {
			options = entry[3]
		}
		if err := os.MkdirAll(m.path(entry[1]), 0o755); err != nil { //nolint:gosec // the guest's folders are public
			problems = append(problems, err)
			continue
		}
		if err := m.exec(command{"mount", "-t", fsType, "-o", withoutNoFail(options), entry[0], entry[1]}, m.console); err != nil {
			problems = append(problems, fmt.Errorf("mount %s on %s: %w", entry[0], entry[1], err))
		}
	}
	return errors.Join(problems...)
}

// withoutNoFail drops what only the boot process understands.
func withoutNoFail(options string) string {
	var kept []string
	for option := range strings.SplitSeq(options, ",") {
		if option != "nofail" && !strings.HasPrefix(option, "x-systemd.") {
			kept = append(kept, option)
		}
	}
	if len(kept) == 0 {
		return "defaults"
	}
	return strings.Join(kept, ",")
}

func (m machine) storeRunCmd(commands []command) error {
	data, err := json.Marshal(commands)
	if err != nil {
		return err
	}
	return m.writeFile(runCmdFile, data, 0o600)
}

// final runs the per-boot scripts, and at an instance's first boot its script or
// runcmd. Their output goes to the console and to cloud-init's usual log file.
func (m machine) final() error {
	log, err := os.OpenFile(m.path(outputFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640) //nolint:gosec // as cloud-init has it
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // a log of best effort
	output := io.MultiWriter(m.console, log)

	problems := []error{m.runScripts(output)}
	if _, err := os.Stat(m.path(firstBoot)); err == nil {
		problems = append(problems, m.runUserCommands(output))
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	m.sayf("final stage done")
	return nil
}

func (m machine) runScripts(output io.Writer) error {
	scripts, err := filepath.Glob(filepath.Join(m.path(perBootDir), "*"))
	if err != nil {
		return err
	}
	var commands []command
	for _, script := range scripts { // Glob sorts
		if info, err := os.Stat(script); err == nil && info.Mode()&0o111 != 0 {
			commands = append(commands, command{script})
		}
	}
	return m.runAll(commands, output)
}

func (m machine) runUserCommands(output io.Writer) error {
	data, err := os.ReadFile(m.path(runCmdFile))
	if err != nil {
		return err
	}
	var commands []command
	if err := json.Unmarshal(data, &commands); err != nil {
		return fmt.Errorf("%s: %w", runCmdFile, err)
	}
	if info, err := os.Stat(m.path(scriptFile)); err == nil && info.Size() > 0 {
		commands = append(commands, command{m.path(scriptFile)})
	}
	return m.runAll(commands, output)
}

// runAll runs every command, whatever became of those before it.
func (m machine) runAll(commands []command, output io.Writer) error {
	var problems []error
	for _, c := range commands {
		if err := m.exec(c, output); err != nil {
			problems = append(problems, fmt.Errorf("command %q: %w", strings.Join(c, " "), err))
		}
	}
	return errors.Join(problems...)
}
