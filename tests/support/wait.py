"""Waiting for a condition with a deadline: no test sleeps for luck."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T | None], *, seconds: float, every: float = 0.2) -> T:
    """The first value of `probe` that is neither None nor False; fails with `what` and the last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so within {seconds:.0f} s")
        time.sleep(every)
