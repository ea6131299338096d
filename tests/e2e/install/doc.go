// Package install tests what docs/install.md says on a private cluster: Ambipod is
// applied from deploy/ with the image that `make images` builds, runs VM pods, is
// rolled while they run, and removed.
package install
