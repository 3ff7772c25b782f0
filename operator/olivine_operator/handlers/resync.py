"""Compares the cache with the API server: at the start until they agree, later once in a while.

kopf tells of no deletion that it missed, and a watch may be dead without anybody noticing.
"""

import asyncio
import logging
from collections.abc import Callable

from olivine_api import names
from olivine_operator.handlers.feed import Feed, Watched
from olivine_operator.runtime.api import ApiError, KubeApi
from olivine_operator.runtime.cache import newer
from olivine_operator.runtime.metrics import Metrics

_log = logging.getLogger(__name__)

_START_SECONDS = 120.0
_LAG_SECONDS = 5.0
# After a listing that found a watch behind, the next one comes soon.
_SUSPICIOUS_SECONDS = 30.0
_MISSED_LISTINGS = 3


class NotInSyncError(Exception):
    """The watches did not deliver what a listing shows."""


class Resync:
    """Listings, and what they say of the watches' health."""

    def __init__(self, *, api: KubeApi, feed: Feed, metrics: Metrics, every_seconds: float, clock: Callable[[], float]) -> None:
        self._api = api
        self._feed = feed
        self._metrics = metrics
        self._every = every_seconds
        self._clock = clock
        self._listed_at = clock()
        self._behind: dict[str, int] = {}
        self.synced = False

    def trouble(self) -> str | None:
        """Why the operator should be started anew."""
        dead = [kind for kind, times in self._behind.items() if times >= 2]
        if dead:
            return f"the watch of {', '.join(dead)} is dead: listings show what it does not tell"
        # The listings' own failures are the API server's, mostly: a restart mends only what lasts.
        if self.synced and self._clock() - self._listed_at > _MISSED_LISTINGS * max(self._every, 60.0):
            return "the API server has not answered a listing for a long time"
        return None

    async def wait_for_crd(self) -> None:
        """Returns when FineTuneJobs are served: kopf looks for them once only."""
        told = False
        while True:
            try:
                await self._api.list(self._feed.watched[0].kind, limit=1)
                return
            except ApiError as error:
                if not told:
                    _log.warning("waiting for the CustomResourceDefinition of FineTuneJob: %s", error.message)
                told = True
            await asyncio.sleep(2)

    async def reach_sync(self) -> None:
        """Returns when the cache holds all that a listing shows. Before that, a child that is not in it may exist nevertheless."""
        deadline = self._clock() + _START_SECONDS
        for watched in self._feed.watched:
            while stale := self._stale(watched, await self._versions(watched)):
                if self._clock() > deadline:
                    raise NotInSyncError(f"the watch of {watched.kind.plural} does not tell of {len(stale)} objects")
                await asyncio.sleep(0.2)
        self._listed_at = self._clock()
        self.synced = True

    async def keep(self) -> None:
        """Compares for ever."""
        while True:
            await asyncio.sleep(_SUSPICIOUS_SECONDS if any(self._behind.values()) else self._every)
            try:
                for watched in self._feed.watched:
                    await self.compare(watched)
                self._listed_at = self._clock()
            except ApiError as error:
                _log.warning("the cache was not compared: %s", error.message)

    async def compare(self, watched: Watched) -> None:
        """Drops what is gone, and fetches what the watch did not tell."""
        before = watched.shelf.versions()
        listed = await self._versions(watched)
        for uid, version in before.items():
            known = watched.shelf.by_uid(uid)
            # What came or changed after the listing began may rightly be missing from it.
            if uid not in listed and known is not None and known.resource_version == version:
                self._feed.gone(watched, uid)
        stale = self._stale(watched, listed)
        if stale:
            await asyncio.sleep(_LAG_SECONDS)
            stale = self._stale(watched, {uid: listed[uid] for uid in stale})
        missed = 0
        for uid in stale:
            if await self._fetch(watched, *listed[uid][1:]):
                self._metrics.stale_objects.labels(watched.kind.name).inc()
                missed += 1
        self._behind[watched.kind.plural] = self._behind.get(watched.kind.plural, 0) + 1 if missed else 0

    async def _fetch(self, watched: Watched, namespace: str, name: str) -> bool:
        """Whether the watch had missed something: not what was deleted, or told, in the meantime."""
        try:
            return self._feed.see(watched, await self._api.get(watched.kind, namespace, name))
        except ApiError as error:
            if error.code != 404:
                raise
            return False

    def _stale(self, watched: Watched, listed: dict[str, tuple[str, str, str]]) -> list[str]:
        known = watched.shelf.versions()
        return [uid for uid, (version, _, _) in listed.items() if uid not in known or newer(version, known[uid])]

    async def _versions(self, watched: Watched) -> dict[str, tuple[str, str, str]]:
        """resourceVersion, namespace and name by uid."""
        found: dict[str, tuple[str, str, str]] = {}
        token: str | None = None
        while True:
            page = await self._api.list(watched.kind, label=names.LABEL_JOB if watched.children else None, token=token)
            for item in page.get("items") or ():
                metadata = item["metadata"]
                found[metadata["uid"]] = (metadata["resourceVersion"], metadata["namespace"], metadata["name"])
            token = page["metadata"].get("continue")
            if not token:
                return found
