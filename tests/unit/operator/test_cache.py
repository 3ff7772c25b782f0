"""The cache: newer wins, owners are checked, what is gone is gone."""

from dataclasses import replace

import pytest

from olivine_operator.plan.observed import BundleView, ChildView, WorkloadView
from olivine_operator.runtime.cache import Cache, Shelf
from olivine_operator.runtime.status_writer import merge_patch
from tests.unit.operator.builders import KEY, child, job, pod
from tests.unit.operator.test_queueing import WORKLOAD


def test_only_what_is_newer_is_news() -> None:
    shelf: Shelf = Shelf()
    assert shelf.put(pod(resource_version="9"))
    assert not shelf.put(pod(resource_version="9", phase="Running"))
    assert shelf.put(pod(resource_version="10", phase="Running"))
    assert not shelf.put(pod(resource_version="9"))
    assert [view.phase for view in shelf.of(KEY)] == ["Running"]


def test_what_is_dropped_leaves_nothing() -> None:
    shelf: Shelf = Shelf()
    shelf.put(pod())
    assert shelf.drop("tone-0") is not None
    assert shelf.drop("tone-0") is None
    assert shelf.of(KEY) == ()
    assert not shelf.versions()


@pytest.mark.parametrize(
    ("answer", "seconds", "taken"),
    {
        "an answer from before its end": ("11", 1, False),
        "its end itself": ("12", 1, False),
        "the label is back": ("13", 1, True),
        "much later": ("11", 61, True),
    }.values(),
)
def test_an_answer_that_comes_after_the_end_resurrects_nothing(answer: str, seconds: float, taken: bool) -> None:
    now = 0.0
    shelf: Shelf = Shelf(clock=lambda: now)
    shelf.put(pod(resource_version="10"))
    shelf.bury("tone-0", "12")
    now = seconds
    assert shelf.put(pod(resource_version=answer)) is taken


def test_an_end_of_unknown_version_is_an_end() -> None:
    now = 0.0
    shelf: Shelf = Shelf(clock=lambda: now)
    shelf.put(pod(resource_version="10"))
    shelf.bury("tone-0")
    assert not shelf.put(pod(resource_version="99"))
    now = 61.0
    shelf.bury("another")
    assert shelf.put(pod(resource_version="99"))


def test_what_we_wrote_is_unheard_until_the_watch_tells_of_it_or_of_its_end() -> None:
    now = 0.0
    shelf: Shelf = Shelf(clock=lambda: now)
    shelf.put(pod(resource_version="9"))
    now = 50.0
    assert shelf.unheard_seconds() == 0
    shelf.keep(pod(resource_version="10"))
    shelf.keep(pod("other", resource_version="11"))
    now = 53.0
    # A later write does not make it younger.
    shelf.keep(pod(resource_version="12"))
    assert shelf.unheard_seconds() == 3
    shelf.heard("tone-0", "9")
    assert shelf.unheard_seconds() == 3
    shelf.heard("tone-0", "10")
    shelf.bury("other", "13")
    assert shelf.unheard_seconds() == 0


def test_what_a_conflict_shows_to_be_outdated_is_unheard_until_the_watch_tells_of_something_later() -> None:
    now = 0.0
    shelf: Shelf = Shelf(clock=lambda: now)
    old = pod(resource_version="9")
    shelf.put(old)
    shelf.outdated(old)
    now = 4.0
    shelf.heard("tone-0", "9")
    assert shelf.unheard_seconds() == 4
    shelf.heard("tone-0", "12")
    assert shelf.unheard_seconds() == 0
    # The watch told while the request was under way.
    shelf.put(pod(resource_version="12"))
    shelf.outdated(old)
    now = 9.0
    assert shelf.unheard_seconds() == 0


def test_an_answer_that_the_watch_was_faster_than_waits_for_nothing() -> None:
    now = 0.0
    shelf: Shelf = Shelf(clock=lambda: now)
    shelf.put(pod(resource_version="10"))
    shelf.keep(pod(resource_version="10"))
    now = 60.0
    assert shelf.unheard_seconds() == 0


def test_what_kueue_made_a_workload_of_is_kueues_with_or_without_a_queues_label() -> None:
    cache, view = Cache(), job()
    cache.keep_child(child(suspended=True))
    found = cache.child(view)
    assert found is not None
    assert not found.queued
    cache.workloads.put(WORKLOAD)
    cache.workloads.put(replace(WORKLOAD, uid="w2", owner_uid="another"))
    found = cache.child(view)
    assert found is not None
    assert found.queued
    assert cache.workload_of(view) == WORKLOAD


