"""Brings a cluster up and takes it down, from whatever state it is found in."""

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from devcluster import (
    addons,
    cgroups,
    contents,
    controlplane,
    dns,
    images,
    kubeproxy,
    machine,
    network,
    node,
    objects,
    processes,
    release,
    s3,
    slots,
)
from devcluster.addons import Addon
from devcluster.api import ApiClient
from devcluster.artifacts import build_all
from devcluster.clients import clients
from devcluster.console import DevclusterError, say
from devcluster.locks import exclusive
from devcluster.paths import State
from devcluster.processes import wait_until
from devcluster.slots import Slot

_CORE = (controlplane.NAME, node.CONTAINERD, node.KUBELET, kubeproxy.NAME, dns.NAME)
_BUSY = "another command works on this cluster; waiting for it"
_PATIENCE_SECONDS = 60.0


def up(state: State, *, with_operator: bool = True, with_addons: Sequence[Addon] = ()) -> None:
    """Makes the cluster run as the checkout describes it; what already runs is only refreshed."""
    machine.check()
    build_all(addons=with_addons)
    with exclusive(state.lock, _BUSY):
        if processes.recorded(state.processes):
            raise DevclusterError(f"a control plane alone runs in {state.root}: end it by `down`, or choose another --state")
        slot = slots.find(state.root)
        if slot is not None and _recovers(state, slot):
            say(f"cluster {slot.name} is up already")
            start_s3(state, slot)
        else:
            if slot is not None:
                say(f"cluster {slot.name} is not whole: it is taken down and started again")
            _remove(state, slot)
            slot = slots.claim(state.root)
            try:
                _start(state, slot)
            except BaseException:
                say("the start failed: what was started is taken down; the logs stay")
                _remove(state, slot, keep_logs=True)
                raise
        loaded = images.load(slot)
        objects.upload(s3.Access.read(state))
        for addon in with_addons:
            addons.start(state, slot, api_client(state, slot), addon)
        if with_operator:
            release.install(state, loaded)


def up_control_plane(state: State) -> None:
    """Makes a control plane alone run on the loopback address."""
    build_all(control_plane_only=True)
    with exclusive(state.lock, _BUSY):
        if slots.find(state.root) is not None:
            raise DevclusterError(f"a whole cluster runs in {state.root}: end it by `down`, or choose another --state")
        daemon = processes.recorded(state.processes).get(controlplane.NAME)
        if daemon is not None and daemon.alive():
            say("the control plane is up already")
            return
        _remove(state, None)
        controlplane.start_alone(state)
        _link_clients(state)


def down(state: State) -> None:
    """Removes every trace but the logs; a cluster that is not there is nothing to remove."""
    if not state.root.exists() and slots.find(state.root) is None:
        slots.forget_dead()
        return
    with exclusive(state.lock, _BUSY):
        _remove(state, slots.find(state.root), keep_logs=True)
        slots.forget_dead()
        state.temporary.unlink(missing_ok=True)
        state.lock.unlink()
        if not any(state.root.iterdir()):
            state.root.rmdir()


def healthy(state: State, slot: Slot) -> bool:
    """Whether every part lives and the API server and the node say that they are ready."""
    api = api_client(state, slot)
    return _alive(state, slot) and api.ready() and node.ready(api, slot)


def _alive(state: State, slot: Slot) -> bool:
    daemons = processes.recorded(slot.processes)
    return state.kubeconfig.exists() and all(name in daemons and daemons[name].alive() for name in _CORE)


def _recovers(state: State, slot: Slot) -> bool:
    """Whether the cluster is healthy; one whose parts all live gets time: a machine that just woke up or is busy is slow to say so."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _alive(state, slot) and time.monotonic() < deadline:
        if healthy(state, slot):
            return True
        time.sleep(0.5)
    return False


def start_s3(state: State, slot: Slot) -> None:
    """Starts the S3 server unless it runs."""
    daemon = processes.recorded(slot.processes).get(s3.NAME)
    if daemon is None or not daemon.alive():
        s3.start(state, slot, s3.Access.read(state))


def require(state: State) -> Slot:
    """The slot of the running cluster, or the sentence that there is none."""
    slot = slots.find(state.root)
    if slot is None:
        raise DevclusterError(f"no cluster with a node runs in {state.root}: start it by `up`")
    return slot


def api_client(state: State, slot: Slot) -> ApiClient:
    """A client of the cluster's API server, as its admin."""
    return ApiClient(_settings(slot).server, state.pki)


