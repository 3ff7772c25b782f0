"""Listings against the cache: what a watch missed is mended, and a watch that misses again and again is told of."""

import asyncio
from typing import Any, cast

import pytest

from olivine_operator.handlers import resync as module
from olivine_operator.handlers.feed import Feed
from olivine_operator.handlers.resync import Resync
from olivine_operator.plan.observed import JobView
from olivine_operator.runtime.api import FINETUNEJOBS, ApiError, Kind, KubeApi
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
    feed = Feed(cache, Memory(), Memory(), asked.append)
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
    # Nothing missed and nothing told: that nothing happened says nothing of the watch.
    asyncio.run(resync.compare(feed.watched[0]))
    api.objects.append(raw("b", "2"))
    asyncio.run(resync.compare(feed.watched[0]))
    assert resync.trouble() == "the watch of finetunejobs is dead: listings show what it does not tell"
    asyncio.run(resync.compare(feed.watched[0]))
    assert resync.trouble() is not None
    feed.hear(feed.watched[0], "MODIFIED", raw("b", "3"))
    asyncio.run(resync.compare(feed.watched[0]))
    assert resync.trouble() is None


def test_the_watch_of_one_kind_says_nothing_of_anothers() -> None:
    api, _, _, feed, resync = setup(raw("a", "1"))
    asyncio.run(resync.compare(feed.watched[0]))
    feed.hear(feed.watched[1], "DELETED", raw("child", "9"))
    asyncio.run(resync.compare(feed.watched[0]))
    api.objects.append(raw("b", "2"))
    asyncio.run(resync.compare(feed.watched[0]))
    assert resync.trouble() is not None


