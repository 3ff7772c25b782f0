"""Which pod this is among all, and which rank each of its processes has."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_api.status import World
from olivine_trainer.errors import ConfigurationError, PeerLostError

_ENV_INDEX = "JOB_COMPLETION_INDEX"  # Kubernetes sets it in the pods of an Indexed Job
_ENV_PORT = "MASTER_PORT"
_LOOPBACK = "127.0.0.1"
_LARGEST_PORT = 65535


@dataclass(frozen=True)
class Placement:
    """One pod among all; a bare process is the only one."""

    index: int
    world: World
    leader_host: str
    port: int | None
    """Where rank 0 waits; None where any free port of this machine will do."""

    @classmethod
    def find(cls, world: World, environ: Mapping[str, str]) -> Self:
        """As Kubernetes and the operator tell it. Raises ConfigurationError or PeerLostError where they contradict one another."""
        index, port = _number(_ENV_INDEX, environ) or 0, _number(_ENV_PORT, environ)
        if index >= world.pods:
            # Fewer pods than there were: this one is on its way out.
            raise PeerLostError(f"this pod has index {index}, but {names.CONFIG_WORLD} counts {world.pods} pods")
        if world.pods == 1:
            return cls(index, world, _LOOPBACK, port)
        host = environ.get(names.ENV_LEADER_HOST)
        if not host:
            raise ConfigurationError(
                Reason.INVALID_SPEC,
                f"{names.CONFIG_WORLD} counts {world.pods} pods, but {names.ENV_LEADER_HOST} is not set: it names the pod with index 0",
            )
        return cls(index, world, host, port if port is not None else names.RENDEZVOUS_PORT)

    @property
    def leads(self) -> bool:
        """Whether rank 0 is in this pod: it alone reports."""
        return self.index == 0

    @property
    def size(self) -> int:
        """Ranks in all pods."""
        return self.world.pods * self.world.processes_per_pod

    @property
    def ranks(self) -> range:
        """The ranks of this pod."""
        first = self.index * self.world.processes_per_pod
        return range(first, first + self.world.processes_per_pod)

    def environment(self, port: int) -> dict[str, str]:
        """What all workers of this pod are told of the others."""
        return {"WORLD_SIZE": str(self.size), "MASTER_ADDR": self.leader_host, _ENV_PORT: str(port)}

    def meeting_port(self) -> int:
        """The port to meet at, a fresh one where any will do."""
        if self.port is not None:
            return self.port
        with socket.socket() as probe:
            probe.bind((_LOOPBACK, 0))
            return int(probe.getsockname()[1])


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    """A variable that counts. Raises ConfigurationError: a Secret, or a Service that is called `master`, may set it to anything."""
    text = environ.get(name, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) > _LARGEST_PORT:
        raise ConfigurationError(
            Reason.INVALID_SPEC, f"{name} is {text!r}, it must be a number: take it out of pods.env and the Secrets of pods.envFrom"
        )
    return int(text)
