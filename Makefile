# Ambipod: containers and virtual machines under one kubelet.
# `make help` lists the targets. All of them need root and Debian 12, and install
# what they need by hack/setup.sh.
VERSION ?= 0.1.0~dev
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo up cluster down build test unit integration e2e ceph faults conformance bench images deb lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## run a container pod and a VM pod on a private node, show both, remove all
	@hack/setup.sh demo
	@_build/bin/node demo

up: ## start a private node, print how to use it, write _run/env
	@hack/setup.sh demo
	@_build/bin/node up

cluster: ## start a private cluster of one node, print how to use it, write _run/env
	@hack/setup.sh cluster
	@_build/bin/node up --cluster

down: ## remove what `make up` or `make cluster` started; ALL=1: killed tests' nodes too
	@if [ -x _build/bin/node ]; then _build/bin/node down $(if $(ALL),--all); else echo "No node is up."; fi

build: ## build Ambipod's programs and images into _build/bin and _tools/images
	@hack/setup.sh demo

test: ## run all tests: unit, integration, end-to-end, the most telling faults
	@hack/setup.sh test
	@hack/test.sh unit integration e2e faults-brief

unit: ## run the tests that need neither root nor daemons, with the race detector
	@hack/setup.sh test
	@hack/test.sh unit

integration: ## run the tests with real libvirtd, QEMU, CNI plugins and containerd
	@hack/setup.sh test
	@hack/test.sh integration

e2e: ## run the tests with a real kubelet; E2E_RUN=REGEXP chooses some
	@hack/setup.sh test
	@hack/test.sh e2e

ceph: ## run the test of VMs with disks in a private Ceph cluster (3 min)
	@hack/setup.sh ceph
	@hack/test.sh ceph

faults: ## kill, freeze and mislead every part of a node at every moment (15 min)
	@hack/setup.sh test
	@hack/test.sh faults

soak: ## 500 lives of VM pods with random faults (20 min); SOAK_LIFECYCLES, SOAK_SEED
	@hack/setup.sh test
	@hack/test.sh soak

conformance: ## compare critest against containerd with critest through criproxy
	@hack/setup.sh test
	@hack/build-tools.sh critest
	@go build -o _build/bin/conformance ./tests/conformance
	@unshare --ipc _build/bin/conformance

bench: ## measure what criproxy and vmruntime cost
	@hack/setup.sh test
	@go test -run '^$$' -bench . ./pkg/proxy
	@go run ./tests/bench

images: ## build the container image of the node's daemons, _build/images/node.tar
	@hack/setup.sh images
	@images/node/build.sh _tools/images/packages.tar.gz _build/images/node.tar
	@echo "Made _build/images/node.tar, an OCI archive."

deb: ## build the Debian package of criproxy into _build
	@CGO_ENABLED=0 go build -trimpath -ldflags '-X main.version=$(VERSION)' -o _build/bin/ ./cmd/criproxy
	@deploy/debian/build.sh "$(VERSION)" _build

lint: ## check Go code and shell scripts
	@hack/setup.sh lint
	@hack/lint.sh

clean: down ## remove all that was built, pinned tools too
	rm -rf _build _tools _run
