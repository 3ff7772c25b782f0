"""What the watches told: projections of FineTuneJobs, their Jobs and pods, by the FineTuneJob they belong to."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from olivine_operator.plan.observed import BundleView, ChildView, JobView, Key, NamespaceView, PodView, WorkloadView


class View(Protocol):
    """What all projections have."""

    @property
    def key(self) -> Key:
        """The FineTuneJob it belongs to."""
        ...

    @property
    def uid(self) -> str:
        """The object's uid."""
        ...

    @property
    def resource_version(self) -> str:
        """The object's version."""
        ...


V = TypeVar("V", bound=View)
J = TypeVar("J", bound=JobView)

# The answer to a request may come after the watch told of the object's end: longer than any request takes.
_TOMBSTONE_SECONDS = 60.0


def newer(version: str, than: str) -> bool:
    """Whether a resourceVersion is later than another of the same kind."""
    # Comparable as numbers by definition since Kubernetes 1.35, and in fact with every etcd before.
    return int(version) > int(than)


class Shelf(Generic[V]):
    """The objects of one kind."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By uid: when it was dug, and the version that the object went with.
        self._tombstones: dict[str, tuple[float, str | None]] = {}
        self._by_key: dict[Key, dict[str, V]] = {}
        self._by_uid: dict[str, V] = {}
        # By uid: a version that a request's answer showed before the watch told of it, and since when it has not.
        self._unheard: dict[str, tuple[float, str]] = {}

    def put(self, view: V) -> bool:
        """Takes a projection unless a newer one is there, or the object is gone; returns whether it is news."""
        if self._is_gone(view):
            return False
        known = self._by_uid.get(view.uid)
        if known is not None and not newer(view.resource_version, known.resource_version):
            return False
        if known is not None and known.key != view.key:
            self.drop(view.uid)  # relabelled
        self._by_uid[view.uid] = view
        self._by_key.setdefault(view.key, {})[view.uid] = view
        return True

    def keep(self, view: V) -> None:
        """Takes a projection as the answer to a request of ours shows it: the watch is to tell of it, too."""
        if self.put(view):
            self._unheard.setdefault(view.uid, (self._clock(), view.resource_version))

    def outdated(self, view: V) -> None:
        """That the API server has a later version than this one, as a conflict shows: the watch is to tell of that, too."""
        known = self._by_uid.get(view.uid)
        if known is not None and not newer(known.resource_version, view.resource_version):
            self._unheard.setdefault(view.uid, (self._clock(), str(int(view.resource_version) + 1)))

    def heard(self, uid: str, version: str) -> None:
        """That the watch told of an object in a version."""
        expected = self._unheard.get(uid)
        if expected is not None and not newer(expected[1], version):
            del self._unheard[uid]

    def unheard_seconds(self) -> float:
        """For how long the watch has not told of something that we wrote ourselves."""
        return self._clock() - min((since for since, _ in self._unheard.values()), default=self._clock())

    def bury(self, uid: str, version: str | None = None) -> V | None:
        """Forgets an object and does not take it again for a minute, unless in a version later than that it went with."""
        now = self._clock()
        # The oldest come first.
        while self._tombstones and self._tombstones[oldest := next(iter(self._tombstones))][0] + _TOMBSTONE_SECONDS <= now:
            del self._tombstones[oldest]
        self._tombstones.pop(uid, None)
        self._tombstones[uid] = now, version
        return self.drop(uid)

    def _is_gone(self, view: V) -> bool:
        since, version = self._tombstones.get(view.uid, (None, None))
        if since is None or since + _TOMBSTONE_SECONDS <= self._clock():
            return False
        # Later than its end: it had only lost its label, and has it again.
        return version is None or not newer(view.resource_version, version)

    def drop(self, uid: str) -> V | None:
        """Forgets an object; returns what was known of it."""
        known = self._by_uid.pop(uid, None)
        self._unheard.pop(uid, None)
        if known is not None:
            siblings = self._by_key[known.key]
            del siblings[uid]
            if not siblings:
                del self._by_key[known.key]
        return known

    def of(self, key: Key) -> tuple[V, ...]:
        """The objects that belong to a FineTuneJob of this name."""
        return tuple(self._by_key.get(key, {}).values())

    def by_uid(self, uid: str) -> V | None:
        """One object."""
        return self._by_uid.get(uid)

    def versions(self) -> Mapping[str, str]:
        """The resourceVersion of each object by its uid."""
        return {uid: view.resource_version for uid, view in self._by_uid.items()}

    def __iter__(self) -> Iterator[V]:
        return iter(tuple(self._by_uid.values()))


def _latest(found: Iterable[J]) -> J | None:
    return max(found, key=lambda job: (not job.deleting, int(job.resource_version)), default=None)


class Cache:
    """All that is known of the cluster."""

    def __init__(self) -> None:
        self.jobs: Shelf[JobView] = Shelf()
        self.bundles: Shelf[BundleView] = Shelf()
        self.children: Shelf[ChildView] = Shelf()
        self.jobsets: Shelf[ChildView] = Shelf()
        self.pods: Shelf[PodView] = Shelf()
        self.workloads: Shelf[WorkloadView] = Shelf()
        self.namespaces: Shelf[NamespaceView] = Shelf()
        self.serves_jobsets = False
        self.serves_workloads = False

    def job(self, key: Key) -> JobView | None:
        """The FineTuneJob of this name; of two generations of a name, the one that stays, else the later one."""
        return _latest(self.jobs.of(key))

    def bundle(self, key: Key) -> BundleView | None:
        """The AdapterBundle of this key; of two generations as above."""
        return _latest(self.bundles.of(key))

    def jobs_in(self, namespace: str) -> dict[str, JobView]:
        """The FineTuneJobs of a namespace by name."""
        keys = {job.key for job in self.jobs if job.namespace == namespace}
        return {key[1]: job for key in keys if (job := self.job(key)) is not None}

    def builds_of(self, bundle: BundleView) -> tuple[ChildView, ...]:
        """The Jobs of a bundle's builds: others' are never taken for them."""
        found = [child for child in self.children.of(bundle.key) if child.owner_uid == bundle.uid]
        # As in `child`: what Kueue has suspended without a queue's label is not ours to resume.
        held = {workload.owner_uid for workload in self.workloads} if any(child.suspended for child in found) else set[str | None]()
        return tuple(replace(child, queued=True) if child.uid in held else child for child in found)

    def child(self, job: JobView) -> ChildView | None:
        """The job's own Job or JobSet: one with another owner is never taken for it."""
        jobs = self.children.of(job.key)
        child = next((child for child in (*jobs, *self.jobsets.of(job.key)) if child.owner_uid == job.uid), None)
        if child is None:
            return None
        inner = next((inner for inner in jobs if inner.owner_uid == child.uid), None)
        child = child.with_inner(inner) if inner is not None else child
        # Kueue may manage what carries no queue's label, too (manageJobsWithoutQueueName): its suspend is not ours to fight over.
        return replace(child, queued=True) if self._workload(job, child) is not None else child

    def pods_of_build(self, bundle: BundleView, job: str) -> tuple[PodView, ...]:
        """The pods of the build that this Job does."""
        uids = {child.uid for child in self.builds_of(bundle) if child.name == job}
        return tuple(pod for pod in self.pods.of(bundle.key) if pod.owner_uid in uids)

    def keep_child(self, child: ChildView) -> None:
        """Takes a child as a request's answer shows it, before the watch tells."""
        (self.jobsets if child.kind == "JobSet" else self.children).keep(child)

    def pods_left(self, job: JobView) -> tuple[PodView, ...]:
        """The pods of a job whose child is gone, by their label: they have their grace, and something to tell."""
        return tuple(pod for pod in self.pods.of(job.key) if pod.job_uid == job.uid)

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """The pods of the job's own child; a JobSet's pods belong to the Job that it made."""
        child = self.child(job)
        if child is None:
            return ()
        owners = {child.uid, *(inner.uid for inner in self.children.of(job.key) if inner.owner_uid == child.uid)}
        return tuple(pod for pod in self.pods.of(job.key) if pod.owner_uid in owners)

    def namespace(self, name: str) -> NamespaceView | None:
        """The namespace of this name; of two generations, the later one."""
        return max(self.namespaces.of((name, "")), key=lambda found: int(found.resource_version), default=None)

    def workload_of(self, job: JobView) -> WorkloadView | None:
        """Kueue's Workload of the job's own child."""
        child = self.child(job)
        return self._workload(job, child) if child is not None else None

    def _workload(self, job: JobView, child: ChildView) -> WorkloadView | None:
        return next((workload for workload in self.workloads.of(job.key) if workload.owner_uid == child.uid), None)
