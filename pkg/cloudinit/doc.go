// Package cloudinit builds what a guest's cloud-init reads at boot: the documents
// of the NoCloud data source, and the ISO 9660 image that carries them.
//
// Nouns: a Config is all that the pod says about its guest; Files are the
// documents made of it, by path; meta-data names the instance, user-data says
// what to do in it, network-config how to reach it. Where cloud-init's rules are
// meant, its documentation is https://cloudinit.readthedocs.io, version 22.4 (the
// one of Debian 12) and later.
//
// Building documents is pure: equal Configs give equal bytes. Nothing here keeps
// state, so all functions may be called concurrently.
//
// Traps:
//
//   - Guests re-run first-boot work when the instance-id changes, and only then.
//   - YAML readers disagree about odd characters, so content of files that is not
//     plain text travels as base64.
//   - Renderers other than netplan ignore on-link routes, so that guests without it
//     reach a gateway outside their subnet by DHCP only; that for Debian's ifupdown
//     fails on routes without gateway. All others need set-name to know which
//     interface is meant.
//   - Writing the image stages its files in a private folder under os.TempDir,
//     because the library does. A daemon should point TMPDIR to a folder of its
//     own and empty it at start.
package cloudinit
