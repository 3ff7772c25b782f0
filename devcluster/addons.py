"""Add-ons: JobSet and Kueue, as their projects released them, with their webhooks. Not started unless they are asked for.

Their managers run beside the node as the cluster's admin; what they own in the API goes with them.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from devcluster import network, processes
from devcluster.api import ApiClient, Json
from devcluster.console import DevclusterError, say
from devcluster.gobuild import Release
from devcluster.paths import State
from devcluster.pki import Authority
from devcluster.processes import Daemon, wait_until
from devcluster.shell import run
from devcluster.slots import Slot

_READY_SECONDS = 60.0
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# Kueue reads the certificates of its metrics from a fixed place below /etc, where this machine has nothing of it.
_METRICS_CERTIFICATES = "/etc/kueue/metrics/certs"
_PRIVATE_ETC = 'mount -t tmpfs none /etc && mkdir -p "$2" && cp "$1"/* "$2" && shift 2 && exec "$@"'  # seen by this process alone


@dataclass(frozen=True)
class Addon:
    """A controller manager built with controller-runtime, with CRDs and webhooks."""

    release: Release
    port: int
    """Of its webhooks; the next one is that of its health."""
    config: dict[str, Any]
    kinds: frozenset[str]
    """The resources whose webhooks are registered."""
    only_labelled: dict[str, str] = field(default_factory=dict[str, str])
    """Resources of which a webhook sees only what carries a label, as the project's own kustomization has it."""

    @property
    def name(self) -> str:
        """As people write it."""
        return self.release.name


JOBSET = Addon(
    release=Release(
        "jobset", "sigs.k8s.io/jobset", "v0.12.0", "h1:YYPuV0px8Ongq/RXmJg6V0w2UC67aiR+rCMD06vhQQQ=", ".",
        "about 2 minutes with a cold build cache",
    ),
    port=9543,
    config={"apiVersion": "config.jobset.x-k8s.io/v1alpha1", "kind": "Configuration"},
    kinds=frozenset({"jobsets", "pods"}),
    only_labelled={"pods": "jobset.sigs.k8s.io/jobset-name"},
)  # fmt: skip
KUEUE = Addon(
    release=Release(
        "kueue", "sigs.k8s.io/kueue", "v0.19.2", "h1:mPNzr37u0nwI7ikST5QQl5gg6EgtYOAvC9ZbTgywdN8=", "./cmd/kueue",
        "about 6 minutes with a cold build cache",
    ),
    port=9643,
    config={
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "integrations": {"frameworks": ["batch/job", "jobset.x-k8s.io/jobset"]},
        # An API server of its own, for which there is no Service here.
        "featureGates": {"VisibilityOnDemand": False},
    },
    kinds=frozenset({"jobs", "jobsets", "clusterqueues", "cohorts", "localqueues", "resourceflavors", "workloads"}),
)  # fmt: skip
ADDONS = {addon.name: addon for addon in (JOBSET, KUEUE)}


def named(names: str) -> list[Addon]:
    """The add-ons of a comma-separated list."""
    wanted = [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in ADDONS]
    if unknown:
        raise DevclusterError(f"there is no add-on {unknown[0]!r}: choose from {', '.join(ADDONS)}")
    return [ADDONS[name] for name in wanted]


def start(state: State, slot: Slot, api: ApiClient, addon: Addon) -> None:
    """Starts an add-on unless it runs; returns when its webhooks answer."""
    running = processes.recorded(slot.processes).get(addon.name)
    if running is not None and running.alive():
        return
    folder = addon.release.recipe().build()
    say(f"starting {addon.name} {addon.release.version}")
    for crd in _crds(folder):
        _kubectl(state, "apply", "--server-side", "--force-conflicts", "-f", str(crd))
    names = [crd.stem.partition("_")[2] + "." + crd.stem.partition("_")[0] for crd in _crds(folder)]
    wait_until(f"the CRDs of {addon.name} are served", lambda: all(_established(api, name) for name in names), seconds=30)
    certificates = _certificates(state, slot, addon)
    daemon = _start_manager(state, slot, addon, folder, certificates)
    ask = f"c = http.client.HTTPConnection('127.0.0.1', {addon.port + 1}, timeout=2); c.request('GET', '/readyz')"
    probe = [*network.enter(slot), "python3", "-c", f"import http.client; {ask}; exit(c.getresponse().status != 200)"]
    wait_until(f"{addon.name} is ready", lambda: _succeeds(probe), seconds=_READY_SECONDS, watch=[daemon])
    for webhooks in _webhooks(state, slot, addon, folder):
        _kubectl(state, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(webhooks))


