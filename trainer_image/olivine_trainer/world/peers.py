"""The ranks' own channel, beside torch's: rank 0 in the middle, values as JSON, patient as long as everybody lives.

Collectives of torch have a time limit and, on a GPU, do not notice a dead peer. Here a long upload of rank 0 keeps nobody from
waiting, and a lost rank is known to all within a second: who does not end by itself is ended.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from olivine_trainer.errors import PeerLostError
from olivine_trainer.world.link import Link

GRACE = 5.0  # seconds for the main thread to end in order once a peer is lost
_POLL = 0.2


class Peers:
    """Links to the other ranks: for rank 0 to each of them, for the others to rank 0."""

    def __init__(self, links: list[Link], *, leads: bool, end_abruptly: Callable[[PeerLostError], None]) -> None:
        self._links = links
        self._leads = leads
        self._end_abruptly = end_abruptly
        self._lost: PeerLostError | None = None
        self._left = False
        self._holding = threading.Condition()
        self._held = 0
        self._noting = threading.Lock()
        for link in links:
            link.start(self._on_notice, self._on_end)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on all ranks (`value` is None on the others). Raises PeerLostError."""
        if not self._leads:
            return self._receive(self._links[0])
        self.check()
        for link in self._links:
            self._send(link, value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value in the order of ranks, on all ranks. Raises PeerLostError."""
        if self._leads:
            return self.broadcast([value, *(self._receive(link) for link in self._links)])
        self._send(self._links[0], value)
        return self._receive(self._links[0])

    def last_word(self, value: Any) -> None:
        """Rank 0's value for whoever still listens."""
        for link in self._links:
            with suppress(OSError):  # who is gone finds it in the run's record
                link.send({"value": value})

    def check(self) -> None:
        """Raise PeerLostError where somebody is lost."""
        if self._lost is not None:
            raise PeerLostError(self._lost.message)

    def wait_for_news(self, seconds: float) -> None:
        """`check`, with a moment for the news to arrive."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            time.sleep(0.02)

    def explain(self, end: str) -> None:
        """Tell the others why this rank ends."""
        for link in self._links:
            with suppress(OSError):
                link.send({"ends": end})

    def leave(self) -> None:
        """From here on nobody is missed: this rank ends, or needs the others no more."""
        self._left = True

    @contextmanager
    def held(self) -> Generator[None]:
        """Work that a lost peer does not interrupt: what it saves is worth more than the seconds. Several threads may hold."""
        with self._holding:
            self._held += 1
        try:
            yield
        finally:
            with self._holding:
                self._held -= 1
                self._holding.notify_all()

    def _receive(self, link: Link) -> Any:
        while True:
            try:
                return link.values.get(timeout=_POLL)
            except queue.Empty:
                self.check()

    def _send(self, link: Link, value: Any) -> None:
        try:
            link.send({"value": value})
        except OSError:
            self.check()
            raise PeerLostError(f"{link.name} is lost") from None

    def _on_notice(self, link: Link, message: Any) -> None:
        if "ends" in message:
            self._note(f"{link.name} ended: {message['ends']}")
        elif "lost" in message:
            self._note(str(message["lost"]))

    def _on_end(self, link: Link) -> None:
        self._note(f"{link.name} is lost: its connection closed")

    def _note(self, text: str) -> None:
        with self._noting:
            if self._lost is not None or self._left:
                return
            self._lost = PeerLostError(text)
        # First: to tell a peer that is hanging may take half a minute.
        threading.Thread(target=self._see_to_the_end, args=(self._lost,), name="peer-lost", daemon=True).start()
        if self._leads:
            for link in self._links:
                with suppress(OSError):
                    link.send({"lost": text})

    def _see_to_the_end(self, lost: PeerLostError) -> None:
        """A collective on a GPU would wait for minutes: no signal and no exception reaches it."""
        time.sleep(GRACE)
        with self._holding:
            self._holding.wait_for(lambda: not self._held)
            if not self._left:
                self._end_abruptly(lost)
