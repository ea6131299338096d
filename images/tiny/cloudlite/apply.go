package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// machine is the guest that a seed is applied to.
type machine struct {
	root    string    // where its file system starts; "/" but in tests
	console io.Writer // what the person at the console sees
	exec    func(c command, output io.Writer) error
}

func execCommand(c command, output io.Writer) error {
	if len(c) == 0 {
		return errors.New("empty command")
	}
	cmd := exec.Command(c[0], c[1:]...) //nolint:noctx // ends with the guest; nothing could cancel it
	cmd.Stdout, cmd.Stderr = output, output
	return cmd.Run()
}

func (m machine) path(name string) string { return filepath.Join(m.root, name) }

func (m machine) sayf(format string, args ...any) {
	fmt.Fprintf(m.console, "cloudlite: "+format+"\n", args...) //nolint:errcheck // there is nowhere to report a dead console
}

// Where state passes from one stage and boot to the next.
const (
	instanceFile = "/var/lib/cloud/instance-id"
	scriptFile   = "/var/lib/cloud/script"
	runCmdFile   = "/var/lib/cloud/runcmd"
	perBootDir   = "/var/lib/cloud/scripts/per-boot"
	outputFile   = "/var/log/cloud-init-output.log"
	firstBoot    = "/run/tiny/first-boot"
	dhcpList     = "/run/tiny/dhcp-interfaces"
	hostnameSet  = "/run/tiny/hostname-set"
)

// local applies a seed before the network is up. Each part is tried even if
// another failed: a guest with a wrong file entry should still be reachable.
func (m machine) local(find func() (seed, error)) error {
	s, err := find()
	if errors.Is(err, errNoSeed) {
		m.sayf("%v; using defaults", err)
		return m.network(nil)
	}
	if err != nil {
		return errors.Join(err, m.network(nil))
	}
	meta, err := parseMetaData(s.metaData)
	problems := []error{err}
	user, err := parseUserData(s.userData)
	problems = append(problems, err)
	vendor, err := parseUserData(s.vendorData)
	problems = append(problems, err)
	user.config.complete(vendor.config)

	for _, key := range user.config.unknownKeys() {
		m.sayf("user-data: %s is not understood by this guest", key)
	}
	problems = append(problems,
		m.setHostname(meta, user.config),
		m.network(s.networkConfig),
		m.resolver(user.config),
		m.perInstance(meta, user),
		m.runAll(user.config.BootCmd, m.console), // which may make what is to be mounted
		m.mounts(user.config.Mounts),
	)
	if err := errors.Join(problems...); err != nil {
		return err
	}
	m.sayf("seed applied, instance %s", meta.InstanceID)
	return nil
}

