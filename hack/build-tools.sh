#!/usr/bin/env bash
# Builds the Go programs that Ambipod's demo, tests and lint run against, each
# at the version pinned by its own module under hack/tools, into _tools/bin.
#
# usage: hack/build-tools.sh NAME...
#   names: kubelet control-plane metrics-server csi-provisioner coredns containerd
#          crictl critest crane gotestsum golangci-lint
#   control-plane is kube-apiserver, kube-controller-manager, kube-scheduler,
#   kube-proxy and kubectl: one build of what they share.
#
# A tool is built again only when its module's go.mod or go.sum has changed.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
bin=$top/_tools/bin
mkdir -p "$bin"
export CGO_ENABLED=${CGO_ENABLED:-0} GOFLAGS=-buildvcs=false

# build MODULE STAMP COMMAND... runs COMMAND inside hack/tools/MODULE unless
# that module is the one which _tools/bin/.STAMP says was built last.
build() {
	local module=$1 stamp=$bin/.$2 sum started=$SECONDS
	shift 2
	cd "$top/hack/tools/$module"
	sum=$(cat go.mod go.sum | sha256sum)
	if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ]; then
		return
	fi
	printf 'building %s (a first build takes minutes) ...\n' "${stamp##*/.}"
	"$@"
	printf '%s\n' "$sum" >"$stamp"
	printf 'built %s in %d s\n' "${stamp##*/.}" $((SECONDS - started))
}

# Kubernetes components print and negotiate by these version fields; without
# them kubelet registers with an unparsable placeholder.
kubernetes_version() {
	local version major minor
	version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
	IFS=. read -r major minor _ <<<"${version#v}"
	local p=k8s.io/component-base/version
	printf -- '-s -w -X %s.gitVersion=%s -X %s.gitMajor=%s -X %s.gitMinor=%s' \
		$p "$version" $p "$major" $p "$minor"
}

kubernetes() {
	go build -trimpath -ldflags "$(kubernetes_version)" -o "$bin/" "${@/#/k8s.io/kubernetes/cmd/}"
}

containerd() {
	local v=github.com/containerd/containerd/v2
	local version
	version=$(go list -m -f '{{.Version}}' $v)
	go build -trimpath -ldflags "-s -w -X $v/version.Version=$version" -o "$bin/" \
		$v/cmd/containerd $v/cmd/containerd-shim-runc-v2 $v/cmd/ctr
}

for name; do
	case $name in
	kubelet) build kubernetes kubelet kubernetes kubelet ;;
	control-plane)
		build kubernetes control-plane kubernetes \
			kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl
		;;
	metrics-server)
		build metrics-server metrics-server \
			go build -trimpath -ldflags '-s -w' -o "$bin/" sigs.k8s.io/metrics-server/cmd/metrics-server
		;;
	csi-provisioner)
		# Its module has the versions of metrics-server's, so that most is compiled already.
		build csi-provisioner csi-provisioner \
			go build -trimpath -ldflags '-s -w' -o "$bin/" github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner
		;;
	coredns) build coredns coredns go build -trimpath -ldflags '-s -w' -o "$bin/" . ;;
	containerd) build containerd containerd containerd ;;
	crictl) build cri-tools crictl go build -trimpath -ldflags '-s -w' -o "$bin/" sigs.k8s.io/cri-tools/cmd/crictl ;;
	critest) build cri-tools critest go test -c -o "$bin/critest" sigs.k8s.io/cri-tools/cmd/critest ;;
	crane) build crane crane go build -trimpath -ldflags '-s -w' -o "$bin/" github.com/google/go-containerregistry/cmd/crane ;;
	gotestsum) build gotestsum gotestsum go build -trimpath -ldflags '-s -w' -o "$bin/" gotest.tools/gotestsum ;;
	golangci-lint) build golangci-lint golangci-lint go build -trimpath -ldflags '-s -w' -o "$bin/" github.com/golangci/golangci-lint/v2/cmd/golangci-lint ;;
	*)
		printf 'hack/build-tools.sh: unknown tool %q; see the list at the top of the script\n' "$name" >&2
		exit 2
		;;
	esac
done
