package nodelabels

import corev1 "k8s.io/api/core/v1"

// Labels of a node that runs VMs.
const (
	Capable = "vm.ambipod.io/capable" // "true"
	Accel   = "vm.ambipod.io/accel"   // "kvm" or "tcg", software emulation
	// Virtlet is the label by which Virtlet's manifests choose nodes.
	Virtlet = "extraRuntime" // "virtlet"
)

// Handler is the runtime handler of VM pods (CRI RunPodSandbox), which a kubelet
// reports in its node's status when criproxy serves it (KEP-3857).
const Handler = "vm"

// all are the labels that a Keeper owns.
var all = []string{Capable, Accel, Virtlet}

// wanted are the labels of a node whose VMs run by this accelerator; "" means that
// it runs none.
func wanted(accel string) map[string]string {
	if accel == "" {
		return nil
	}
	return map[string]string{Capable: "true", Accel: accel, Virtlet: "virtlet"}
}

// changes is what must be merged into a node's labels to make them as wanted; nil
// values remove.
func changes(node *corev1.Node, want map[string]string) map[string]*string {
	patch := map[string]*string{}
	for _, name := range all {
		value, has := node.Labels[name]
		wish, wished := want[name]
		switch {
		case wished && (!has || value != wish):
			patch[name] = &wish
		case !wished && has:
			patch[name] = nil
		}
	}
	return patch
}

// knowsHandler tells whether the node's kubelet can start VM pods.
func knowsHandler(node *corev1.Node) bool {
	for _, handler := range node.Status.RuntimeHandlers {
		if handler.Name == Handler {
			return true
		}
	}
	return false
}
