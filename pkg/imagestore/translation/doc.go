// Package translation reads the files with which an administrator says what short
// image names mean: Virtlet's image name translation, in its file format.
//
//	prefix: my-prefix                # optional: only names my-prefix/… are meant
//	translations:
//	- name: cirros                   # this name exactly, or …
//	  url: https://example.org/cirros.img
//	- regexp: 'centos/(\d+)-(\d+)'   # … all that contain a match
//	  url: 'https://example.org/$1/centos-$2.qcow2'
//	  transport: slow
//	transports:
//	  slow:                          # "" is the profile of rules that name none
//	    timeout: 30000               # milliseconds for the whole download, 0 = none
//	    maxRedirects: 1
//	    proxy: http://proxy.example:8080
//	    tls:
//	      certificates: [{cert: PEM, key: PEM}]
//	      serverName: example.org
//	      insecure: false
//
// Which rule counts, if several match a name: exact names go before regular
// expressions; then the longer prefix, then the earlier folder, then the file name
// in alphabetical order, then the order within the file.
//
// A file with an error is not used, and does not keep the others from being used.
// Files are read again when one of them changes. Names that begin with a dot are
// skipped, as kubelet's ConfigMap volumes need it.
//
// A Source may be used concurrently; tables and targets never change.
package translation