def stop(state: State, slot: Slot, addon: Addon) -> None:
    """Stops an add-on, and deletes its webhooks and CRDs, and with these all that was made of them."""
    folder = addon.release.recipe().build()
    for kind in ("mutatingwebhookconfiguration", "validatingwebhookconfiguration"):
        _kubectl(state, "delete", "--ignore-not-found", kind, f"{addon.name}-{kind}")
    # While the manager lives: it takes its finalizers off.
    for crd in _crds(folder):
        _kubectl(state, "delete", "--ignore-not-found", "--wait=true", "--timeout=60s", "-f", str(crd))
    processes.stop(slot.processes, addon.name)


def _start_manager(state: State, slot: Slot, addon: Addon, folder: Path, certificates: Path) -> Daemon:
    config = state.data / f"{addon.name}.json"
    config.write_text(
        json.dumps(
            {
                **addon.config,
                "health": {"healthProbeBindAddress": f"127.0.0.1:{addon.port + 1}"},
                "metrics": {"bindAddress": "0"},
                "webhook": {"port": addon.port, "certDir": str(certificates)},
                "leaderElection": {"leaderElect": False},
                "internalCertManagement": {"enable": False},
            },
            indent=1,
        )
    )
    private = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _PRIVATE_ETC, addon.name]
    argv = [*network.enter(slot), *private, certificates, _METRICS_CERTIFICATES, folder / addon.name]
    return processes.start(
        addon.name,
        [*argv, f"--config={config}", f"--kubeconfig={state.kubeconfig}"],
        records=slot.processes,
        log=state.log / f"{addon.name}.log",
    )


def _certificates(state: State, slot: Slot, addon: Addon) -> Path:
    """A folder with the webhooks' certificate under the names that controller-runtime looks for."""
    folder = state.data / f"{addon.name}-certificates"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    Authority.load(state.pki).server(addon.name, [slot.address])
    for ending in ("crt", "key"):
        shutil.copyfile(state.pki / f"{addon.name}.{ending}", folder / f"tls.{ending}")
    return folder


def _webhooks(state: State, slot: Slot, addon: Addon, folder: Path) -> list[Json]:
    """The project's webhooks for the resources that are here, addressed by URL: there is no Service before them."""
    bundle = Authority.load(state.pki).bundle()
    found: list[Json] = []
    for configuration in YAML(typ="safe", pure=True).load_all(folder / "config" / "components" / "webhook" / "manifests.yaml"):
        kept: list[Json] = []
        for webhook in configuration["webhooks"]:
            resources = {resource.partition("/")[0] for rule in webhook["rules"] for resource in rule["resources"]}
            if not resources <= addon.kinds:
                continue
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://{slot.address}:{addon.port}{path}", "caBundle": bundle}
            for resource in resources & addon.only_labelled.keys():
                labelled = {"key": addon.only_labelled[resource], "operator": "Exists"}
                webhook["objectSelector"] = {"matchExpressions": [labelled]}
            kept.append(webhook)
        kind = str(configuration["kind"])
        found.append({**configuration, "metadata": {"name": f"{addon.name}-{kind.lower()}"}, "webhooks": kept})
    return found


def _crds(folder: Path) -> list[Path]:
    return sorted((folder / "config" / "components" / "crd" / "bases").glob("*.yaml"))


def _established(api: ApiClient, name: str) -> bool:
    found = api.get(f"{_CRDS}/{name}")
    conditions = (found or {}).get("status", {}).get("conditions") or []  # null at first
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


def _succeeds(argv: Sequence[str]) -> bool:
    try:
        run(argv)
    except DevclusterError:
        return False
    return True


def _kubectl(state: State, *words: str, stdin: str | None = None) -> str:
    return run([state.bin / "kubectl", f"--kubeconfig={state.kubeconfig}", *words], stdin=stdin)
