#!/usr/bin/env bash
# Runs rings of tests one after another and closes with one line of counts.
#
# usage: hack/test.sh RING...
#   unit         no root, no daemons; race detector on
#   integration  files with the build tag integration: real daemons, as root
#   e2e          files with the build tag e2e: a real kubelet, as root;
#                the environment's E2E_RUN chooses tests by a regular expression
#   ceph         the e2e test that needs Ceph
#   faults       files with the build tag faults: every daemon killed, frozen and
#                misled, as root
#   faults-brief a part of it that takes three minutes
#   soak         SOAK_LIFECYCLES lives of VM pods, 500 unless set, with random faults
#                that SOAK_SEED chooses
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
results=$(mktemp -d "${TMPDIR:-/var/tmp}/ambipod-test.XXXXXX")
trap 'rm -rf "$results"' EXIT

# tagged TAG lists the test files that only this build tag brings in.
tagged() {
	grep -rlx --include='*_test.go' --exclude-dir='_*' --exclude-dir='.*' "//go:build $1" -- *
}

# go_test RING ARGUMENT... runs go test, shows failures and keeps its events.
go_test() {
	local ring=$1 started=$SECONDS
	shift
	printf '==> %s tests\n' "$ring"
	_tools/bin/gotestsum --format pkgname --format-hide-empty-pkg --hide-summary skipped \
		--jsonfile "$results/$ring.json" -- "$@" || failed=1
	printf '    %s tests took %d s\n' "$ring" $((SECONDS - started))
}

# tagged_ring TAG [RUN [OPTION...]] runs the tests of the tagged files and no others:
# those of the same packages without a tag belong to the unit ring.
tagged_ring() {
	local tag=$1 run=${2:-} files
	mapfile -t files < <(tagged "$tag")
	if [ ${#files[@]} -eq 0 ]; then
		printf 'hack/test.sh: no test file has the build tag %s\n' "$tag" >&2
		exit 1
	fi
	if [ -z "$run" ]; then
		run=$(sed -n 's/^func \(Test[A-Za-z0-9_]*\)(t \*testing\.T).*/\1/p' "${files[@]}" | sort -u | paste -sd '|')
	fi
	local packages
	mapfile -t packages < <(printf './%s\n' "${files[@]%/*}" | sort -u)
	# The machine may be small, and what a package starts waits for guests with one
	# processor each: two run at a time. Faults are timed, and have the machine alone.
	local packages_at_once=2
	[ "$tag" != faults ] || packages_at_once=1
	go_test "$tag" -tags "$tag" -p "$packages_at_once" -count 1 -timeout 40m -run "^($run)\$" "${@:3}" "${packages[@]}"
}

# summary counts tests; a package that fails without a failing test (it does not
# build, or leaks goroutines) counts as one.
summary() {
	cat "$results"/*.json | jq -rs '
		map(select(.Action == "pass" or .Action == "fail" or .Action == "skip")) |
		(map(select(.Test))) as $tests |
		([$tests[] | select(.Action == "fail") | .Package] | unique) as $explained |
		(map(select((.Test | not) and .Action == "fail" and (.Package as $p | $explained | index($p) | not)))
			| map(.Package) | unique | length) as $packages |
		($tests | map(.Action)) as $actions |
		"\($actions | map(select(. == "pass")) | length) passed, " +
		"\(($actions | map(select(. == "fail")) | length) + $packages) failed, " +
		"\($actions | map(select(. == "skip")) | length) skipped"'
}

failed=0
for ring; do
	case $ring in
	unit)
		go_test unit -race -timeout 10m ./...
		;;
	integration)
		tagged_ring integration
		;;
	e2e)
		tagged_ring e2e "${E2E_RUN:-}"
		;;
	ceph)
		go_test ceph -tags e2e,ceph -count 1 -timeout 20m -run '^TestFlexvolumesOnCeph$' ./tests/e2e
		;;
	faults)
		tagged_ring faults
		;;
	soak)
		export SOAK_LIFECYCLES=${SOAK_LIFECYCLES:-500} SOAK_SEED=${SOAK_SEED:-$RANDOM$RANDOM}
		printf '    %d lifecycles, SOAK_SEED=%s\n' "$SOAK_LIFECYCLES" "$SOAK_SEED"
		tagged_ring faults TestSoak
		;;
	faults-brief)
		tagged_ring faults '' -short
		;;
	*)
		printf 'hack/test.sh: unknown ring "%s"; see the list at the top of the script\n' "$ring" >&2
		exit 2
		;;
	esac
done
summary
exit $failed
