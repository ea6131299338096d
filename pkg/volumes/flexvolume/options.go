// Package flexvolume understands the flexvolumes of manifests that were written for
// Virtlet (driver "virtlet/flexvolume_driver").
//
// Nouns: the driver is a program that kubelet calls to mount a volume; it does nothing
// but leave the volume's options in the folder that it mounts, where Read finds them.
//
// Functions may be called concurrently. The options are a pod author's and
// trusted in nothing: what of the node a raw volume may name is the caller's to decide.
package flexvolume

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Types of volumes.
const (
	QCOW2 = "qcow2" // a new disk, which ends with the VM
	Raw   = "raw"   // a block device of the node
	Ceph  = "ceph"  // an RBD image
)

// Options is what a flexvolume says.
type Options struct {
	Type     string // QCOW2, Raw or Ceph
	Capacity int64  // of QCOW2, in bytes
	Path     string // of Raw, below /dev
	RBD      RBD    // of Ceph
	Part     int    // of Raw and Ceph: which partition to mount, 0 for the whole disk
	ReadOnly bool
}

// RBD is an image in a pool of a Ceph cluster.
type RBD struct {
	Monitors    string // HOST or HOST:PORT, several with commas between them
	Pool, Image string
	User, Key   string // the key in base64; both empty for a cluster that wants none
}

const (
	optionsFile = "options.json"
	maxOptions  = 64 << 10

	// Virtlet's defaults.
	defaultCapacity = 1024 * 1000 * 1000
	defaultPart     = 1
	maxPart         = 128
)

// cephName is what pools, images and users may be called: QEMU and Ceph give a meaning
// to other characters.
var cephName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// known are Virtlet's options; kubelet adds its own.
var known = []string{
	"type", "capacity", "part", "path", // ours, too
	"uuid", "monitor", "pool", "volume", "secret", "user", "protocol", // of Ceph
}

// VolumeName is the name, in the pod's spec, of the volume whose folder this is; false
// for a folder that is none of this driver's.
func VolumeName(folder string) (string, bool) {
	return filepath.Base(folder), filepath.Base(filepath.Dir(folder)) == vendor
}

// Read returns the options that the driver left in a volume's folder.
//
// Errors: errdefs.ErrInvalidArgument that names option and value,
// errdefs.ErrNotFound when the driver left nothing.
func Read(folder string) (Options, error) {
	text, err := readOptions(folder)
	if err != nil {
		return Options{}, fmt.Errorf("options of flexvolume %s: %w", filepath.Base(folder), err)
	}
	options, err := parse(text)
	if err != nil {
		return Options{}, fmt.Errorf("flexvolume %s: %w", filepath.Base(folder), err)
	}
	return options, nil
}

func readOptions(folder string) (_ []byte, err error) {
	file, err := os.OpenInRoot(folder, optionsFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("kubelet's driver left none, is another program installed as %s/%s: %w: %w", vendor, name, err, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return io.ReadAll(io.LimitReader(file, maxOptions))
}

func parse(text []byte) (Options, error) {
	var given map[string]string
	if err := json.Unmarshal(text, &given); err != nil {
		return Options{}, fmt.Errorf("cannot read its options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(known, key) && !strings.HasPrefix(key, "kubernetes.io/") {
			return Options{}, invalid("option %s is unknown, known are %s", key, strings.Join(known, ", "))
		}
	}
	options := Options{Type: given["type"], ReadOnly: given["kubernetes.io/readwrite"] == "ro"}
	var err error
	switch options.Type {
	case QCOW2:
		err = options.parseCapacity(given)
	case Raw:
		err = options.parseRaw(given)
	case Ceph:
		err = options.parseCeph(given)
	default:
		err = invalid("its type %q is none of %s, %s and %s", options.Type, QCOW2, Raw, Ceph)
	}
	return options, err
}

func (o *Options) parseCapacity(given map[string]string) error {
	o.Capacity = defaultCapacity
	value, present := given["capacity"]
	if !present {
		return nil
	}
	var err error
	if o.Capacity, err = parseBytes(value); err != nil {
		return invalid("its capacity %q %s; allowed is a number with a unit of libvirt's such as 1024MB or 2GiB", value, err)
	}
	return nil
}

func (o *Options) parseRaw(given map[string]string) error {
	o.Path = given["path"]
	if path.Clean(o.Path) != o.Path || !strings.HasPrefix(o.Path, "/dev/") {
		return invalid("its path %q is not that of a device below /dev", o.Path)
	}
	return o.parsePart(given)
}

func (o *Options) parseCeph(given map[string]string) error {
	o.RBD = RBD{Monitors: given["monitor"], Pool: given["pool"], Image: given["volume"], User: given["user"], Key: given["secret"]}
	for monitor := range strings.SplitSeq(o.RBD.Monitors, ",") {
		if host, port, err := net.SplitHostPort(WithPort(monitor)); err != nil || host == "" || !isPort(port) {
			return invalid("its monitor %q is not HOST or HOST:PORT, or several with commas between them", o.RBD.Monitors)
		}
	}
	for _, name := range []struct{ option, value string }{{"pool", o.RBD.Pool}, {"volume", o.RBD.Image}, {"user", o.RBD.User}} {
		if !cephName.MatchString(name.value) && (name.option != "user" || name.value != "") {
			return invalid("its %s %q must be letters, digits, dots, dashes and underscores", name.option, name.value)
		}
	}
	if key, err := base64.StdEncoding.DecodeString(o.RBD.Key); err != nil || (len(key) == 0) != (o.RBD.User == "") {
		return invalid("its secret must be the key of its user, as Ceph's keyring has it, and stand there with a user alone")
	}
	return o.parsePart(given)
}

// monitorPort is where a monitor listens that names none.
const monitorPort = "6789"

// WithPort is a monitor with its port.
func WithPort(monitor string) string {
	if _, _, err := net.SplitHostPort(monitor); err != nil && !strings.Contains(monitor, ":") {
		return net.JoinHostPort(monitor, monitorPort)
	}
	return monitor
}

func isPort(text string) bool {
	port, err := strconv.ParseUint(text, 10, 16)
	return err == nil && port > 0
}

func (o *Options) parsePart(given map[string]string) error {
	o.Part = defaultPart
	value, present := given["part"]
	if !present {
		return nil
	}
	var err error
	if o.Part, err = strconv.Atoi(value); err != nil || o.Part < 0 || o.Part > maxPart {
		return invalid("its part %q is not a number of a partition from 1 to %d, or 0 for the whole disk", value, maxPart)
	}
	return nil
}

var amount = regexp.MustCompile(`^([0-9]+) *([A-Za-z]*)$`)

// units are libvirt's (formatstorage, "capacity"), in lower case.
var units = map[string]int64{
	"": 1, "b": 1, "byte": 1, "bytes": 1,
	"kb": 1000, "k": 1 << 10, "kib": 1 << 10,
	"mb": 1000 * 1000, "m": 1 << 20, "mib": 1 << 20,
	"gb": 1000 * 1000 * 1000, "g": 1 << 30, "gib": 1 << 30,
	"tb": 1000 * 1000 * 1000 * 1000, "t": 1 << 40, "tib": 1 << 40,
}

func parseBytes(text string) (int64, error) {
	const most = 1 << 60
	parts := amount.FindStringSubmatch(strings.TrimSpace(text))
	if parts == nil {
		return 0, errors.New("is no amount")
	}
	unit, found := units[strings.ToLower(parts[2])]
	if !found {
		return 0, errors.New("has an unknown unit")
	}
	number, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || number == 0 || number > most/unit {
		return 0, errors.New("is zero or too much")
	}
	return number * unit, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
