#!/usr/bin/env bash
# Checks Go code, its formatting and all shell scripts.
#
# usage: hack/lint.sh
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
export PATH=$top/_tools/bin:$PATH

status=0
# check NAME COMMAND... runs one check and goes on after a failure.
check() {
	local name=$1 started=$SECONDS
	shift
	printf '==> %s\n' "$name"
	if "$@"; then
		printf '    clean, %d s\n' $((SECONDS - started))
	else
		status=1
	fi
}

# scripts lists what a shell runs: *.sh and files with a shell's first line.
scripts() {
	find . \( -name '_*' -o -name .git -o -name testdata \) -prune -o -type f -print0 |
		while IFS= read -r -d '' file; do
			case ${file##*/} in
			*.sh) printf '%s\0' "$file" ;;
			*.*) ;;
			*) head -c 64 "$file" | head -n 1 | grep -Eqa '^#!.*\b(bash|sh)$' && printf '%s\0' "$file" ;;
			esac
		done
}

mapfile -d '' -t scripts < <(scripts)
check 'golangci-lint' golangci-lint run --build-tags integration,e2e,ceph,faults ./...
check 'formatting' golangci-lint fmt --diff
check 'shellcheck' shellcheck "${scripts[@]}"
exit $status
