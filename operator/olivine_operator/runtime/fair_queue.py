"""The order of work: each key at most once, never two at the same time, namespaces in turn. No clock in it: readings are given."""

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field

from olivine_operator.plan.observed import Key

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 60.0


@dataclass
class FairQueue:
    """Keys that wait, are being worked on, or are due later."""

    # Namespaces in the order of their turns, each with its keys in the order of their coming.
    _waiting: "OrderedDict[str, OrderedDict[Key, None]]" = field(default_factory=OrderedDict)
    _working: set[Key] = field(default_factory=set)
    _again: set[Key] = field(default_factory=set)
    _later: list[tuple[float, Key]] = field(default_factory=list)
    _due: dict[Key, float] = field(default_factory=dict)
    _failures: dict[Key, int] = field(default_factory=dict)
    _size: int = 0

    def __len__(self) -> int:
        return self._size

    def add(self, key: Key) -> None:
        """Asks for a look at a key; one that is being worked on gets another afterwards."""
        if key in self._working:
            self._again.add(key)
        else:
            keys = self._waiting.setdefault(key[0], OrderedDict())
            self._size += key not in keys
            keys[key] = None

    def add_at(self, key: Key, time: float) -> None:
        """Asks for a look at a time; the earliest of several counts."""
        if time < self._due.get(key, float("inf")):
            self._due[key] = time
            heapq.heappush(self._later, (time, key))

    def take(self, now: float) -> Key | None:
        """The next key to work on: of the namespace whose turn it is, the one that waits longest."""
        self._admit_due(now)
        if not self._waiting:
            return None
        namespace, keys = self._waiting.popitem(last=False)
        key, _ = keys.popitem(last=False)
        self._size -= 1
        if keys:
            self._waiting[namespace] = keys  # at the end: its next turn comes after all others'
        self._working.add(key)
        # What was to happen later happens now; the look itself says when to look again.
        self._due.pop(key, None)
        return key

    def done(self, key: Key, *, now: float, again_after: float | None = None) -> None:
        """Ends the work on a key that went well."""
        self._failures.pop(key, None)
        self._release(key)
        if again_after is not None:
            self.add_at(key, now + again_after)

    def failed(self, key: Key, *, now: float, at_least: float = 0.0) -> float:
        """Ends the work on a key that went wrong: it comes back after a while, longer each time. Returns the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = max(at_least, min(FIRST_BACKOFF_SECONDS * 2 ** min(failures, 16), LONGEST_BACKOFF_SECONDS))
        self._release(key)
        self.add_at(key, now + delay)
        return delay

    def next_due(self) -> float | None:
        """When the next key that waits for its time becomes due."""
        while self._later and self._due.get(self._later[0][1]) != self._later[0][0]:
            heapq.heappop(self._later)  # overtaken
        return self._later[0][0] if self._later else None

    def _release(self, key: Key) -> None:
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _admit_due(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, key = heapq.heappop(self._later)
            del self._due[key]
            self.add(key)