@pytest.mark.parametrize("missing", ["the group", "the resource", "the list"])
def test_what_api_discovery_does_not_list_yet_is_waited_for(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CRD_SECONDS", 0)
    looks = 0

    class Young(KubeApi):
        """An API server that learns of FineTuneJobs a little later here than there."""

        def __init__(self) -> None:
            pass

        async def request(self, method: str, kind: Kind, path: str, **_: Any) -> Any:
            nonlocal looks
            looks += path == FINETUNEJOBS.path()
            young = looks < 3
            if path == "/apis":
                group = {"name": "olivine.dev", "versions": [{"groupVersion": "olivine.dev/v1alpha1"}]}
                return {"groups": [] if young and missing == "the group" else [group]}
            if path == "/apis/olivine.dev/v1alpha1":
                return {
                    "resources": []
                    if young and missing == "the resource"
                    else [{"name": name} for name in ("finetunejobs", "adapterbundles")]
                }
            if young and missing == "the list":
                raise ApiError(404, "NotFound", "the server could not find the requested resource")
            return {"metadata": {}, "items": []}

    feed = Feed(Cache(), Memory(), Memory(), lambda _: None)
    resync = Resync(api=Young(), feed=feed, metrics=Metrics(), every_seconds=600, clock=lambda: 0.0)
    asyncio.run(resync.wait_for_crd())
    assert looks == 3


@pytest.mark.parametrize("change", [{"labels": {}}, {"labels": {"olivine.dev/job": "a"}, "uid": "another"}])
def test_a_child_that_lost_its_label_or_was_replaced_while_it_was_fetched_is_gone(change: dict[str, Any]) -> None:
    api, cache, _, feed, resync = setup(raw("a", "1"))
    known, fetched = raw("a", "0"), raw("a", "2")
    known["metadata"] |= {"labels": {"olivine.dev/job": "a"}, "creationTimestamp": "2026-01-01T12:00:00Z"}
    fetched["metadata"] |= change
    feed.see(feed.watched[1], known)

    async def later(_: Kind, __: str, name: str) -> Any:
        return fetched

    api.get = later
    asyncio.run(resync.compare(feed.watched[1]))
    assert not list(cache.children)
    assert resync.trouble() is None


def test_a_bug_in_a_comparison_is_told_and_does_not_end_the_comparing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api, _, _, feed, _ = setup()
    resync = Resync(api=cast(KubeApi, api), feed=feed, metrics=Metrics(), every_seconds=0, clock=lambda: 0.0)
    listings = 0

    async def odd(*_: Any, **__: Any) -> Any:
        nonlocal listings
        listings += 1
        if listings == 1:
            raise KeyError("metadata")
        raise asyncio.CancelledError

    monkeypatch.setattr(api, "list", odd)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(resync.keep())
    assert [record.exc_info is not None for record in caplog.records] == [True]


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


def test_a_new_leader_catches_up_at_once_and_holds_nothing_against_the_watch() -> None:
    api, cache, _, feed, resync = setup(raw("same", "5"), raw("changed", "9"), raw("new", "7"))
    for item in (raw("same", "5"), raw("changed", "8"), raw("deleted", "4")):
        feed.see(feed.watched[0], item)
    jobs_only(feed)
    asyncio.run(resync.catch_up())
    assert cache.jobs.versions() == {"uid-same": "5", "uid-changed": "9", "uid-new": "7"}
    assert sorted(api.gets) == ["changed", "new"]
    assert [reading.behind for reading in resync.readings()] == [0]


def jobs_only(feed: Feed) -> None:
    feed.watched = feed.watched[:1]


def test_a_watch_that_is_silent_about_our_own_writes_is_dead_long_before_the_next_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GLANCE_SECONDS", 0.01)
    monkeypatch.setattr(module, "_SUSPICIOUS_SECONDS", 0.01)
    api, cache, _, feed, resync = setup(raw("a", "1"))
    jobs_only(feed)
    silent = 0.0
    monkeypatch.setattr(cache.jobs, "unheard_seconds", lambda: silent)

    async def live() -> None:
        nonlocal silent
        feed.hear(feed.watched[0], "ADDED", raw("a", "1"))
        keeping = asyncio.create_task(resync.keep())
        await asyncio.sleep(0.05)
        assert [reading.behind for reading in resync.readings()] == [0]
        api.objects = [raw("a", "2")]
        cache.jobs.keep(JobView.from_raw(raw("a", "2")))
        silent = 21.0
        async with asyncio.timeout(5):
            while resync.trouble() is None:
                await asyncio.sleep(0.01)
        # It tells again: well again.
        silent = 0.0
        feed.hear(feed.watched[0], "MODIFIED", raw("a", "2"))
        async with asyncio.timeout(5):
            while resync.trouble() is not None:
                await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(live())


class Young(KubeApi):
    """An API server with FineTuneJobs, and with other groups once it has got them."""

    def __init__(self, *groups: str) -> None:
        self.groups = ["olivine.dev/v1alpha1", "batch/v1", "/api/v1", *groups]

    async def request(self, method: str, kind: Kind, path: str, **_: Any) -> Any:
        if path == "/apis":
            return {"groups": [{"versions": [{"groupVersion": group}]} for group in self.groups]}
        if kind.prefix.removeprefix("/apis/") not in self.groups:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if path == kind.prefix:
            return {"resources": [{"name": kind.plural}]}
        return {"metadata": {}, "items": []}


OPTIONAL: dict[str, tuple[list[str], list[str], tuple[bool, bool]]] = {
    "none": ([], [], (False, False)),
    "JobSets": (["jobset.x-k8s.io/v1alpha2"], ["jobsets"], (True, False)),
    "an old Kueue": (["kueue.x-k8s.io/v1beta1"], ["workloads"], (False, True)),
    "both versions of Kueue": (["kueue.x-k8s.io/v1beta1", "kueue.x-k8s.io/v1beta2"], ["workloads"], (False, True)),
}


@pytest.mark.parametrize("case", OPTIONAL)
def test_kinds_that_the_cluster_has_are_watched(case: str) -> None:
    groups, plurals, (jobsets, workloads) = OPTIONAL[case]
    cache = Cache()
    feed = Feed(cache, Memory(), Memory(), lambda _: None)
    resync = Resync(api=Young(*groups), feed=feed, metrics=Metrics(), every_seconds=600, clock=lambda: 0.0)
    asyncio.run(resync.wait_for_crd())
    assert [watched.kind.plural for watched in feed.watched[4:]] == plurals
    assert (cache.serves_jobsets, cache.serves_workloads) == (jobsets, workloads)
    if case == "both versions of Kueue":
        assert feed.watched[4].kind.prefix.endswith("v1beta2")


def test_a_kind_that_comes_later_asks_for_a_new_start() -> None:
    api = Young()
    feed = Feed(Cache(), Memory(), Memory(), lambda _: None)
    resync = Resync(api=api, feed=feed, metrics=Metrics(), every_seconds=0.001, clock=lambda: 0.0)

    async def live() -> None:
        await resync.wait_for_crd()
        await resync.reach_sync()
        keeping = asyncio.create_task(resync.keep())
        assert resync.trouble() is None
        api.groups.append("jobset.x-k8s.io/v1alpha2")
        async with asyncio.timeout(5):
            while resync.trouble() is None:
                await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(live())
    assert resync.trouble() == "the cluster has got jobsets, which only a new start can watch"
    # Until then nothing is made that nobody watches.
    assert [watched.kind.plural for watched in feed.watched] == ["finetunejobs", "jobs", "pods", "adapterbundles"]
