"""A look at one AdapterBundle: observe, plan, write, act."""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from olivine_operator.plan.bundle.observed import BundlePlan, ObservedBundle
from olivine_operator.plan.bundle.reconcile import plan_bundle
from olivine_operator.plan.observed import BuildReport, BundleView, Key, PodView
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.runtime.api import ApiError, KubeApi
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.children import Children
from olivine_operator.runtime.logs import about
from olivine_operator.runtime.policies import Policies
from olivine_operator.runtime.reports import Memory
from olivine_operator.runtime.status_writer import post_events, write_status

_log = logging.getLogger(__name__)


class BundleReconciler:
    """Holds what a look needs, and no state of its own."""

    def __init__(
        self,
        *,
        api: KubeApi,
        cache: Cache,
        memory: Memory[BuildReport],
        policies: Policies,
        ca_certificate: Callable[[], str],
        clock: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._cache = cache
        self._memory = memory
        self._policies = policies
        self._ca_certificate = ca_certificate
        self._clock = clock
        self._children = Children(api, cache)

    async def look(self, key: Key) -> float | None:
        """One look; returns after how many seconds the next one is wanted."""
        bundle = self._cache.bundle(key)
        if bundle is None:
            return None
        settings = await self._policies.settings_for(bundle.namespace)
        planned = self._plan(self._observe(bundle), settings)
        written = await self._write(bundle, planned)
        for action in planned.actions if written is not None else ():
            obstacle = await self._children.perform(written, action) if written is not None else None
            if obstacle is not None and written is not None:
                # Told at once; what follows from it is planned from it.
                planned = self._plan(replace(self._observe(written), obstacle=obstacle), settings)
                await self._write(written, planned)
                break
        return planned.requeue_after

    def _plan(self, observed: ObservedBundle, settings: OperatorSettings) -> BundlePlan:
        return plan_bundle(observed, self._clock(), settings)

    def _observe(self, bundle: BundleView) -> ObservedBundle:
        builds = self._cache.builds_of(bundle)
        return ObservedBundle(
            bundle=bundle,
            jobs=self._cache.jobs_in(bundle.namespace),
            children=builds,
            pods=self._pods(bundle),
            report=self._memory.report(bundle.uid),
            ca_certificate=self._ca_certificate(),
        )

    def _pods(self, bundle: BundleView) -> tuple[PodView, ...]:
        """Those of the newest build."""
        name = (bundle.status.get("build") or {}).get("job")
        return self._cache.pods_of_build(bundle, name) if name else ()

    async def _write(self, bundle: BundleView, planned: BundlePlan) -> BundleView | None:
        """The bundle as it is afterwards; None where it is gone."""
        if planned.status is None:
            return bundle
        try:
            written = await write_status(self._api, bundle, planned.status)
        except ApiError as error:
            if error.code == 409:
                self._cache.bundles.outdated(bundle)
            if error.code != 404:
                raise
            return None  # the watch will tell
        self._cache.bundles.keep(written)
        await post_events(self._api, written, planned.events)
        if bundle.status.get("phase") != planned.status.phase:
            about(_log, bundle).info("%s", planned.status.phase.value if planned.status.phase else "")
        return written
