// Package faults kills, freezes, starves and misleads every part of a private node
// at every moment that matters, and looks each time at the same things afterwards.
//
// Nouns. A row is one line of the table: a component, a moment, a fault. The rig is
// the node on which all rows run one after another: libvirtd, vmruntime built with
// fail points, criproxy, containerd. The witnesses are a VM pod and a
// container pod that no row touches: they must go on running through all of them.
// Foreign are domains, a network and files of libvirt's that are not Ambipod's.
//
// A row's pod is treated as kubelet treats one (pod.sync): it looks at the lists,
// does what is missing and begins anew after an error, until the pod is what it
// should be.
//
// Guests are those of tests/bootsector, unless a row needs a kernel in its guest.
package faults
