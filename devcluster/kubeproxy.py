"""kube-proxy: the Services' addresses, by iptables inside the cluster's network namespace."""

import json

from devcluster import gobuild, network, processes
from devcluster.paths import State
from devcluster.pki import Authority
from devcluster.processes import Daemon
from devcluster.slots import Slot

NAME = "kube-proxy"


def issue(authority: Authority, state: State, server: str) -> None:
    """Makes its certificate and kubeconfig."""
    authority.client(NAME, f"system:{NAME}")
    authority.kubeconfig(NAME, server, state.kubeconfigs / NAME)


def start(state: State, slot: Slot) -> Daemon:
    """Starts it in the cluster's network."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": str(slot.pods),
        # Where the bridge bypasses iptables, a Service's answer finds its way back only through the node.
        "iptables": {"masqueradeAll": not network.bridge_is_filtered(slot)},
        "clientConnection": {"kubeconfig": str(state.kubeconfigs / NAME)},
        "hostnameOverride": slot.name,
        # Zero leaves the machine's own limits alone.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }
    path = state.data / f"{NAME}.json"
    path.write_text(json.dumps(config, indent=1))
    program = gobuild.kubernetes().build() / NAME
    argv = [*network.enter(slot), program, f"--config={path}"]
    return processes.start(NAME, argv, records=slot.processes, log=state.log / f"{NAME}.log")
