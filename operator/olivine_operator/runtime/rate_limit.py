"""How often each sender may do something."""

import time
from collections import OrderedDict
from collections.abc import Callable

_REMEMBERED = 16384


class RateLimit:
    """A token bucket for each sender."""

    def __init__(self, *, per_second: float, burst: float = 3.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, sender: str) -> bool:
        """Whether the sender may do it now; if so, it is counted."""
        now = self._clock()
        level, since = self._buckets.pop(sender, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._per_second)
        allowed = level >= 1
        self._buckets[sender] = (level - 1 if allowed else level, now)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed
