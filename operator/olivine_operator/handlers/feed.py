"""What is seen of an object goes into the cache; what is news there asks for a look at the FineTuneJob it belongs to."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from olivine_api import names
from olivine_operator.plan.observed import KUEUE_JOB_UID_LABEL, ChildView, JobView, Key, PodView, Raw, WorkloadView
from olivine_operator.runtime.api import FINETUNEJOBS, JOBS, JOBSETS, OLD_WORKLOADS, PODS, WORKLOADS, Kind
from olivine_operator.runtime.cache import Cache, Shelf
from olivine_operator.runtime.reports import Memory


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A kind that is watched: its shelf, and how its objects are read."""

    kind: Kind
    shelf: Shelf[Any]
    read: Callable[[Raw], Any]
    label: str | None = None
    """Only objects that carry it are wanted."""


class Feed:
    """From raw objects to cache and queue."""

    watched: tuple[Watched, ...]

    def __init__(self, cache: Cache, memory: Memory, ask: Callable[[Key], None]) -> None:
        self.watched = (
            Watched(kind=FINETUNEJOBS, shelf=cache.jobs, read=JobView.from_raw),
            Watched(kind=JOBS, shelf=cache.children, read=ChildView.from_raw, label=names.LABEL_JOB),
            Watched(kind=PODS, shelf=cache.pods, read=PodView.from_raw, label=names.LABEL_JOB),
        )
        self._cache = cache
        self._memory = memory
        self._ask = ask
        self._told: Counter[Kind] = Counter()

    def optional(self) -> tuple[Watched, ...]:
        """Kinds that a cluster may lack, in the order of preference where there are several of a name."""
        jobsets, workloads = self._cache.jobsets, self._cache.workloads
        return (
            Watched(kind=JOBSETS, shelf=jobsets, read=ChildView.from_raw, label=names.LABEL_JOB),
            Watched(kind=WORKLOADS, shelf=workloads, read=WorkloadView.from_raw, label=KUEUE_JOB_UID_LABEL),
            Watched(kind=OLD_WORKLOADS, shelf=workloads, read=WorkloadView.from_raw, label=KUEUE_JOB_UID_LABEL),
        )

    def watch_too(self, watched: Watched) -> None:
        """Adds a kind that the cluster has; before the watches begin."""
        self.watched = (*self.watched, watched)
        self._cache.serves_jobsets |= watched.kind is JOBSETS
        self._cache.serves_workloads |= watched.kind.name == WORKLOADS.name

    def hear(self, watched: Watched, kind: str | None, raw: Raw) -> None:
        """An event of the watch."""
        self._told[watched.kind] += 1
        uid, version = raw["metadata"]["uid"], raw["metadata"]["resourceVersion"]
        watched.shelf.heard(uid, version)
        if kind == "DELETED":
            self.gone(watched, uid, version)
        else:
            self.see(watched, raw)

    def told(self, watched: Watched) -> int:
        """How many events the watch of a kind has told so far: a dead one tells no more."""
        return self._told[watched.kind]

    def see(self, watched: Watched, raw: Raw) -> bool:
        """An object as it is now; returns whether that is news."""
        view = watched.read(raw)
        news = watched.shelf.put(view)
        if news:
            self._ask(view.key)
        return news

    def gone(self, watched: Watched, uid: str, version: str | None = None) -> None:
        """An object that is no more, and the version it went with where that is known."""
        known = watched.shelf.bury(uid, version)
        if known is not None:
            self._ask(known.key)
        if watched.kind is FINETUNEJOBS:
            self._memory.forget(uid)
