#!/usr/bin/env bash
# Runs a command with the embedded cluster up. The last such run takes the cluster down, if it was such a run that started it.
# usage: tools/with_cluster.sh COMMAND [ARG...]
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p .olivine
exec 9>.olivine/users.lock
TEMPORARY=.olivine/temporary # there while the cluster is ours to take down; `make cluster` and `make demo` remove it

flock -x 9 # nobody else decides meanwhile whose cluster it is
[ -e .olivine/kubeconfig ] || touch "$TEMPORARY"
leave() {
  if flock -n -x 9 && [ -e "$TEMPORARY" ]; then
    rm "$TEMPORARY"
    .venv/bin/python -m devcluster down 9>&-
  fi
}
trap leave EXIT
.venv/bin/python -m devcluster up 9>&-
flock -s 9
"$@" 9>&-
