"""Slots: each cluster with a node has a number on its machine, and every name and address follows from it."""

import ipaddress
import json
import os
import shutil
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster import machine
from devcluster.console import DevclusterError
from devcluster.locks import exclusive
from devcluster.paths import REGISTRY
from devcluster.processes import write_whole
from devcluster.shell import run

COUNT = 64


@dataclass(frozen=True)
class Slot:
    """The names and addresses of cluster `number`."""

    number: int

    @property
    def name(self) -> str:
        """The node's, the network namespace's and the cgroup's name."""
        return f"olivine-{self.number}"

    @property
    def run_dir(self) -> Path:
        """Sockets and process records: short paths, gone after a reboot, found even where the state folder was deleted."""
        return REGISTRY / str(self.number)

    @property
    def processes(self) -> Path:
        """The process records."""
        return self.run_dir / "processes"

    @property
    def namespace(self) -> Path:
        """The network namespace."""
        return Path("/run/netns") / self.name

    @property
    def host_link(self) -> str:
        """The host's end of the link."""
        return f"olv-{self.number}"

    @property
    def pods(self) -> ipaddress.IPv4Network:
        """The pods' network."""
        return ipaddress.IPv4Network(f"10.88.{self.number}.0/24")

    @property
    def services(self) -> ipaddress.IPv4Network:
        """The Services' network."""
        return ipaddress.IPv4Network(f"10.90.{4 * self.number}.0/22")

    @property
    def link(self) -> ipaddress.IPv4Network:
        """Between the host (.2) and the cluster (.1)."""
        return ipaddress.IPv4Network(f"10.89.{self.number}.0/30")

    @property
    def address(self) -> str:
        """The bridge: node, API server, name server and S3, as the host and pods see them."""
        return str(self.pods[1])

    @property
    def api_service(self) -> str:
        """The Service of the API server, in every cluster the network's first."""
        return str(self.services[1])

    @property
    def dns_service(self) -> str:
        """The Service of the name server."""
        return str(self.services[10])

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network, ...]:
        """Everything that the host gets a route to."""
        return (self.pods, self.link, self.services)


def choose(taken: Collection[int], routes: Collection[ipaddress.IPv4Network]) -> Slot:
    """The first slot that nobody has and whose addresses the machine does not reach elsewhere."""
    for number in range(COUNT):
        slot = Slot(number)
        if number not in taken and not any(mine.overlaps(route) for mine in slot.networks for route in routes):
            return slot
    raise DevclusterError(f"no slot is free: {REGISTRY} lists the clusters of this machine; end one by `down --state DIR`")


def claim(state: Path) -> Slot:
    """Takes a slot for the cluster whose state lies in `state`."""
    with _locked():
        slots = _registered()
        if not slots:
            machine.restore()  # one that was killed in the middle may have left its note
            machine.remember()
        # A namespace without a registration is a stranger's: leave it alone.
        named = {number for number in range(COUNT) if Slot(number).namespace.exists()}
        slot = choose({*slots, *named}, _routes())
        slot.run_dir.mkdir(mode=0o755, exist_ok=True)  # one that was killed here has left its folder
        write_whole(slot.run_dir / "slot.json", json.dumps({"state": str(state)}))
        return slot


def find(state: Path) -> Slot | None:
    """The slot of the cluster whose state lies in `state`."""
    return next((Slot(number) for number, path in _registered().items() if path == str(state)), None)


def release(slot: Slot) -> None:
    """Gives the slot back; the last one puts the machine's settings back too."""
    with _locked():
        shutil.rmtree(slot.run_dir)
        if not _registered():
            machine.restore()
            shutil.rmtree(REGISTRY)


def forget_dead() -> None:
    """Puts the machine's settings back where no cluster is left to need them: a `release` was killed in the middle."""
    if REGISTRY.exists() and os.geteuid() == 0:
        with _locked():
            if not _registered():
                machine.restore()
                shutil.rmtree(REGISTRY)


@contextmanager
def _locked() -> Generator[None]:
    if os.geteuid() != 0:
        raise DevclusterError("a cluster with a node needs root (namespaces, mounts, cgroups); --control-plane-only does not")
    with exclusive(REGISTRY / "lock"):
        yield


def _registered() -> dict[int, str]:
    return {int(path.parent.name): str(json.loads(path.read_text())["state"]) for path in sorted(REGISTRY.glob("*/slot.json"))}


def _routes() -> list[ipaddress.IPv4Network]:
    routes = json.loads(run(["ip", "-4", "-json", "route", "show"]))
    return [ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
