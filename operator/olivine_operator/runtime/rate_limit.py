"""One report a second from each pod."""

from collections import OrderedDict

_REMEMBERED = 16384


class RateLimit:
    """A token bucket for each sender; readings of a clock are given."""

    def __init__(self, *, per_second: float = 1.0, burst: float = 3.0) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, sender: str, now: float) -> bool:
        """Whether the sender may send now; if so, it is counted."""
        level, since = self._buckets.pop(sender, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._per_second)
        allowed = level >= 1
        self._buckets[sender] = (level - 1 if allowed else level, now)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed
