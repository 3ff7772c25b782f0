"""How the ranks of an attempt find one another: rank 0 listens, the others call until all are there at once.

Plain sockets, no torch: a signal is heard while one waits, a rank that comes back replaces the one that it was, and a rank that
reaches the remains of an earlier attempt is turned away and calls again.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from olivine_trainer.errors import PeerLostError
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.world.link import Line, Link
from olivine_trainer.world.place import Place

RENDEZVOUS_SECONDS = 15 * 60.0  # the Job controller replaces a pod after up to 10 minutes
LOOK_SECONDS = 20.0  # between two looks at whether the run is over
_PAUSE = 0.3  # seconds between two calls
_HELLO_SECONDS = 2.0
_HELLO_BYTES = 4096  # a stranger's flood fills no memory
_CALL_SECONDS = 3.0
_LOOPBACK = ("127.0.0.1", "localhost")


@dataclass
class Rendezvous:
    """One wait for the others. `look` is called now and then, and raises where waiting has become pointless."""

    place: Place
    run: str
    """The job's uid: a stranger's rank is turned away."""
    pod: str
    look: Callable[[], None]
    seconds: float = RENDEZVOUS_SECONDS
    _looked: float = field(default_factory=time.monotonic, init=False)

    def meet(self) -> list[Link]:
        """Links to all others (for rank 0), or to rank 0. Raises PeerLostError where some did not come in time."""
        deadline = time.monotonic() + self.seconds
        return self._lead(deadline) if self.place.leads else [self._join(deadline)]

    def _lead(self, deadline: float) -> list[Link]:
        there: dict[int, tuple[Line, str]] = {}
        log("waiting for the other ranks", ranks=self.place.size, port=self.place.port)
        with _listen(self.place) as server:
            server.settimeout(_PAUSE)
            while len(there) < self.place.size - 1:
                self._keep_waiting(deadline, lambda: self._missing(there))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    pass
                else:
                    self._greet(Line(connection), there)
                for rank in [rank for rank, (line, _) in there.items() if not line.is_open()]:
                    there.pop(rank)[0].close()
        links = [Link(rank, f"rank {rank} ({pod})" if pod else f"rank {rank}", line) for rank, (line, pod) in sorted(there.items())]
        for link in links:
            try:
                link.send({"go": True})
            except OSError:
                raise PeerLostError(f"{link.name} left while the ranks gathered") from None
        return links

    def _greet(self, line: Line, there: dict[int, tuple[Line, str]]) -> None:
        try:
            hello = line.read(_HELLO_SECONDS, limit=_HELLO_BYTES)
            rank, refusal = int(hello["rank"]), self._refusal(hello)
            if refusal is None:
                if rank in there:
                    there[rank][0].close()
                there[rank] = line, str(hello["pod"])
                return
            line.send({"no": refusal})
            line.close()
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            line.close()  # a port scan, or a rank that is gone again

    def _refusal(self, hello: dict[str, Any]) -> str | None:
        if hello["run"] != self.run:
            return "rank 0 works for another run"  # which one is what a stranger would have to know to take a rank's place
        if hello["size"] != self.place.size or not 0 < hello["rank"] < self.place.size:
            return f"rank 0 counts {self.place.size} ranks"
        return None

    def _missing(self, there: dict[int, tuple[Line, str]]) -> str:
        missing = [str(rank) for rank in range(1, self.place.size) if rank not in there]
        return f"rank {', '.join(missing[:8])} did not come" + (f" ({len(missing)} in all)" if len(missing) > 8 else "")

    def _join(self, deadline: float) -> Link:
        told = ""
        hello = {"run": self.run, "rank": self.place.rank, "size": self.place.size, "pod": self.pod}
        log("calling rank 0", host=self.place.leader_host, port=self.place.port)
        while True:
            self._keep_waiting(deadline, lambda: "rank 0 did not gather the ranks")
            try:
                # The name resolves once the pod has an address.
                line = Line(socket.create_connection((self.place.leader_host, self.place.port), timeout=_CALL_SECONDS))
            except OSError:
                time.sleep(_PAUSE)
                continue
            try:
                line.send(hello)
                answer = self._wait_for_answer(line, deadline)
                if "go" in answer:
                    return Link(0, f"rank 0 ({self.place.leader_host})", line)
                if answer["no"] != told:
                    told = answer["no"]
                    warn(f"turned away, calling again: {told}; this is rank {self.place.rank} of {self.place.size} of {self.run}")
            except (OSError, EOFError, ValueError, KeyError, TypeError):
                pass  # rank 0 went away: it, or its successor, will listen again
            line.close()
            time.sleep(_PAUSE)

    def _wait_for_answer(self, line: Line, deadline: float) -> Any:
        while True:
            self._keep_waiting(deadline, lambda: "rank 0 did not gather the ranks")
            try:
                return line.read(1.0)
            except TimeoutError:
                continue

    def _keep_waiting(self, deadline: float, who: Callable[[], str]) -> None:
        now = time.monotonic()
        if now > deadline:
            raise PeerLostError(f"{who()} within {self.seconds / 60:.0f} minutes")
        if now - self._looked > LOOK_SECONDS:
            self.look()
            self._looked = time.monotonic()


def _listen(place: Place) -> socket.socket:
    """Raises PeerLostError where somebody else has the port: PID 1 tries again, where it may with another one."""
    try:
        if place.leader_host in _LOOPBACK:
            return socket.create_server(("127.0.0.1", place.port))
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", place.port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", place.port))
    except OSError as error:
        raise PeerLostError(f"rank 0 cannot wait for the others at port {place.port}: {error.strerror}") from None
