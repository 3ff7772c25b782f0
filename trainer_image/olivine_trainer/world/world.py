"""All ranks of an attempt as one: what rank 0 decides, what all agree on, and sums over them.

A lone process has no process group and no peers: each method is then the identity.
"""

import base64
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError, PeerLostError
from olivine_trainer.world.peers import Peers
from olivine_trainer.world.place import Place

if TYPE_CHECKING:
    import torch

COLLECTIVE_SECONDS = 5 * 60.0
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The ranks of this attempt, and which one this process is."""

    place: Place
    peers: Peers | None = None
    """None for a lone process."""

    @property
    def rank(self) -> int:
        """From 0."""
        return self.place.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.place.size

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the only one that writes to the run's folder."""
        return self.place.leads

    def from_leader(self, make: Callable[[], T]) -> T:
        """What rank 0 makes (JSON), on all ranks. The others wait as long as it takes; rank 0's work outlives a lost peer."""
        if self.peers is None:
            return make()
        if not self.leads:
            return self.peers.broadcast(None)
        with self.peers.held():
            made = make()
        return self.peers.broadcast(made)

    def last_word(self, make: Callable[[], T]) -> T:
        """As `from_leader`, but rank 0 needs nobody any more."""
        if self.peers is None:
            return make()
        if not self.leads:
            return self.peers.broadcast(None)
        self.peers.leave()
        made = make()
        self.peers.last_word(made)
        return made

    def gather(self, value: T) -> list[T]:
        """Every rank's value (JSON) in the order of ranks, on all of them; waits as long as it takes."""
        return [value] if self.peers is None else self.peers.gather(value)

    def gather_bytes(self, value: bytes) -> list[bytes]:
        """Every rank's bytes in the order of ranks, on all of them."""
        if self.peers is None:
            return [value]
        return [base64.b64decode(one) for one in self.gather(base64.b64encode(value).decode())]

    def held(self) -> AbstractContextManager[None]:
        """Work that a lost peer does not cut short, though it may end this process."""
        return nullcontext() if self.peers is None else self.peers.held()

    def wait_for_all(self) -> None:
        """Until every rank is here, as long as it takes."""
        self.gather(None)

    def leave(self) -> None:
        """This rank ends in order, or needs the others no more."""
        if self.peers is not None:
            self.peers.leave()

    def explain(self, end: str) -> None:
        """Tell the others why this rank ends."""
        if self.peers is not None:
            self.peers.explain(end)

    def start_group(self) -> None:
        """torch's process group over all ranks; accelerate takes it over. None for a lone process."""
        if self.peers is None:
            return
        import torch  # noqa: PLC0415  (seconds: only once it is needed)
        from torch import distributed  # noqa: PLC0415

        tcp_store: Any = distributed.TCPStore  # pyright: ignore[reportPrivateImportUsage]
        backend, limit = "gloo", timedelta(seconds=COLLECTIVE_SECONDS)
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            self._take_device(torch.cuda.device_count())
            torch.cuda.set_device(self.place.local_rank)
        try:
            store, port = None, None
            if self.leads:
                store = tcp_store("127.0.0.1", 0, self.size, is_master=True, timeout=limit, wait_for_workers=False)
                port = store.port
            port = self.peers.broadcast(port)
            if store is None:
                store = tcp_store(self.place.leader_host, int(port), self.size, is_master=False, timeout=limit)
            distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=limit)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _take_device(self, devices: int) -> None:
        """NCCL refuses two ranks on one device, with a sentence that names neither field."""
        if self.place.local_rank >= devices:
            raise ConfigurationError(
                Reason.INVALID_SPEC,
                f"pods.processesPerPod asks for process {self.place.local_rank + 1} of this pod, which has {devices} CUDA"
                f" device{'s' if devices > 1 else ''}: one process a device, so write {devices}, or ask for more devices in pods.resources.limits",
            )

    @contextmanager
    def collectives(self) -> Generator[None]:
        """Around code that calls torch's collectives by itself: what fails for want of a rank is told as that."""
        try:
            yield
        except RuntimeError:
            if self.peers is not None:
                self.peers.wait_for_news(1.0)
            raise

    def greatest(self, value: int) -> int:
        """The largest of the ranks' small numbers. A collective: everybody must come."""
        if self.peers is None:
            return value
        import torch  # noqa: PLC0415

        box = torch.tensor([value], dtype=torch.int64)
        self._reduce(box, "MAX")
        return int(box[0])

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, in double precision, member by member. A collective."""
        if self.peers is None:
            return list(values)
        import torch  # noqa: PLC0415

        box = torch.tensor(values, dtype=torch.float64)
        self._reduce(box, "SUM")
        return box.tolist()

    def sum_tensors(self, tensors: "Sequence[torch.Tensor]") -> None:
        """Replace each tensor by its sum over the ranks, in one flat piece: the order of addition never changes. A collective."""
        if self.peers is None or not tensors:
            return
        import torch  # noqa: PLC0415

        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        self._reduce(flat, "SUM")
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].reshape(tensor.shape))
            start += tensor.numel()

    def _reduce(self, box: "torch.Tensor", how: str) -> None:
        from torch import distributed  # noqa: PLC0415

        try:
            distributed.all_reduce(box, op=getattr(distributed.ReduceOp, how))
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> PeerLostError:
        """The peers' own word where they left one, else torch's."""
        if self.peers is not None:
            try:
                self.peers.wait_for_news(1.0)
            except PeerLostError as lost:
                return lost
        first = (str(error).splitlines() or ["no word"])[0]
        return PeerLostError(f"the ranks lost one another: {first[:300]}")


def alone() -> World:
    """A world of one process."""
    return World(Place(rank=0, local_rank=0, size=1, leader_host="127.0.0.1", port=0))
