"""Threads that make examples of rows (training.dataLoaderWorkers).

Threads, not processes: encoding holds no lock of Python's, so the part of the work that grows with the rows runs side by side, while no row is
copied, no error changes its class on the way, and nothing outlives the process.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")

_MOST = 64  # rows at once: a wrong row ends the work soon


class Workers:
    """So many threads; with none of them the caller does the work."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.count, thread_name_prefix="rows")

    def map(self, make: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
        """What `make` makes of each, in order; raises what the first one raises that cannot be made, as a loop would."""
        if not self.count or len(given) < 2:
            return [make(one) for one in given]
        # The first one here: a tokenizer that settles something at its first call does it alone.
        made, rest = [make(given[0])], given[1:]
        size = min(_MOST, -(-len(rest) // self.count))
        parts = [self._pool.submit(_all, make, rest[start : start + size]) for start in range(0, len(rest), size)]
        try:
            return made + [one for part in parts for one in part.result()]
        finally:
            _forget(parts)

    def close(self) -> None:
        """End the threads."""
        if "_pool" in self.__dict__:
            self._pool.shutdown(cancel_futures=True)


def _all(make: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    return [make(one) for one in given]


def _forget(parts: Sequence[Future[list[Made]]]) -> None:
    for part in parts:
        part.cancel()
