"""The node: containerd and kubelet, in a mount namespace of their own.

All that they mount disappears with their last process, and the paths that cannot be configured are the cluster's own.
"""

import json
import os
from pathlib import Path

from devcluster import gobuild, machine, network, processes
from devcluster.api import ApiClient
from devcluster.console import DevclusterError
from devcluster.paths import State
from devcluster.pki import Authority
from devcluster.processes import Daemon, wait_until
from devcluster.shell import run
from devcluster.slots import Slot

PAUSE_IMAGE = "olivine.local/pause:1"
CONTAINERD, KUBELET = "containerd", "kubelet"
# In the new mount namespace: mounts are shared among its members again, then our folders cover the fixed paths.
_COVER = 'mount --make-rshared / && while [ "$1" != -- ]; do mount --bind "$1" "$2" && shift 2 || exit 1; done; shift; exec "$@"'


def issue(authority: Authority, state: State, slot: Slot, server: str) -> None:
    """The node's two certificates: as a client of the API server, and as a server of logs and exec."""
    authority.client("node", f"system:node:{slot.name}", "system:nodes")
    authority.kubeconfig("node", server, state.kubeconfigs / "node")
    authority.server("kubelet", [slot.name, slot.address])


def socket(slot: Slot) -> Path:
    """containerd's socket; its folder is short because a socket's path may not be long."""
    return slot.run_dir / "containerd" / "containerd.sock"


def ctr(slot: Slot, *words: str | Path) -> str:
    """Runs containerd's own command line on the images and containers of Kubernetes."""
    return run(["ctr", "--address", socket(slot), "--namespace", "k8s.io", *words])


def start_containerd(state: State, slot: Slot) -> Daemon:
    """Starts containerd in the cluster's network and in a new mount namespace."""
    covers: list[str | Path] = []
    sources = (slot.run_dir / "containerd", state.data / "kubelet", state.data / "cni-results", state.data / "container-links")
    for source, target in zip(sources, machine.MOUNT_POINTS, strict=True):
        source.mkdir(parents=True)
        covers += [source, target]
    config = state.data / "containerd.toml"
    config.write_text(_containerd_config(state, slot))
    (state.data / "cni").mkdir()
    (state.data / "cni" / "10-olivine.conflist").write_text(json.dumps(_cni_config(state, slot)))
    private = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _COVER, "node"]
    argv = [*network.enter(slot), *private, *covers, "--", "containerd", "-c", config]
    daemon = processes.start(CONTAINERD, argv, records=slot.processes, log=state.log / f"{CONTAINERD}.log")
    wait_until("containerd answers", lambda: socket(slot).is_socket() and _answers(slot), seconds=60, watch=[daemon])
    return daemon


def start_kubelet(state: State, slot: Slot, containerd: Daemon) -> Daemon:
    """Starts kubelet beside containerd."""
    config = state.data / "kubelet.json"
    config.write_text(json.dumps(_kubelet_config(state, slot), indent=1))
    namespaces = ["nsenter", f"--net={slot.namespace}", f"--mount=/proc/{containerd.pid}/ns/mnt", "--"]
    program = gobuild.kubernetes().build() / "kubelet"
    options = [
        f"--config={config}",
        f"--kubeconfig={state.kubeconfigs / 'node'}",
        f"--hostname-override={slot.name}",
        f"--node-ip={slot.address}",
    ]
    return processes.start(KUBELET, [*namespaces, program, *options], records=slot.processes, log=state.log / f"{KUBELET}.log")


def ready(api: ApiClient, slot: Slot) -> bool:
    """Whether the node is there and says that it takes pods."""
    found = api.get(f"/api/v1/nodes/{slot.name}")
    conditions = found["status"].get("conditions", []) if found else []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def kill_shims(slot: Slot) -> None:
    """Ends the containers' keepers, which outlive containerd by design. Their command line names our socket."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0].endswith("containerd-shim-runc-v2") and str(socket(slot)) in words:
            pid = int(folder.name)
            began = processes.start_time(pid)
            if began is not None:
                os.kill(pid, 9)
                wait_until(
                    f"container keeper {pid} has ended", lambda pid=pid, began=began: processes.start_time(pid) != began, seconds=10
                )


def _answers(slot: Slot) -> bool:
    try:
        ctr(slot, "version")
    except DevclusterError:
        return False
    return True


def _cni_config(state: State, slot: Slot) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": str(slot.pods), "rangeStart": str(slot.pods[10]), "gateway": slot.address}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(state.data / "addresses"),
    }
    bridge = {
        "type": "bridge",
        "bridge": network.BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": addresses,
    }
    return {"cniVersion": "0.4.0", "name": "olivine", "plugins": [bridge]}


def _containerd_config(state: State, slot: Slot) -> str:
    return f"""version = 2
root = "{state.data / "containerd"}"
state = "{slot.run_dir / "containerd" / "state"}"
oom_score = 0
[grpc]
  address = "{socket(slot)}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state.data / "cni"}"
"""


def _kubelet_config(state: State, slot: Slot) -> dict[str, object]:
    pki = state.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{slot.name}",
        "enforceNodeAllocatable": ["pods"],
        "address": slot.address,
        "port": 10250,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{socket(slot)}",
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        # A development machine's disk is its owner's business: nothing is evicted or collected for it.
        "localStorageCapacityIsolation": False,
        "evictionHard": {
            "nodefs.available": "0%",
            "imagefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "memory.available": "50Mi",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "oomScoreAdj": 0,
        "resolvConf": "",
        "clusterDNS": [slot.dns_service],
        "clusterDomain": "cluster.local",
        "podLogsDir": str(state.log / "pods"),
        "volumePluginDir": str(state.data / "volume-plugins"),
        "registerNode": True,
    }
