"""The process: every part made, started in order, and ended together."""

import asyncio
import logging
import time
from datetime import UTC, datetime

from olivine_api import names
from olivine_operator.handlers.feed import Feed, Watched
from olivine_operator.handlers.resync import Resync
from olivine_operator.handlers.watching import watch
from olivine_operator.plan.observed import BuildReport, BundleView, JobView, Key, NamespaceView, Report
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.runtime.api import NAMESPACES, ApiError, KubeApi, connect
from olivine_operator.runtime.bundle_reconciler import BundleReconciler
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.config import this_replica
from olivine_operator.runtime.election import Election
from olivine_operator.runtime.forwarding import Forwarder
from olivine_operator.runtime.health import serve_health
from olivine_operator.runtime.metrics import Metrics
from olivine_operator.runtime.policies import Policies
from olivine_operator.runtime.reconciler import Reconciler
from olivine_operator.runtime.reports import Memory
from olivine_operator.runtime.status_server import StatusServer
from olivine_operator.runtime.tls import StatusTls
from olivine_operator.runtime.tokens import TokenVerifier
from olivine_operator.runtime.workers import WorkQueue

_log = logging.getLogger(__name__)
_AGAIN_SECONDS = 1.0


def _now() -> datetime:
    return datetime.now(UTC)


async def run_operator(settings: OperatorSettings) -> None:
    """Runs until SIGTERM; fails where a part cannot go on, so that Kubernetes starts it anew."""
    metrics = Metrics()
    api = await connect(metrics)
    try:
        await Operator(settings, api, metrics).run()
    finally:
        await api.close()


class Operator:
    """All parts of one operator."""

    def __init__(self, settings: OperatorSettings, api: KubeApi, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._cache = Cache()
        self._memory: Memory[Report] = Memory()
        self._builds: Memory[BuildReport] = Memory()
        # Of this term only: what a standby hears is looked at when it leads.
        self._queue: WorkQueue | None = None
        self._tls = StatusTls(api, settings)
        self._serving = False
        replica = this_replica(settings)
        self._election = Election(api=api, namespace=settings.namespace, identity=replica.identity, metrics=metrics)
        api.fence(self._election.remaining)
        self._forwarder = Forwarder(
            own=replica.identity,
            leader=self._election.leader,
            trusted=self._tls.trusted,
            server_name=settings.status_host,
        )
        feed = Feed(self._cache, self._memory, self._builds, self._ask)
        if settings.policies:
            feed.watch_too(Watched(kind=NAMESPACES, shelf=self._cache.namespaces, read=NamespaceView.from_raw))
        self._feed = feed
        self._resync = Resync(api=api, feed=feed, metrics=metrics, every_seconds=settings.resync_seconds, clock=time.monotonic)
        policies = Policies(api, self._cache, settings)
        self._reconciler = Reconciler(
            api=api,
            cache=self._cache,
            memory=self._memory,
            policies=policies,
            metrics=metrics,
            ca_certificate=self._tls.ca_certificate,
            clock=_now,
            tell_bundles=feed.tell_bundles,
        )
        self._bundles = BundleReconciler(
            api=api,
            cache=self._cache,
            memory=self._builds,
            policies=policies,
            ca_certificate=self._tls.ca_certificate,
            clock=_now,
        )
        self._server = StatusServer(
            cache=self._cache,
            verifier=TokenVerifier(api, time.time),
            accept=self._accept,
            accept_build=self._accept_build,
            metrics=metrics,
            ready=lambda: self._serving,
            leading=self._election.leading,
            forward=self._forwarder.forward,
            clock=_now,
        )
        metrics.observe_watches(self._resync.readings, self._resync.listing_age)
        metrics.observe_phases(
            lambda: (str(job.status.get("phase", "Pending")) for job in self._cache.jobs),
            lambda: (str(bundle.status.get("phase", "Pending")) for bundle in self._cache.bundles),
        )

    async def run(self) -> None:
        """Runs until the watches end."""
        settings = self._settings
        health = await serve_health(
            settings.http_address, settings.http_port, metrics=self._metrics, alive=self._resync.trouble, ready=self._not_ready
        )
        try:
            await self._resync.wait_for_crd()
            await self._tls.load()
            await self._run_together()
        finally:
            await self._server.stop()
            await self._forwarder.close()
            await health.cleanup()

    async def _run_together(self) -> None:
        """All tasks; the first one that ends takes the others with it."""
        others = [
            asyncio.create_task(self._work(), name="work"),
            asyncio.create_task(self._tls.keep(self._look_at_all), name="certificate"),
        ]
        stopped = asyncio.Event()

        def stop() -> None:
            # Before kopf ends: it would wait for every task that is younger than itself.
            stopped.set()
            for task in others:
                task.cancel()

        watching = asyncio.create_task(watch(self._feed, stop), name="watch")
        await asyncio.wait([*others, watching], return_when=asyncio.FIRST_COMPLETED)
        if not stopped.is_set():
            watching.cancel()
            stop()
        results = await asyncio.gather(*others, watching, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _work(self) -> None:
        endpoint = self._settings.status_endpoint
        await self._resync.reach_sync()
        await self._server.start(endpoint.address, endpoint.port, self._tls.context)
        self._serving = True
        _log.info(
            "ready: %d FineTuneJobs, %d AdapterBundles", len(self._cache.jobs.versions()), len(self._cache.bundles.versions())
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._election.run(self._lead))
            group.create_task(self._resync.keep())

    async def _lead(self) -> None:
        """A term: nothing is left of an earlier one, nothing of this one is left when it ends."""
        # What the last leader wrote at its end may not be told yet.
        await self._catch_up()
        self._memory.clear()
        self._builds.clear()
        self._queue = queue = WorkQueue(self._metrics)
        self._look_at_all()
        try:
            await queue.run(self._settings.workers, self._look)
        finally:
            self._queue = None

    async def _look(self, key: Key) -> float | None:
        return await (self._bundles if key[1].startswith(names.BUNDLE_PREFIX) else self._reconciler).look(key)

    async def _catch_up(self) -> None:
        while True:
            try:
                return await self._resync.catch_up()
            except ApiError as error:
                _log.warning("the cache was not compared, which a new leader begins with: %s", error.message)
                await asyncio.sleep(_AGAIN_SECONDS)

    def _ask(self, key: Key) -> None:
        if self._queue is not None and key[1]:  # a namespace is no job
            self._queue.add(key)

    def _look_at_all(self) -> None:
        for resource in (*self._cache.jobs, *self._cache.bundles):
            self._ask(resource.key)

    def _not_ready(self) -> str | None:
        return None if self._serving else "still reading the cluster's state"

    def _accept(self, job: JobView, report: Report) -> None:
        self._memory.take_report(job.uid, report)
        self._ask(job.key)

    def _accept_build(self, bundle: BundleView, report: BuildReport) -> None:
        self._builds.take_report(bundle.uid, report)
        self._ask(bundle.key)
