"""Listings against the cache: what a watch missed is mended, and a watch that misses again and again is told of."""

import asyncio
from typing import Any, cast

import pytest

from olivine_operator.handlers import resync as module
from olivine_operator.handlers.feed import Feed
from olivine_operator.handlers.resync import Resync
from olivine_operator.runtime.api import ApiError, Kind, KubeApi
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.metrics import Metrics
from olivine_operator.runtime.reports import Memory
from tests.unit.operator.builders import KEY, SPEC


def raw(name: str, version: str) -> dict[str, Any]:
    metadata = {"namespace": KEY[0], "name": name, "uid": f"uid-{name}", "resourceVersion": version, "generation": 1}
    return {"metadata": metadata, "spec": SPEC}


class Api:
    """An API server with these FineTuneJobs, one a page."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.objects = list(objects)
        self.gets: list[str] = []

    async def list(self, _: Kind, *, token: str | None = None, **__: Any) -> Any:
        index = int(token or 0)
        more = {"continue": str(index + 1)} if index + 1 < len(self.objects) else {}
        # An empty list comes as null.
        return {"metadata": more, "items": self.objects[index : index + 1] or None}

    async def get(self, _: Kind, __: str, name: str) -> Any:
        self.gets.append(name)
        found = next((o for o in self.objects if o["metadata"]["name"] == name), None)
        if found is None:
            raise ApiError(404, "NotFound", "gone")
        return found


@pytest.fixture(autouse=True)
def no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAG_SECONDS", 0)


def setup(*objects: dict[str, Any]) -> tuple[Api, Cache, list[Any], Feed, Resync]:
    api, cache, asked = Api(*objects), Cache(), list[Any]()
    feed = Feed(cache, Memory(), asked.append)
    resync = Resync(api=cast(KubeApi, api), feed=feed, metrics=Metrics(), every_seconds=600, clock=lambda: 0.0)
    return api, cache, asked, feed, resync


def test_what_the_watch_missed_is_dropped_and_fetched_and_nothing_else() -> None:
    api, cache, asked, feed, resync = setup(raw("same", "5"), raw("changed", "9"), raw("new", "7"))
    for item in (raw("same", "5"), raw("changed", "8"), raw("deleted", "4")):
        feed.see(feed.watched[0], item)
    asked.clear()
    asyncio.run(resync.compare(feed.watched[0]))
    assert {job.name: job.resource_version for job in cache.jobs} == {"same": "5", "changed": "9", "new": "7"}
    assert sorted(api.gets) == ["changed", "new"]
    assert sorted(name for _, name in asked) == ["changed", "deleted", "new"]


def test_what_came_while_the_listing_was_made_is_kept() -> None:
    api, cache, _, feed, resync = setup()
    listing = api.list

    async def slow(*arguments: Any, **options: Any) -> Any:
        feed.see(feed.watched[0], raw("young", "9"))
        return await listing(*arguments, **options)

    api.list = slow
    asyncio.run(resync.compare(feed.watched[0]))
    assert [job.name for job in cache.jobs] == ["young"]


def test_a_watch_that_misses_twice_in_a_row_is_dead_and_one_that_is_well_again_is_not() -> None:
    api, _, _, feed, resync = setup(raw("a", "1"))
    asyncio.run(resync.compare(feed.watched[0]))
    assert resync.trouble() is None
    api.objects.append(raw("b", "2"))
    asyncio.run(resync.compare(feed.watched[0]))
    assert resync.trouble() == "the watch of finetunejobs is dead: listings show what it does not tell"
    asyncio.run(resync.compare(feed.watched[0]))
    assert resync.trouble() is None


def test_an_object_that_goes_between_listing_and_fetching_is_no_trouble() -> None:
    api, cache, _, feed, resync = setup(raw("a", "1"))

    async def nothing(_: Kind, __: str, name: str) -> Any:
        raise ApiError(404, "NotFound", "gone")

    api.get = nothing
    # However often that happens: the watch is well.
    for _ in range(3):
        asyncio.run(resync.compare(feed.watched[0]))
    assert not list(cache.jobs)
    assert resync.trouble() is None


def test_what_the_watch_told_before_it_was_fetched_is_no_trouble() -> None:
    api, _, _, feed, resync = setup(raw("a", "2"))
    fetching = api.get

    async def late(kind: Kind, namespace: str, name: str) -> Any:
        feed.see(feed.watched[0], api.objects[-1])
        return await fetching(kind, namespace, name)

    api.get = late
    for name in ("b", "c"):
        api.objects.append(raw(name, "3"))
        asyncio.run(resync.compare(feed.watched[0]))
    assert resync.trouble() is None