def start_addons(state: State, wanted: Sequence[Addon]) -> None:
    """Starts those that do not run."""
    build_all(addons=wanted)
    with exclusive(state.lock, _BUSY):
        slot = require(state)
        for addon in wanted:
            addons.start(state, slot, api_client(state, slot), addon)


def stop_addons(state: State, wanted: Sequence[Addon]) -> None:
    """Stops them, and deletes what they serve."""
    with exclusive(state.lock, _BUSY):
        slot = require(state)
        for addon in wanted:
            addons.stop(state, slot, addon)


def grant(state: State, namespace: str) -> None:
    """Lets trainer pods run in a namespace."""
    slot = require(state)
    contents.grant(api_client(state, slot), slot, s3.Access.read(state), namespace)


def _settings(slot: Slot) -> controlplane.Settings:
    return controlplane.Settings(
        address=slot.address,
        bind="0.0.0.0",
        port=6443,
        etcd_ports=(2379, 2380),
        services=str(slot.services),
        api_service=slot.api_service,
        records=slot.processes,
        enter=network.enter(slot),
    )


def _start(state: State, slot: Slot) -> None:
    say(f"starting cluster {slot.name} (logs: {state.log})")
    settings = _settings(slot)
    network.create(slot)
    cgroups.create(slot.name)
    authority = controlplane.issue(state, settings)
    node.issue(authority, state, slot, settings.server)
    kubeproxy.issue(authority, state, settings.server)
    dns.issue(authority, state, settings.server)
    api = ApiClient(settings.server, state.pki)
    access = s3.configure(state, slot)
    _link_clients(state)

    def control_plane() -> None:
        controlplane.start(state, settings)
        say("the API server is ready")

    def container_runtime() -> None:
        node.start_containerd(state, slot)
        images.load_pause(slot)
        images.load(slot)

    def store() -> None:
        s3.start(state, slot, access)
        objects.upload(access)
        say("the S3 server is ready and has the base model and the examples' rows")

    _together(control_plane, container_runtime, store)
    daemons = processes.recorded(slot.processes)
    kubelet = node.start_kubelet(state, slot, daemons[node.CONTAINERD])
    proxy = kubeproxy.start(state, slot)
    names = dns.start(state, slot, api)
    for team in contents.TEAMS:
        contents.grant(api, slot, access, team)
    contents.prepare_operator(api, slot)
    wait_until(f"node {slot.name} is ready", lambda: node.ready(api, slot), seconds=90, watch=[kubelet, proxy, names])
    say(f"node {slot.name} is ready")


def _together(*tasks: Callable[[], None]) -> None:
    """Runs tasks at the same time; returns, or raises the first error, when all have ended."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
    for future in futures:
        future.result()


def _link_clients(state: State) -> None:
    state.bin.mkdir(exist_ok=True)
    for name in ("kubectl", "helm"):
        link = state.bin / name
        link.unlink(missing_ok=True)
        link.symlink_to(clients().build() / name)


def _remove(state: State, slot: Slot | None, *, keep_logs: bool = False) -> None:
    """Ends and deletes what is there, pods first; each step also does for a cluster that died in the middle."""
    if slot is None:
        processes.stop(state.processes, controlplane.NAME, grace_seconds=0)
        processes.stop_strays(state.processes)
    else:
        for name in (*addons.ADDONS, node.KUBELET, kubeproxy.NAME, dns.NAME):
            processes.stop(slot.processes, name)
        cgroups.kill(slot.name)
        processes.stop(slot.processes, node.CONTAINERD)
        node.kill_shims(slot)
        # A container that was just being made is only sure to be over now that nobody can make another.
        cgroups.kill(slot.name)
        # These two would put their data in order first; it is deleted in a moment.
        s3.stop(slot, grace_seconds=0)
        processes.stop(slot.processes, controlplane.NAME, grace_seconds=0)
        processes.stop_strays(slot.processes)
        # An unrecorded containerd may have gone on making containers until now.
        node.kill_shims(slot)
        cgroups.kill(slot.name)
        network.remove(slot)
        cgroups.remove(slot.name)
        slots.release(slot)
    for path in (state.data, state.bin, *([] if keep_logs else [state.log])):
        if path.exists():
            shutil.rmtree(path)
    state.s3_env.unlink(missing_ok=True)
    state.kubeconfig.unlink(missing_ok=True)
