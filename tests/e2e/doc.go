// Package e2e tests whole nodes: a real kubelet or crictl in front of criproxy,
// containerd and vmruntime, with real VMs. All of it has the build tag e2e and
// runs as root after hack/setup.sh; `make e2e` does both.
//
// Two nodes exist for the package's run, each started when the first test needs
// it: one with a kubelet, where tests write manifests, and one without, where
// tests are the only client of the CRI and nobody restarts or removes what they
// look at. Every test removes its pods and checks that nothing is left of them.
package e2e
