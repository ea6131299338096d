//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// secondNetwork is a meta-plugin: it attaches a second network and reports the first
// alone, as Multus does. %s is where its leases are.
const secondNetwork = `#!/bin/sh
conf=$(cat)
bridge=/usr/lib/cni/bridge
first=$(printf %%s "$conf" | jq '.type = "bridge"')
second=$(printf %%s "$first" | jq '.name = "e2e-second" | .bridge = "e2e-second0" |
	.ipam = {type: "host-local", dataDir: "%s", subnet: "172.30.8.0/24"}')
case $CNI_COMMAND in
ADD | DEL) printf %%s "$second" | CNI_IFNAME=net1 $bridge >/dev/null || exit 1 ;;
esac
printf %%s "$first" | exec $bridge
`

// firstNetwork is the configuration for it.
const firstNetwork = `{"cniVersion": "1.0.0", "name": "e2e-first", "plugins": [{
	"type": "e2e-two-networks", "bridge": "e2e-first0", "isGateway": true, "hairpinMode": true,
	"ipam": {"type": "host-local", "dataDir": "%s", "subnet": "172.30.7.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
}]}`

// TestTwoNetworks: two VMs have two network cards each, and reach each other by both.
func TestTwoNetworks(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	plugin := filepath.Join(n.PluginDir(), "e2e-two-networks")
	must(t, os.WriteFile(plugin, fmt.Appendf(nil, secondNetwork, filepath.Join(n.Root(), "leases-second")), 0o755))
	t.Cleanup(func() { must(t, os.Remove(plugin)) })
	useNetwork(t, n, fmt.Sprintf(firstNetwork, filepath.Join(n.Root(), "leases-first")))
	var pods []*pod
	for range 2 { // they boot at the same time
		p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
		t.Cleanup(func() { p.removeAtEnd(t) })
		must(t, p.tryRun(t))
		pods = append(pods, p)
	}
	var addresses [2][2]string // of each VM's cards; the second is none of the pod's own
	for i, p := range pods {
		addresses[i][0] = p.ip(t)
		p.says(t, "ip -4 -o addr show dev eth0 | awk '{print $4}'; ip route | grep -c '^default via 172.30.7.1 dev eth0'", addresses[i][0]+"/24\n1\n")
		second := p.sync(t, "ip -4 -o addr show dev net1 | awk '{print $4}'")
		addresses[i][1] = strings.TrimSuffix(string(second.GetStdout()), "/24\n")
		if !strings.HasPrefix(addresses[i][1], "172.30.8.") || addresses[0][1] == addresses[1][1] {
			t.Fatalf("the second card's address is %q", second.GetStdout())
		}
	}
	cards := [2]string{"eth0", "net1"} // as CNI calls them
	for i, p := range pods {
		for card, address := range addresses[1-i] {
			p.says(t, fmt.Sprintf("ping -q -c 1 -I %s %s >/dev/null && wget -q -O - http://%[2]s/ | grep -o 'Hello from e2e-vm'", cards[card], address), "Hello from e2e-vm\n")
		}
	}
	for _, p := range pods {
		p.removeAtEnd(t)
	}
	removeBridge(t, n, "e2e-first0")
	removeBridge(t, n, "e2e-second0")
	nothingLeft(t, n)
}
