"""Workers: exclusive by key, parallel otherwise, undisturbed by a look that fails."""

import asyncio
import contextlib
import logging

import pytest

from olivine_operator.plan.observed import Key
from olivine_operator.runtime.api import ApiError
from olivine_operator.runtime.metrics import Metrics
from olivine_operator.runtime.workers import Look, WorkQueue


async def working(queue: WorkQueue, look: Look, until: asyncio.Event) -> None:
    task = asyncio.create_task(queue.run(4, look))
    async with asyncio.timeout(5):
        await until.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_different_keys_are_worked_on_at_the_same_time_and_one_key_never() -> None:
    async def scenario() -> tuple[int, int]:
        queue, finished = WorkQueue(Metrics()), asyncio.Event()
        busy: dict[Key, int] = {}
        most_of_a_key = most_at_once = looks = 0

        async def look(key: Key) -> None:
            nonlocal most_of_a_key, most_at_once, looks
            busy[key] = busy.get(key, 0) + 1
            most_of_a_key, most_at_once = max(most_of_a_key, busy[key]), max(most_at_once, sum(busy.values()))
            queue.add(key) if looks < 20 else None
            await asyncio.sleep(0)
            busy[key] -= 1
            looks += 1
            if looks == 23:
                finished.set()

        for name in "abc":
            queue.add(("n", name))
        await working(queue, look, finished)
        return most_of_a_key, most_at_once

    assert asyncio.run(scenario()) == (1, 3)


def test_a_look_that_fails_is_repeated_and_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> list[str]:
        queue, finished = WorkQueue(Metrics()), asyncio.Event()
        seen: list[str] = []

        async def look(key: Key) -> None:
            seen.append(key[1])
            if key[1] == "bug" and seen.count("bug") == 1:
                raise KeyError("oops")
            if key[1] == "api" and seen.count("api") == 1:
                raise ApiError(503, "Unavailable", "later")
            if seen.count("bug") == 2 and seen.count("api") == 2:
                finished.set()

        for name in ("bug", "api", "fine"):
            queue.add(("n", name))
        await working(queue, look, finished)
        return seen

    with caplog.at_level(logging.WARNING):
        seen = asyncio.run(scenario())
    assert sorted(seen[:3]) == ["api", "bug", "fine"]
    assert [record.exc_info is not None for record in caplog.records] == [True, False]


def test_a_look_may_ask_for_another_one() -> None:
    async def scenario() -> int:
        queue, finished = WorkQueue(Metrics()), asyncio.Event()
        looks = 0

        async def look(key: Key) -> float | None:
            nonlocal looks
            looks += 1
            if looks == 2:
                finished.set()
            return 0.01 if looks == 1 else None

        queue.add(("n", "a"))
        await working(queue, look, finished)
        return looks

    assert asyncio.run(scenario()) == 2
