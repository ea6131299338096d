// Cloudlite is the tiny guest's first-boot agent: a subset of cloud-init that
// fits into a few megabytes and starts at once even on an emulated CPU.
//
// It reads a NoCloud seed, an ISO 9660 file system labelled cidata, or OpenStack's
// config drive, labelled config-2, and knows of
//
//   - meta-data: instance-id, local-hostname, public-keys;
//   - user-data: a script ("#!") or a "#cloud-config" with hostname, fqdn,
//     ssh_authorized_keys, write_files, mounts, bootcmd, runcmd and resolv_conf;
//     gzip is unpacked;
//   - vendor-data: the same, for keys that user-data lacks;
//   - network-config version 2: ethernets matched by MAC address or name, with
//     set-name, dhcp4, addresses, routes, mtu and nameservers; and the like of it
//     in network_data.json.
//
// As with cloud-init, hostname, network, mounts and bootcmd are applied at each
// boot, and files, keys and runcmd once for each instance-id. What it does not
// know it names on the console instead of ignoring it in silence.
//
// It deliberately shares no code with pkg/cloudinit, which writes such seeds: it
// stands for the reader that Ambipod does not control.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

const usage = `usage: cloudlite grow|local|final
  grow   enlarge the root partition and file system to the size of the disk
  local  apply the seed before the network is up
  final  run the commands that the seed asks for`

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "cloudlite:", err)
		os.Exit(1) //nolint:forbidigo // main is where a process ends
	}
}

func run(args []string, console io.Writer) error {
	if len(args) != 1 {
		return errors.New(usage)
	}
	m := machine{root: "/", console: console, exec: execCommand}
	switch args[0] {
	case "grow":
		return growRoot()
	case "local":
		return m.local(findSeed)
	case "final":
		return m.final()
	default:
		return errors.New(usage)
	}
}
