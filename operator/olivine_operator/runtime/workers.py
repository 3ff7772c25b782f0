"""Workers that take keys from the queue, one look at a time."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from olivine_operator.plan.observed import Key
from olivine_operator.runtime.api import ApiError
from olivine_operator.runtime.fair_queue import FairQueue
from olivine_operator.runtime.logs import about
from olivine_operator.runtime.metrics import Metrics

_log = logging.getLogger(__name__)

# A look at a job: returns after how many seconds the next one is wanted.
Look = Callable[[Key], Awaitable[float | None]]


class WorkQueue:
    """The queue, the event loop's clock, and the workers that wait for a key."""

    def __init__(self, metrics: Metrics) -> None:
        self._queue = FairQueue()
        self._metrics = metrics
        self._idle: deque[asyncio.Future[Key]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: Key) -> None:
        """Asks for a look at a key."""
        self._queue.add(key)
        self._hand_out()

    async def run(self, workers: int, look: Look) -> None:
        """Works for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work(look))
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._metrics.queue_depth.set(0)

    def _hand_out(self) -> None:
        """Gives keys to idle workers, and comes back when the next key is due."""
        loop = asyncio.get_running_loop()
        while self._idle:
            if self._idle[0].done():
                self._idle.popleft()  # its worker was cancelled
                continue
            key = self._queue.take(loop.time())
            if key is None:
                break
            self._idle.popleft().set_result(key)
        self._metrics.queue_depth.set(len(self._queue))
        if self._timer is not None:
            self._timer.cancel()
        due = self._queue.next_due() if self._idle else None
        self._timer = loop.call_at(due, self._hand_out) if due is not None else None

    async def _take(self) -> Key:
        waiter: asyncio.Future[Key] = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        self._hand_out()
        return await waiter

    async def _work(self, look: Look) -> None:
        loop = asyncio.get_running_loop()
        while True:
            key = await self._take()
            try:
                with self._metrics.reconcile_seconds.time():
                    again_after = await look(key)
            except ApiError as error:
                self._refused(key, error)
            except Exception:  # noqa: BLE001 - a bug in one job's look must not end all others'
                about(_log, key).exception("a look at the job failed")
                self._metrics.reconciles.labels("error").inc()
                self._queue.failed(key, now=loop.time())
            else:
                self._metrics.reconciles.labels("done").inc()
                self._queue.done(key, now=loop.time(), again_after=again_after)

    def _refused(self, key: Key, error: ApiError) -> None:
        now = asyncio.get_running_loop().time()
        delay = self._queue.failed(key, now=now, at_least=error.retry_after or 0.0)
        self._metrics.reconciles.labels("conflict" if error.code == 409 else "api_error").inc()
        # A conflict is everyday life: the cache was a moment behind.
        level = logging.DEBUG if error.code == 409 else logging.WARNING
        about(_log, key).log(level, "the API server: %s (HTTP %d); again in %.1f s", error.message, error.code, delay)