def test_pods_whose_child_is_gone_are_known_by_their_label_and_may_not_report() -> None:
    cache, view = Cache(), job()
    cache.pods.put(pod())
    cache.pods.put(pod("namesakes", job_uid="another"))
    assert [left.name for left in cache.pods_left(view)] == ["tone-0"]
    assert cache.pods_of(view) == ()


def test_a_child_with_another_owner_is_not_the_jobs_nor_are_its_pods() -> None:
    cache, view = Cache(), job()
    cache.children.put(replace(child(), owner_uid="somebody", uid="foreign"))
    cache.pods.put(pod(owner_uid="foreign"))
    assert cache.child(view) is None
    assert cache.pods_of(view) == ()
    cache.children.put(child())
    cache.pods.put(pod("tone-1"))
    assert cache.child(view) == child()
    assert [p.name for p in cache.pods_of(view)] == ["tone-1"]


def test_a_jobsets_pods_are_those_of_the_job_that_it_made() -> None:
    cache, view = Cache(), job()
    jobset = replace(child(), kind="JobSet")
    cache.keep_child(jobset)
    cache.pods.put(pod("tone-0", owner_uid="inner"))
    assert cache.pods_of(view) == ()  # whose they are is not known yet
    cache.children.put(replace(child(), uid="inner", owner_uid="child"))
    cache.children.put(replace(child(), uid="foreign", owner_uid="somebody"))
    cache.pods.put(pod("tone-1", owner_uid="foreign"))
    assert cache.child(view) == jobset
    assert [p.name for p in cache.pods_of(view)] == ["tone-0"]
    # What its Job says of success it does not repeat while other pods are left.
    cache.children.put(replace(child("SuccessCriteriaMet"), uid="inner", owner_uid="child", resource_version="2"))
    found = cache.child(view)
    assert found is not None
    assert found.succeeded is not None


def test_of_two_generations_of_a_name_the_one_that_stays_counts() -> None:
    cache = Cache()
    cache.jobs.put(replace(job(), uid="old", deleting=True))
    cache.jobs.put(replace(job(), uid="new"))
    found = cache.job(KEY)
    assert found is not None
    assert found.uid == "new"


@pytest.mark.parametrize("deleting", [False, True])
def test_of_two_generations_of_a_name_that_are_alike_the_later_one_counts(deleting: bool) -> None:
    cache = Cache()
    for uid, version in (("old", "9"), ("new", "10")):
        cache.jobs.put(replace(job(), uid=uid, deleting=deleting, resource_version=version))
    found = cache.job(KEY)
    assert found is not None
    assert found.uid == "new"


def test_a_merge_patch_says_what_differs_and_no_more() -> None:
    before = {"a": 1, "b": {"c": 1, "d": 2}, "e": [1], "gone": 1}
    after = {"a": 1, "b": {"c": 1, "d": 3}, "e": [1, 2]}
    assert merge_patch(before, after) == {"b": {"d": 3}, "e": [1, 2], "gone": None}
    assert merge_patch(after, after) == {}


def test_a_builds_job_that_kueue_holds_without_a_label_is_left_to_it() -> None:
    cache = Cache()
    bundle = BundleView.from_raw(
        {"metadata": {"namespace": "a", "name": "voices", "uid": "u", "resourceVersion": "1", "generation": 1}, "spec": {}}
    )
    metadata = {
        "namespace": "a",
        "name": "voices-1",
        "uid": "job",
        "resourceVersion": "2",
        "creationTimestamp": "2026-01-01T12:00:00Z",
        "labels": {"olivine.dev/job": "bundle.voices"},
        "ownerReferences": [{"uid": "u", "controller": True}],
    }
    cache.children.put(ChildView.from_raw({"metadata": metadata, "spec": {"suspend": True}}))
    assert [child.queued for child in cache.builds_of(bundle)] == [False]
    owner = [{"uid": "job", "name": "voices-1", "controller": True}]
    workload = {"namespace": "a", "name": "w", "uid": "w", "resourceVersion": "3", "ownerReferences": owner}
    cache.workloads.put(WorkloadView.from_raw({"metadata": workload, "spec": {}}))
    assert [child.queued for child in cache.builds_of(bundle)] == [True]
