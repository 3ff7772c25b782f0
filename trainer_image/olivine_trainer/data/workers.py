"""Processes that make examples of rows (training.dataLoaderWorkers), and get no more than these rows.

Not threads: most of the work on short rows is Python's, and threads would take turns with the one that trains. Not forks: what is forked
from a training process inherits its locks, sockets and memory. A worker ends where its input does: with the process that started it.
"""

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from queue import SimpleQueue
from typing import Any, BinaryIO, TypeVar

from olivine_api.reasons import Reason
from olivine_trainer.data.maker import RowMaker
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.faults import first_line
from olivine_trainer.reporting.logs import warn

Made = TypeVar("Made")

_MOST = 64  # rows at once
_PATIENCE = 5.0  # seconds, of which a worker needs milliseconds to end


class Workers:
    """So many processes; with none of them the caller does the work. They import while the model is loaded."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self._maker: RowMaker | None = None
        self._alone = threading.Lock()
        self._processes = [_Worker() for _ in range(count)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """One for each process: they wait for answers."""
        return ThreadPoolExecutor(self.count, thread_name_prefix="rows")

    def begin(self, maker: RowMaker) -> None:
        """What all rows are made with, from now on. Raises ConfigurationError for a tokenizer that stays in its process."""
        self._maker = maker
        if not self.count:
            return
        try:
            pickled = pickle.dumps(maker)
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # as the tokenizer's class has it
            raise ConfigurationError(
                Reason.INVALID_SPEC,
                f"training.dataLoaderWorkers is {self.count}, but this model's tokenizer cannot be handed to other processes"
                f" ({first_line(error)}): write 0",
            ) from None
        for process in self._processes:
            process.learns(pickled)

    def map(self, make: Callable[..., Made], given: Sequence[tuple[Any, ...]]) -> list[Made]:
        """`make`, a method of RowMaker, of each; in order. Raises what the first one raises that cannot be made, as a loop would."""
        if not self.count:
            return self._here(make, given)
        size = max(1, min(_MOST, -(-len(given) // self.count)))
        parts = [self._threads.submit(self._elsewhere, make, given[start : start + size]) for start in range(0, len(given), size)]
        try:
            return [one for part in parts for one in part.result()]
        finally:
            for part in parts:
                part.cancel()

    def close(self) -> None:
        """End the processes."""
        if "_threads" in self.__dict__:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()

    def _here(self, make: Callable[..., Made], given: Sequence[tuple[Any, ...]]) -> list[Made]:
        return [make(self._maker, *one) for one in given]

    def _elsewhere(self, make: Callable[..., Made], given: Sequence[tuple[Any, ...]]) -> list[Made]:
        worker = self._idle.get()
        try:
            made = worker.made(make, given)
        finally:
            self._idle.put(worker)
        if made is not None:
            return made
        with self._alone:  # what failed there is done again here, where the error is its own
            return self._here(make, given)


class _Worker:
    """One process (see row_worker), with a pipe to it and one back."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "olivine_trainer.data.row_worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._maker: bytes | None = None
        self._gone = False

    def learns(self, maker: bytes) -> None:
        """A pickled RowMaker; it is told with the next rows."""
        self._maker = maker

    def made(self, make: Callable[..., Made], given: Sequence[tuple[Any, ...]]) -> list[Made] | None:
        """None where something went wrong with one of them, or the process is gone."""
        if self._gone:
            return None
        into, out = self._pipes
        try:
            if self._maker is not None:
                into.write(self._maker)
                self._maker = None
            pickle.dump((make, given), into)
            into.flush()
            return pickle.load(out)  # (of our own process)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):  # the last: an answer that ends within
            self._gone = True
            code = self._process.wait()
            warn(f"a process of training.dataLoaderWorkers is gone (code {code}): its rows are made by the training process")
            return None

    def close(self) -> None:
        """End it: by the end of its input."""
        for pipe in self._pipes:
            try:
                pipe.close()
            except BrokenPipeError:  # what was not sent yet: it is gone already
                continue
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        into, out = self._process.stdin, self._process.stdout
        if into is None or out is None:
            raise RuntimeError("the process was started without its pipes")
        return into, out  # pyright: ignore[reportReturnType]
