"""The control plane: etcd, API server, controller manager and scheduler as one process.

By itself it needs no root and no network namespace: `with ControlPlane(folder) as plane:` gives tests a real API server.
"""

import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from devcluster import gobuild, processes
from devcluster.api import ApiClient
from devcluster.paths import State
from devcluster.pki import Authority
from devcluster.processes import Daemon, wait_until

NAME = "allinone"
_ADMINS = "system:masters"
_SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
_READY_SECONDS = 90.0


@dataclass(frozen=True)
class Settings:
    """Where a control plane listens, and what its cluster's networks are."""

    address: str
    bind: str
    port: int
    etcd_ports: tuple[int, int]
    services: str
    api_service: str
    records: Path
    enter: Sequence[str] = ()
    node: bool = True

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{self.port}"


def loopback(state: State) -> Settings:
    """A control plane of its own on 127.0.0.1, at ports that are free now, without a node."""
    port, client, peer = _free_ports(3)
    return Settings("127.0.0.1", "127.0.0.1", port, (client, peer), "10.90.0.0/22", "10.90.0.1", state.processes, node=False)


def issue(state: State, settings: Settings) -> Authority:
    """Makes the certificates and kubeconfigs of the control plane's own parts and of the admin."""
    authority = Authority.create(state.pki)
    authority.token_key()
    authority.server("apiserver", [settings.address, "127.0.0.1", settings.api_service, "localhost", *_SERVICE_NAMES])
    authority.client("admin", "admin", _ADMINS)
    authority.client("kubelet-client", "kube-apiserver-kubelet-client", _ADMINS)
    authority.client("front-proxy", "front-proxy")
    for name in ("kube-controller-manager", "kube-scheduler"):
        authority.client(name, f"system:{name}")
        authority.kubeconfig(name, settings.server, state.kubeconfigs / name)
    authority.kubeconfig("admin", settings.server, state.kubeconfig)
    return authority


def start(state: State, settings: Settings, *, dies_with_parent: bool = False) -> Daemon:
    """Starts the process and waits until the API server is ready and pods would be let in."""
    program = gobuild.kubernetes().build() / NAME
    # SIGKILL of a test run must not leave a control plane behind.
    guard = ["setpriv", "--pdeathsig", "TERM", "--"] if dies_with_parent else []
    argv = [*guard, *settings.enter, program, *_flags(state, settings)]
    daemon = processes.start(NAME, argv, records=settings.records, log=state.log / f"{NAME}.log")
    api = ApiClient(settings.server, state.pki)
    wait_until("the API server is ready", api.ready, seconds=_READY_SECONDS, watch=[daemon])
    # Without it every pod is refused.
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    wait_until("the default ServiceAccount is there", lambda: api.get(account) is not None, seconds=60, watch=[daemon])
    return daemon


def _flags(state: State, settings: Settings) -> list[str]:
    pki = state.pki
    client_port, peer_port = settings.etcd_ports
    etcd = {"data-dir": state.data / "etcd", "client-port": client_port, "peer-port": peer_port}
    apiserver = {
        "etcd-servers": f"http://127.0.0.1:{client_port}",
        "bind-address": settings.bind,
        "advertise-address": settings.address,
        "secure-port": settings.port,
        "cert-dir": pki,
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "client-ca-file": pki / "ca.crt",
        "kubelet-client-certificate": pki / "kubelet-client.crt",
        "kubelet-client-key": pki / "kubelet-client.key",
        "kubelet-certificate-authority": pki / "ca.crt",
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-key-file": pki / "sa.pub",
        "service-account-signing-key-file": pki / "sa.key",
        "service-cluster-ip-range": settings.services,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "profiling": "false",
        "requestheader-client-ca-file": pki / "ca.crt",
        "requestheader-allowed-names": "front-proxy",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": pki / "front-proxy.crt",
        "proxy-client-key-file": pki / "front-proxy.key",
    }
    if not settings.node:
        # An endpoint on a loopback address is refused.
        apiserver["endpoint-reconciler-type"] = "none"
    alone = {"leader-elect": "false", "secure-port": 0, "profiling": "false"}
    manager = {
        **alone,
        "kubeconfig": state.kubeconfigs / "kube-controller-manager",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": pki / "sa.key",
        "root-ca-file": pki / "ca.crt",
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
    }
    scheduler = {"leader-elect": "false", "secure-port": 0, "kubeconfig": state.kubeconfigs / "kube-scheduler"}
    words: list[str] = []
    for part in (etcd, apiserver, manager, scheduler):
        words += [*(["--"] if words else []), *(f"--{key}={value}" for key, value in part.items())]
    return words


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; they are held together, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


class ControlPlane:
    """A control plane for as long as the `with` block lasts; it also ends with the thread that started it."""

    def __init__(self, state_dir: Path) -> None:
        self.state = State(state_dir.resolve())

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig."""
        return self.state.kubeconfig

    def __enter__(self) -> "ControlPlane":
        start_alone(self.state, dies_with_parent=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stop_alone(self.state)


def start_alone(state: State, *, dies_with_parent: bool = False) -> Daemon:
    """Starts a control plane on the loopback address; one that fails to start leaves nothing behind but its log."""
    stop_alone(state)
    settings = loopback(state)
    issue(state, settings)
    try:
        return start(state, settings, dies_with_parent=dies_with_parent)
    except BaseException:
        stop_alone(state)
        raise


def stop_alone(state: State) -> None:
    """Stops it, and deletes its data."""
    processes.stop(state.processes, NAME, grace_seconds=0)
    processes.stop_strays(state.processes)
    if state.data.exists():
        shutil.rmtree(state.data)
    state.kubeconfig.unlink(missing_ok=True)
