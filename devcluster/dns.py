"""CoreDNS: names inside the cluster. There is nothing to forward other names to, so they fail at once."""

from devcluster import gobuild, network, processes
from devcluster.api import ApiClient, Json
from devcluster.paths import State
from devcluster.pki import Authority
from devcluster.processes import Daemon
from devcluster.slots import Slot

NAME = "coredns"
_PORTS = ({"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"})


def issue(authority: Authority, state: State, server: str) -> None:
    """Makes its certificate and kubeconfig."""
    authority.client(NAME, f"system:{NAME}")
    authority.kubeconfig(NAME, server, state.kubeconfigs / NAME)


def start(state: State, slot: Slot, api: ApiClient) -> Daemon:
    """Starts it on the bridge, and puts the Service kube-dns before it."""
    api.apply(*_objects(slot))
    corefile = state.data / "Corefile"
    # Short times: a test looks for a name seconds before its pod is there, and must see it seconds after.
    corefile.write_text(f""".:53 {{
  bind {slot.address}
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {state.kubeconfigs / NAME}
    ttl 2
  }}
  cache 2
}}
""")
    argv = [*network.enter(slot), gobuild.coredns().build() / NAME, "-conf", corefile]
    return processes.start(NAME, argv, records=slot.processes, log=state.log / f"{NAME}.log")


def _objects(slot: Slot) -> list[Json]:
    user = f"system:{NAME}"
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    group = "rbac.authorization.k8s.io"
    place = {"name": "kube-dns", "namespace": "kube-system"}
    return [
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": user}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": user},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": {"clusterIP": slot.dns_service, "ports": [*_PORTS]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**place, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [slot.address], "conditions": {"ready": True}}],
            "ports": [*_PORTS],
        },
    ]
