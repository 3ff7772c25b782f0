"""The Lease on a real API server: one leader at a time, whoever dies, hangs or is cut off."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from olivine_operator.runtime.api import CONFIG_MAPS, ApiError, KubeApi, connect
from olivine_operator.runtime.election import LEASE_NAME, Election, Timing
from olivine_operator.runtime.metrics import Metrics
from tests.api.kube import Json, Kube

TIMING = Timing(lasts=3, writes_until=2, retry=0.3, request=1)
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{ns}/leases"
_NUMBERS = itertools.count(1)


@pytest.fixture
def place(kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A namespace with a Lease of its own; the admin's kubeconfig is the replicas'."""
    name = f"election-{next(_NUMBERS)}"
    kube.must("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig))
    yield name
    kube.must("DELETE", f"/api/v1/namespaces/{name}")


@dataclass
class Terms:
    """Who worked when, by one clock: terms of two replicas must never overlap."""

    open: list[str] = field(default_factory=list)
    past: list[str] = field(default_factory=list)

    def work(self, name: str) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            assert not self.open, f"{name} begins while {self.open} works"
            self.open.append(name)
            self.past.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                self.open.remove(name)

        return work


@dataclass
class Replica:
    api: KubeApi
    election: Election
    task: asyncio.Task[None]


async def replica(place: str, name: str, terms: Terms) -> Replica:
    metrics = Metrics()
    api = await connect(metrics)
    election = Election(api=api, namespace=place, identity=f"{name}@127.0.0.1:1", metrics=metrics, timing=TIMING)
    api.fence(election.remaining)
    return Replica(api, election, asyncio.create_task(election.run(terms.work(name))))


async def until(what: str, holds: Callable[[], bool], *, seconds: float) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < began + seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def end(*replicas: Replica) -> None:
    for item in replicas:
        item.task.cancel()
    await asyncio.gather(*(item.task for item in replicas), return_exceptions=True)
    for item in replicas:
        await item.api.close()


async def write(item: Replica, place: str, name: str) -> None:
    await item.api.create(CONFIG_MAPS, place, {"metadata": {"name": name}})


def lease(kube: Kube, place: str) -> Json:
    return kube.must("GET", f"{LEASES.format(ns=place)}/{LEASE_NAME}")


def test_of_three_one_leads_and_hands_over_when_it_goes(kube: Kube, place: str) -> None:
    async def scenario() -> None:
        terms = Terms()
        replicas = [await replica(place, name, terms) for name in "abc"]
        await until("a leader", lambda: bool(terms.open), seconds=10)
        first = next(item for item in replicas if item.election.leading())
        others = [item for item in replicas if item is not first]
        assert [item.election.leading() for item in others] == [False, False]
        await write(first, place, "of-the-leader")
        for item in others:
            with pytest.raises(ApiError, match="does not lead"):
                await write(item, place, "of-a-standby")
        # Much longer than a Lease lasts: nobody else comes to lead as long as it is renewed.
        await asyncio.sleep(2 * TIMING.lasts)
        assert len(terms.past) == 1
        assert all(item.election.leader() == lease(kube, place)["spec"]["holderIdentity"] for item in replicas)
        await end(first)
        taken = await until("the next leader", lambda: len(terms.past) == 2 and bool(terms.open), seconds=10)
        assert taken < TIMING.lasts / 2, "a Lease that was handed over is waited for"
        assert lease(kube, place)["spec"]["leaseTransitions"] == 2
        await end(*others)
        assert lease(kube, place)["spec"].get("holderIdentity", "") == ""

    asyncio.run(scenario())


def test_the_lease_of_one_that_died_is_taken_when_it_has_ended(kube: Kube, place: str) -> None:
    async def scenario() -> None:
        dead = {"holderIdentity": "dead@127.0.0.1:1", "leaseDurationSeconds": 3, "renewTime": "2020-01-01T00:00:00.000000Z"}
        kube.must("POST", LEASES.format(ns=place), {"metadata": {"name": LEASE_NAME}, "spec": dead | {"leaseTransitions": 7}})
        terms = Terms()
        item = await replica(place, "a", terms)
        # By its own clock from when it saw the Lease first: the time that is written there may be of a clock far away.
        taken = await until("the next leader", lambda: bool(terms.open), seconds=15)
        assert taken >= 2.9
        assert lease(kube, place)["spec"]["leaseTransitions"] == 8
        await end(item)

    asyncio.run(scenario())


def test_who_loses_the_lease_to_another_stops_working(kube: Kube, place: str) -> None:
    async def scenario() -> None:
        terms = Terms()
        item = await replica(place, "a", terms)
        await until("a leader", lambda: bool(terms.open), seconds=10)
        path = f"{LEASES.format(ns=place)}/{LEASE_NAME}"
        # An edit by other hands that changes nothing of it is borne.
        kube.merge(path, {"metadata": {"annotations": {"note": "seen"}}})
        await asyncio.sleep(4 * TIMING.retry)
        assert terms.past == ["a"]
        assert item.election.leading()
        kube.merge(path, {"spec": {"holderIdentity": "other@127.0.0.1:2", "leaseTransitions": 5}})
        await until("it stops", lambda: not terms.open, seconds=10)
        assert not item.election.leading()
        assert item.election.leader() == "other@127.0.0.1:2"
        with pytest.raises(ApiError, match="does not lead"):
            await write(item, place, "late")
        # Deleted by other hands, it is anybody's.
        kube.must("DELETE", path)
        await until("it leads again", lambda: bool(terms.open), seconds=10)
        await end(item)

    asyncio.run(scenario())


def test_who_cannot_renew_stops_writing_before_another_may_begin(kube: Kube, place: str) -> None:
    async def scenario() -> None:
        terms = Terms()
        first = await replica(place, "a", terms)
        await until("a leader", lambda: bool(terms.open), seconds=10)
        second = await replica(place, "b", terms)
        await until("the standby sees the leader", lambda: second.election.leader() is not None, seconds=10)
        # Cut off: the API server of the first is at a port where nobody answers.
        configuration = first.api._client.configuration  # pyright: ignore[reportPrivateUsage]
        configuration.host = "https://127.0.0.1:9"
        ended = await until("it stops working", lambda: "a" not in terms.open, seconds=10)
        assert ended < TIMING.lasts
        with pytest.raises(ApiError, match="does not lead"):
            await write(first, place, "late")
        # Terms fails in the second's task if the two overlap.
        await until("the other leads", lambda: terms.open == ["b"], seconds=10)
        configuration.host = kube.server
        await until("it sees who leads", lambda: first.election.leader() == second.election.leader(), seconds=10)
        await asyncio.sleep(2 * TIMING.lasts)
        assert terms.past == ["a", "b"]
        await end(first, second)

    asyncio.run(scenario())


def test_a_process_that_was_frozen_writes_nothing_when_it_wakes(kube: Kube, place: str) -> None:
    async def scenario() -> None:
        terms = Terms()
        first = await replica(place, "a", terms)
        await until("a leader", lambda: bool(terms.open), seconds=10)
        # The whole event loop stands still for longer than the Lease lasts; a write is the first thing that it does then.
        time.sleep(TIMING.writes_until + 0.1)
        with pytest.raises(ApiError, match="does not lead"):
            await write(first, place, "late")
        # Nobody took the Lease meanwhile: the term goes on once it is renewed.
        await until("it may write again", first.election.leading, seconds=10)
        await write(first, place, "in-time")
        assert terms.past == ["a"]
        await end(first)

    asyncio.run(scenario())


def test_what_fails_in_a_term_ends_the_replica_and_frees_the_lease(kube: Kube, place: str) -> None:
    async def scenario() -> None:
        async def fail() -> None:
            raise KeyError("a bug")

        metrics = Metrics()
        api = await connect(metrics)
        election = Election(api=api, namespace=place, identity="a@127.0.0.1:1", metrics=metrics, timing=TIMING)
        with pytest.raises(KeyError):
            await election.run(fail)
        await api.close()
        assert lease(kube, place)["spec"].get("holderIdentity", "") == ""

    asyncio.run(scenario())
