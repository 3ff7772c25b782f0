"""Compares the cache with the API server: at the start until they agree, later once in a while.

kopf tells of no deletion that it missed, and a watch may be dead without anybody noticing.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from olivine_operator.handlers.feed import Feed, Watched
from olivine_operator.runtime.api import ADAPTERBUNDLES, FINETUNEJOBS, ApiError, Kind, KubeApi
from olivine_operator.runtime.cache import newer
from olivine_operator.runtime.metrics import Metrics, WatchReading

_log = logging.getLogger(__name__)

_START_SECONDS = 120.0
_LAG_SECONDS = 5.0
_CRD_SECONDS = 2.0
# After a listing that found a watch behind, the next one comes soon.
_SUSPICIOUS_SECONDS = 30.0
_MISSED_LISTINGS = 3
# A watch tells of what we wrote ourselves within a second; one that does not is looked into, without waiting for the next listing.
_ECHO_SECONDS = 20.0
_GLANCE_SECONDS = 10.0


class NotInSyncError(Exception):
    """The watches did not deliver what a listing shows."""


@dataclass(frozen=True, kw_only=True)
class _Behind:
    """A watch that missed something: how many times in a row, and how many events it had told by the last time."""

    times: int
    told: int


class Resync:
    """Listings, and what they say of the watches' health."""

    def __init__(self, *, api: KubeApi, feed: Feed, metrics: Metrics, every_seconds: float, clock: Callable[[], float]) -> None:
        self._api = api
        self._feed = feed
        self._metrics = metrics
        self._every = every_seconds
        self._clock = clock
        self._listed_at = clock()
        self._behind: dict[Kind, _Behind] = {}
        self._appeared: list[str] = []
        self.synced = False

    def readings(self) -> list[WatchReading]:
        """How each watch does."""
        return [
            WatchReading(
                kind=watched.kind.name,
                told=self._feed.told(watched),
                behind=behind.times if (behind := self._behind.get(watched.kind)) is not None else 0,
            )
            for watched in self._feed.watched
        ]

    def listing_age(self) -> float:
        """Seconds since the cache was last compared."""
        return self._clock() - self._listed_at

    def trouble(self) -> str | None:
        """Why the operator should be started anew."""
        dead = [kind.plural for kind, behind in self._behind.items() if behind.times >= 2]
        if dead:
            return f"the watch of {', '.join(dead)} is dead: listings show what it does not tell"
        if self._appeared:
            # kopf chooses its watches once.
            return f"the cluster has got {', '.join(self._appeared)}, which only a new start can watch"
        # The listings' own failures are the API server's, mostly: a restart mends only what lasts.
        if self.synced and self.listing_age() > _MISSED_LISTINGS * max(self._every, 60.0):
            return "the API server has not answered a listing for a long time"
        return None

    async def wait_for_crd(self) -> None:
        """Returns when our own kinds are served and discovered: kopf looks for them in API discovery, once only."""
        for kind in (FINETUNEJOBS, ADAPTERBUNDLES):
            told = False
            while (missing := await self._missing(kind)) is not None:
                if not told:
                    _log.warning("waiting for the CustomResourceDefinition of %s: %s", kind.name, missing)
                told = True
                await asyncio.sleep(_CRD_SECONDS)
        for watched in await self._new_kinds():
            self._feed.watch_too(watched)
            _log.info("the cluster has %s", watched.kind.plural)

    async def _new_kinds(self) -> list[Watched]:
        """The optional kinds that the cluster has and that are not watched yet, the best version of each."""
        known = {watched.kind.name for watched in self._feed.watched}
        found: list[Watched] = []
        for watched in self._feed.optional():
            if watched.kind.name not in known and await self._missing(watched.kind) is None:
                known.add(watched.kind.name)
                found.append(watched)
        return found

    async def _missing(self, kind: Kind) -> str | None:
        try:
            await self._api.list(kind, limit=1)
            return None if await self._api.discovers(kind) else "API discovery does not list it yet"
        except ApiError as error:
            return error.message

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

    async def catch_up(self) -> None:
        """Mends the cache now, whatever the watches tell: before the first decisions of a new leader."""
        for watched in self._feed.watched:
            listed = await self._without_the_gone(watched)
            for uid in self._stale(watched, listed):
                await self._fetch(watched, uid, *listed[uid][1:])
        self._listed_at = self._clock()

    async def keep(self) -> None:
        """Compares for ever."""
        while True:
            await self._rest()
            try:
                for watched in self._feed.watched:
                    await self.compare(watched)
                self._listed_at = self._clock()
                self._appeared = [watched.kind.plural for watched in await self._new_kinds()]
            except ApiError as error:
                _log.warning("the cache was not compared: %s", error.message)
            except Exception:  # noqa: BLE001 - what one listing holds must not end the operator
                _log.exception("the cache was not compared")

    async def _rest(self) -> None:
        """Until the next comparison; no longer than until a watch is silent about something that it ought to have told."""
        if self._behind:
            await asyncio.sleep(_SUSPICIOUS_SECONDS)
            return
        left = self._every
        while left > 0 and not any(_is_silent(watched) for watched in self._feed.watched):
            await asyncio.sleep(min(left, _GLANCE_SECONDS))
            left -= _GLANCE_SECONDS

    async def compare(self, watched: Watched) -> None:
        """Drops what is gone, and fetches what the watch did not tell."""
        listed = await self._without_the_gone(watched)
        stale = self._stale(watched, listed)
        if stale:
            await asyncio.sleep(_LAG_SECONDS)
            stale = self._stale(watched, {uid: listed[uid] for uid in stale})
        missed = 0
        for uid in stale:
            if await self._fetch(watched, uid, *listed[uid][1:]):
                self._metrics.stale_objects.labels(watched.kind.name).inc()
                missed += 1
        self._judge(watched, missed=missed > 0 or _is_silent(watched))

    async def _without_the_gone(self, watched: Watched) -> dict[str, tuple[str, str, str]]:
        before = watched.shelf.versions()
        listed = await self._versions(watched)
        for uid, version in before.items():
            known = watched.shelf.by_uid(uid)
            # What came or changed after the listing began may rightly be missing from it.
            if uid not in listed and known is not None and known.resource_version == version:
                self._feed.gone(watched, uid)
        return listed

    def _judge(self, watched: Watched, *, missed: bool) -> None:
        told, behind = self._feed.told(watched), self._behind.get(watched.kind)
        if missed:
            self._behind[watched.kind] = _Behind(times=behind.times + 1 if behind is not None else 1, told=told)
        elif behind is not None and told > behind.told:
            # Of a watch that told nothing since, it only shows that nothing happened.
            del self._behind[watched.kind]

    async def _fetch(self, watched: Watched, uid: str, namespace: str, name: str) -> bool:
        """Whether the watch had missed something: not what was deleted, replaced, relabelled or told in the meantime."""
        try:
            raw = await self._api.get(watched.kind, namespace or None, name)
        except ApiError as error:
            if error.code != 404:
                raise
            self._feed.gone(watched, uid)
            return False
        metadata = raw["metadata"]
        if metadata["uid"] != uid or (watched.label is not None and watched.label not in metadata.get("labels", {})):
            self._feed.gone(watched, uid, metadata["resourceVersion"])
            return False
        return self._feed.see(watched, raw)

    def _stale(self, watched: Watched, listed: dict[str, tuple[str, str, str]]) -> list[str]:
        known = watched.shelf.versions()
        return [uid for uid, (version, _, _) in listed.items() if uid not in known or newer(version, known[uid])]

    async def _versions(self, watched: Watched) -> dict[str, tuple[str, str, str]]:
        """resourceVersion, namespace and name by uid."""
        found: dict[str, tuple[str, str, str]] = {}
        token: str | None = None
        while True:
            page = await self._api.list(watched.kind, label=watched.label, token=token)
            for item in page.get("items") or ():
                metadata = item["metadata"]
                found[metadata["uid"]] = (metadata["resourceVersion"], metadata.get("namespace", ""), metadata["name"])
            token = page["metadata"].get("continue")
            if not token:
                return found


def _is_silent(watched: Watched) -> bool:
    return watched.shelf.unheard_seconds() > _ECHO_SECONDS