func (m machine) setHostname(meta metaData, config cloudConfig) error {
	name := meta.LocalHostname
	for _, override := range []string{config.FQDN, config.Hostname} {
		if override != "" {
			name = override
		}
	}
	name, _, _ = strings.Cut(name, ".")
	if name == "" {
		return nil
	}
	if err := m.writeFile("/etc/hostname", []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	if err := m.writeFile(hostnameSet, nil, 0o644); err != nil {
		return err
	}
	if err := m.exec(command{"hostname", name}, m.console); err != nil {
		return fmt.Errorf("set hostname %q: %w", name, err)
	}
	return nil
}

// network applies static addresses and leaves the list of cards for DHCP, which
// are all of them when there is no configuration.
func (m machine) network(document []byte) error {
	present, err := cards(m.path("/sys/class/net"))
	if err != nil {
		return err
	}
	var problem error
	p := dhcpOnAll(present)
	if len(bytes.TrimSpace(document)) > 0 {
		if planned, err := planFrom(document, present); err != nil {
			problem = err // DHCP on all cards remains
		} else {
			p = planned
		}
	}
	for _, c := range p.commands {
		if err := m.exec(c, m.console); err != nil {
			problem = errors.Join(problem, fmt.Errorf("%s: %w", strings.Join(c, " "), err))
		}
	}
	if p.resolvConf != "" {
		problem = errors.Join(problem, m.writeFile("/etc/resolv.conf", []byte(p.resolvConf), 0o644))
	}
	for _, line := range p.summary {
		m.sayf("%s", line)
	}
	return errors.Join(problem, m.writeFile(dhcpList, lines(p.dhcp), 0o644))
}

// resolver overrules what the network's configuration says of resolvers.
func (m machine) resolver(config cloudConfig) error {
	if !config.ManageResolvConf || config.ResolvConf == nil {
		return nil
	}
	return m.writeFile("/etc/resolv.conf", []byte(config.ResolvConf.text()), 0o644)
}

func dhcpOnAll(present []card) plan {
	var p plan
	for _, c := range present {
		p.dhcp = append(p.dhcp, c.name)
	}
	return p
}

func planFrom(document []byte, present []card) (plan, error) {
	config, err := parseNetworkConfig(document)
	if err != nil {
		return plan{}, err
	}
	return planNetwork(config, present)
}

func lines(words []string) []byte {
	var b bytes.Buffer
	for _, word := range words {
		b.WriteString(word + "\n")
	}
	return b.Bytes()
}

// perInstance does what a disk that has seen this instance-id has done before.
func (m machine) perInstance(meta metaData, u userData) error {
	last, err := os.ReadFile(m.path(instanceFile))
	if err == nil && string(last) == meta.InstanceID {
		return nil
	}
	keys := slices.Concat(meta.PublicKeys, u.config.SSHAuthorizedKeys)
	problems := []error{m.authorize(keys)}
	for _, file := range u.config.WriteFiles {
		if err := m.writeEntry(file); err != nil {
			problems = append(problems, fmt.Errorf("write_files: %s: %w", file.Path, err))
		}
	}
	problems = append(problems,
		m.writeFile(scriptFile, u.script, 0o700),
		m.storeRunCmd(u.config.RunCmd),
		m.writeFile(instanceFile, []byte(meta.InstanceID), 0o644),
		m.writeFile(firstBoot, nil, 0o644),
	)
	return errors.Join(problems...)
}

func (m machine) authorize(keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	for _, home := range []struct {
		dir string
		uid int
	}{{"/root", 0}, {"/home/tiny", 1000}} {
		dir := filepath.Join(home.dir, ".ssh")
		if err := m.writeFile(filepath.Join(dir, "authorized_keys"), lines(keys), 0o600); err != nil {
			return err
		}
		if err := os.Chmod(m.path(dir), 0o700); err != nil { //nolint:gosec // a folder
			return err
		}
		for _, owned := range []string{home.dir, dir, filepath.Join(dir, "authorized_keys")} {
			if err := m.chown(owned, home.uid, home.uid); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m machine) writeEntry(f fileEntry) error {
	if !filepath.IsAbs(f.Path) {
		return errors.New("path is not absolute")
	}
	data, err := f.data()
	if err != nil {
		return err
	}
	perm := os.FileMode(0o644)
	if f.Permissions != 0 {
		perm = os.FileMode(f.Permissions)
	}
	if f.Append {
		before, err := os.ReadFile(m.path(f.Path))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		data = append(before, data...)
	}
	if err := m.writeFile(f.Path, data, perm); err != nil {
		return err
	}
	if f.Owner == "" {
		return nil
	}
	return m.chownByName(f.Path, f.Owner)
}

func (m machine) chownByName(path, owner string) error {
	userName, groupName, _ := strings.Cut(owner, ":")
	u, err := user.Lookup(userName)
	if err != nil {
		return err
	}
	gid := u.Gid
	if groupName != "" {
		g, err := user.LookupGroup(groupName)
		if err != nil {
			return err
		}
		gid = g.Gid
	}
	uidNumber, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gidNumber, err := strconv.Atoi(gid)
	if err != nil {
		return err
	}
	return m.chown(path, uidNumber, gidNumber)
}

// chown is for the real guest: tests run as anybody.
func (m machine) chown(path string, uid, gid int) error {
	if m.root != "/" {
		return nil
	}
	return os.Chown(path, uid, gid)
}

func (m machine) writeFile(name string, data []byte, perm os.FileMode) error {
	path := m.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the guest's folders are public
		return err
	}
	if err := os.WriteFile(path, data, perm); err != nil { //nolint:gosec // user-data may write anywhere in its guest
		return err
	}
	return os.Chmod(path, perm) // the umask, or an older mode
}
