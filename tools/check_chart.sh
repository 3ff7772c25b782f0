#!/usr/bin/env bash
# Lints the chart and renders it with default and with the embedded cluster's values. Needs $helm.
set -euo pipefail
cd "$(dirname "$0")/.."
"$helm" lint --quiet --strict charts/olivine
"$helm" template olivine charts/olivine -n olivine-system >/dev/null
"$helm" template olivine charts/olivine -n olivine-system -f devcluster/values.yaml >/dev/null
