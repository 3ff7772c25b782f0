#!/usr/bin/env bash
# Lints the chart and renders it with default values, with the embedded cluster's, and with everything switched on. Needs $helm.
set -euo pipefail
cd "$(dirname "$0")/.."
chart=charts/olivine
everything="networkPolicy.egress.enabled=true,metrics.serviceMonitor.enabled=true,metrics.alerts.enabled=true,metrics.dashboard.enabled=true,lostPods.remove=true,policies[0].namespaceSelector.matchLabels.team=a"
check() {
  "$helm" lint --quiet --strict "$chart" "$@"
  "$helm" template olivine "$chart" -n olivine-system "$@" >/dev/null
}
check
check -f devcluster/values.yaml
check --set "$everything"
# What the schema refuses, helm must refuse.
if "$helm" template olivine "$chart" --set replica=2 >/dev/null 2>&1; then
  echo "the chart takes a value that it does not know" >&2
  exit 1
fi
