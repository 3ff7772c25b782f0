"""Batches of the coming steps, made by a thread while a step trains.

A batch is a function of (seed, step), whoever makes it and when: nothing of this is saved, and a resumed run has the same batches.
"""

import threading
from concurrent.futures import Future
from queue import SimpleQueue

from olivine_trainer.data.batches import TrainingRows
from olivine_trainer.modeling.example import Example
from olivine_trainer.reporting.logs import warn

AHEAD = 4  # batches: enough for some that take longer than a step
_PATIENCE = 5.0  # seconds: what hangs in a read from storage holds the process's end up no longer

Key = tuple[int, int, int]
"""seed, step, size"""


class RowsAhead:
    """See TrainingRows; one thread asks for batches. What goes wrong with one is raised when its step asks for it."""

    def __init__(self, rows: TrainingRows, *, total_steps: int) -> None:
        """`total_steps`: none is made beyond."""
        self._rows = rows
        self._total_steps = total_steps
        self._made: dict[Key, Future[list[Example]]] = {}
        self._asked: SimpleQueue[tuple[Key, Future[list[Example]]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, seed: int, step: int, size: int) -> list[Example]:
        """See TrainingRows."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._make, name="batches", daemon=True)
            self._thread.start()
        last = max(step + 1, min(step + 1 + AHEAD, self._total_steps))
        wanted = [(seed, one, size) for one in range(step, last)]
        self._forget_all_but(wanted)
        for key in wanted:
            if key not in self._made:
                self._made[key] = Future()
                self._asked.put((key, self._made[key]))
        return self._made[wanted[0]].result()

    def close(self) -> None:
        """End the thread."""
        if self._thread is None:
            return
        self._forget_all_but([])
        self._asked.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            warn("the rows of a coming step are still being read", seconds=_PATIENCE)
        self._thread = None

    def _forget_all_but(self, wanted: list[Key]) -> None:
        for key in self._made.keys() - set(wanted):
            self._made.pop(key).cancel()

    def _make(self) -> None:
        while (asked := self._asked.get()) is not None:
            key, future = asked
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._rows.batch(*key))
            except BaseException as error:  # noqa: BLE001  (raised where it can be understood: in the step that asks)
                future.set_exception(error)
