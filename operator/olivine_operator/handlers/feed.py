"""What is seen of an object goes into the cache; what is news there asks for a look at the resource it belongs to."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from olivine_api import names
from olivine_operator.plan.bundle.gathering import is_interested
from olivine_operator.plan.observed import (
    KUEUE_JOB_UID_LABEL,
    BuildReport,
    BundleView,
    ChildView,
    JobView,
    Key,
    PodView,
    Raw,
    Report,
    WorkloadView,
)
from olivine_operator.runtime.api import (
    ADAPTERBUNDLES,
    FINETUNEJOBS,
    JOBS,
    JOBSETS,
    NAMESPACES,
    OLD_WORKLOADS,
    PODS,
    WORKLOADS,
    Kind,
)
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

    def __init__(self, cache: Cache, memory: Memory[Report], builds: Memory[BuildReport], ask: Callable[[Key], None]) -> None:
        self.watched = (
            Watched(kind=FINETUNEJOBS, shelf=cache.jobs, read=JobView.from_raw),
            Watched(kind=JOBS, shelf=cache.children, read=ChildView.from_raw, label=names.LABEL_JOB),
            Watched(kind=PODS, shelf=cache.pods, read=PodView.from_raw, label=names.LABEL_JOB),
            Watched(kind=ADAPTERBUNDLES, shelf=cache.bundles, read=BundleView.from_raw),
        )
        self._cache = cache
        self._memory = memory
        self._builds = builds
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
        before = watched.shelf.by_uid(view.uid)
        news = watched.shelf.put(view)
        if news:
            self._ask(view.key)
            if watched.kind is NAMESPACES and (before is None or before.labels != view.labels):
                self._ask_bundles_in(view.name)
            if watched.kind is FINETUNEJOBS and _concerns_bundles(before, view):
                self.tell_bundles(view)
        return news

    def gone(self, watched: Watched, uid: str, version: str | None = None) -> None:
        """An object that is no more, and the version it went with where that is known."""
        known = watched.shelf.bury(uid, version)
        if known is not None:
            self._ask(known.key)
        if watched.kind is FINETUNEJOBS:
            self._memory.forget(uid)
            if known is not None:
                self.tell_bundles(known)
        elif watched.kind is ADAPTERBUNDLES:
            self._builds.forget(uid)

    def _ask_bundles_in(self, namespace: str) -> None:
        """Another policy may hold there: a spec that was refused waits for that, too."""
        for bundle in self._cache.bundles:
            if bundle.namespace == namespace:
                self._ask(bundle.key)

    def tell_bundles(self, job: JobView) -> None:
        """Asks for a look at the bundles of its namespace that may take its adapter."""
        for bundle in self._cache.bundles:
            if bundle.namespace == job.namespace and is_interested(bundle.spec, job):
                self._ask(bundle.key)


def _concerns_bundles(before: JobView | None, now: JobView) -> bool:
    """Not each step of a job's progress is news to a bundle."""
    return before is None or before.labels != now.labels or before.status.get("phase") != now.status.get("phase")
