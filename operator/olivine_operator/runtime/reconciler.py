"""A look at one FineTuneJob: observe, plan, write, act."""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from olivine_api.status import FineTuneJobStatus, Phase
from olivine_operator.plan.conditions import is_terminal
from olivine_operator.plan.observed import JobView, Key, Observed, Report
from olivine_operator.plan.outcome import Plan
from olivine_operator.plan.reconcile import plan
from olivine_operator.runtime.api import ApiError, KubeApi
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.children import Children
from olivine_operator.runtime.logs import about
from olivine_operator.runtime.metrics import Metrics
from olivine_operator.runtime.policies import Policies
from olivine_operator.runtime.reports import Memory
from olivine_operator.runtime.status_writer import post_events, write_status

_log = logging.getLogger(__name__)


class Reconciler:
    """Holds what a look needs, and no state of its own."""

    def __init__(
        self,
        *,
        api: KubeApi,
        cache: Cache,
        memory: Memory[Report],
        policies: Policies,
        metrics: Metrics,
        ca_certificate: Callable[[], str],
        clock: Callable[[], datetime],
        tell_bundles: Callable[[JobView], None],
    ) -> None:
        self._api = api
        self._cache = cache
        self._memory = memory
        self._policies = policies
        self._metrics = metrics
        self._ca_certificate = ca_certificate
        self._clock = clock
        self._tell_bundles = tell_bundles
        self._children = Children(api, cache)

    async def look(self, key: Key) -> float | None:
        """One look; returns after how many seconds the next one is wanted."""
        job = self._cache.job(key)
        if job is None:
            return None
        observed = self._observe(job)
        settings = await self._policies.settings_for(job.namespace)
        planned = plan(observed, self._clock(), settings)
        job = await self._write(job, planned)
        for action in planned.actions if job is not None else ():
            obstacle = await self._children.perform(job, action) if job is not None else None
            if obstacle is not None and job is not None:
                # Told at once; what follows from it is planned from it.
                planned = plan(replace(self._observe(job), obstacle=obstacle), self._clock(), settings)
                await self._write(job, planned)
                break
        return planned.requeue_after

    def _observe(self, job: JobView) -> Observed:
        child = self._cache.child(job)
        return Observed(
            job=job,
            child=child,
            pods=self._cache.pods_of(job) if child is not None else self._cache.pods_left(job),
            report=self._memory.report(job.uid),
            written_at=self._memory.written_at(job.uid),
            ca_certificate=self._ca_certificate(),
            workload=self._cache.workload_of(job),
            serves_jobsets=self._cache.serves_jobsets,
            serves_workloads=self._cache.serves_workloads,
        )

    async def _write(self, job: JobView, planned: Plan) -> JobView | None:
        """The job as it is afterwards; None where it is gone."""
        if planned.status is None:
            return job
        try:
            written = await write_status(self._api, job, planned.status)
        except ApiError as error:
            if error.code == 409:
                self._cache.jobs.outdated(job)
            if error.code != 404:
                raise
            return None  # the watch will tell
        self._cache.jobs.keep(written)
        self._memory.mark_written(job.uid, self._clock())
        await post_events(self._api, written, planned.events)
        self._tell_phase(job, planned.status)
        return written

    def _tell_phase(self, job: JobView, status: FineTuneJobStatus) -> None:
        if job.status.get("phase") == status.phase:
            return
        about(_log, job).info("%s", status.phase.value if status.phase else "")
        # What we wrote ourselves is no news when the watch tells of it.
        self._tell_bundles(job)
        if is_terminal(status.conditions):
            self._metrics.finished.labels("succeeded" if status.phase is Phase.SUCCEEDED else "failed").inc()
            self._memory.forget(job.uid)
