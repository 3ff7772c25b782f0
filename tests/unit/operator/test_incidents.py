"""Several pods: which failures are one incident, and what it costs."""

from dataclasses import replace
from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_api.status import Phase
from olivine_operator.plan.failures import failures_of, next_retry
from olivine_operator.plan.incidents import incidents_of, new_incidents
from olivine_operator.plan.observed import PodView
from olivine_operator.plan.outcome import KeepService
from tests.unit.operator.builders import after, child, condition, disrupted, ended, failed, look, pod, running

SEVERAL = {"pods": {"count": 2}}


def words(reason: str, attempt: int | None = None) -> dict[str, Any]:
    return {"category": "Infrastructure", "reason": reason, "message": reason, "attempt": attempt}


def fails(index: int, code: int, seconds: float, *, attempt: int | None = None, **members: Any) -> PodView:
    reason = "PeerLost" if code == 31 else "Boom"
    return failed(f"tone-{index}-{seconds:g}", code, words(reason, attempt), at=after(seconds), index=index, **members)


# The pods, and the costly incidents: for each the pods that it is counted by.
CASES: dict[str, tuple[list[PodView], list[list[str]]]] = {
    "one pod": ([fails(0, 1, 0)], [["tone-0-0"]]),
    "two pods of one attempt at different times": (
        [fails(0, 30, 0, attempt=3), fails(1, 30, 400, attempt=3)],
        [["tone-0-0", "tone-1-400"]],
    ),
    "two pods of two attempts within a second": (
        [fails(0, 30, 0, attempt=3), fails(1, 30, 1, attempt=4)],
        [["tone-0-0"], ["tone-1-1"]],
    ),
    "two killed pods that could not tell their attempt, together": (
        [fails(0, 137, 0), fails(1, 137, 5)],
        [["tone-0-0", "tone-1-5"]],
    ),
    "the same, far apart": ([fails(0, 137, 0), fails(1, 137, 300)], [["tone-0-0"], ["tone-1-300"]]),
    "a lost peer beside its cause": ([fails(1, 137, 0), fails(0, 31, 4, attempt=2)], [["tone-1-0"]]),
    "a lost peer that gave up a quarter of an hour later": ([fails(1, 137, 0), fails(0, 31, 1000, attempt=2)], [["tone-1-0"]]),
    "a lost peer before its cause is told": ([fails(0, 31, 0, attempt=2), fails(1, 137, 3)], [["tone-1-3"]]),
    "a lost peer after the attempt that failed": (
        [fails(1, 30, 0, attempt=2), fails(0, 31, 900, attempt=3)],
        [["tone-1-0"]],
    ),
    "a lost peer beside an evicted one": ([fails(1, 143, 0, disruption=disrupted()), fails(0, 31, 4)], []),
    "a lost peer beside an interrupted one": ([fails(1, 40, 0), fails(0, 31, 4)], []),
    "all lost their peers": ([fails(0, 31, 0, attempt=2), fails(1, 31, 2, attempt=2)], [["tone-0-0", "tone-1-2"]]),
    "the replacement of a pod fails again": ([fails(1, 137, 0), fails(1, 137, 11)], [["tone-1-0"], ["tone-1-11"]]),
    "all interrupted": ([fails(0, 40, 0, attempt=1), fails(1, 40, 1, attempt=1)], []),
}


@pytest.mark.parametrize("case", CASES)
def test_failures_become_incidents(case: str) -> None:
    pods, expected = CASES[case]
    found = new_incidents(incidents_of(failures_of(pods)), [])
    assert [[f.pod for f in incident.costly] for incident in found] == expected


@pytest.mark.parametrize("case", CASES)
def test_an_incident_is_counted_once_whichever_of_its_pods_is_seen_first(case: str) -> None:
    pods, expected = CASES[case]
    for order in (pods, list(reversed(pods))):
        status = running(spec=SEVERAL)
        for seen in range(1, len(order) + 1):
            made = look(status, now=after(2000), kind=child(pods=2), pods=order[:seen], spec=SEVERAL)
            status = made.status or status
        # Seen alone and late, a pod that lost its peer is an incident by itself; its peer's is then the same one.
        alone = sum(1 for f in failures_of(order[:1]) if f.peer_lost and not expected)
        assert status.restarts == len(expected) + alone
        assert look(status, now=after(3000), kind=child(pods=2), pods=pods, spec=SEVERAL).status is None


def test_a_lost_peer_waits_a_moment_for_its_cause_before_it_costs_anything() -> None:
    lost = fails(0, 31, 2, attempt=1)
    first = look(
        running(spec=SEVERAL), now=after(3), kind=child(pods=2), pods=[lost, pod("tone-1", "Running", index=1)], spec=SEVERAL
    )
    assert first.status is not None
    assert (first.status.restarts, first.requeue_after) == (0, 15)
    assert condition(first.status, "Running").reason == Reason.RESTARTING
    evicted = fails(1, 143, 1, disruption=disrupted())
    second = look(first.status, now=after(5), kind=child(pods=2), pods=[lost, evicted], spec=SEVERAL)
    assert second.status is not None
    assert second.status.restarts == 0
    assert second.status.last_failure is not None
    assert second.status.last_failure.reason == "EvictionByEvictionAPI"
    # Nothing else became known: then the peer's loss is the incident.
    late = look(first.status, now=after(18), kind=child(pods=2), pods=[lost], spec=SEVERAL)
    assert late.status is not None
    assert late.status.restarts == 1


def test_the_failure_that_is_told_is_the_cause_and_not_the_peers() -> None:
    made = look(running(spec=SEVERAL), now=after(9), kind=child(pods=2), pods=[fails(1, 30, 2), fails(0, 31, 4)], spec=SEVERAL)
    assert made.status is not None
    assert made.status.last_failure is not None
    assert made.status.last_failure.reason == "Boom"
    assert condition(made.status, "Running").message.startswith("Boom")


def test_the_next_try_comes_when_the_last_missing_index_has_its_pod() -> None:
    failures = failures_of([fails(0, 31, 0), fails(1, 30, 0), fails(1, 30, 20)])
    assert next_retry(failures, [0]) == after(10)
    assert next_retry(failures, [0, 1]) == after(40)
    assert next_retry(failures, [2]) is None


def test_a_users_mistake_in_any_pod_ends_the_job() -> None:
    told = {"category": "User", "reason": "ModelNotFound", "message": "no such model"}
    wrong = failed("tone-1", 12, told, at=after(2), index=1)
    made = look(running(spec=SEVERAL), now=after(3), kind=child(pods=2), pods=[pod("tone-0", "Running"), wrong], spec=SEVERAL)
    assert made.status is not None
    assert (made.status.phase, condition(made.status, "Failed").reason) == (Phase.FAILED, "ModelNotFound")


def test_only_the_first_pods_last_words_tell_of_the_training() -> None:
    said = {"attempt": 1, "progress": {"stage": "Training", "step": 7, "lastUpdateTime": "2026-01-01T12:00:01Z"}}
    pods = [failed(f"tone-{i}", 40, {**words("Interrupted"), "snapshot": said}, at=after(2), index=i) for i in (1,)]
    made = look(running(spec=SEVERAL), now=after(3), kind=child(pods=2), pods=pods, spec=SEVERAL)
    assert made.status is not None
    assert made.status.progress is None


class TestShowing:
    def test_several_pods_run_when_all_do(self) -> None:
        status = look(spec=SEVERAL).status
        first = look(status, now=after(5), kind=child(pods=2), pods=[pod("tone-0", "Running")], spec=SEVERAL)
        assert first.status is None
        both = [pod("tone-0", "Running"), pod("tone-1", "Running", index=1)]
        made = look(status, now=after(5), kind=child(pods=2), pods=both, spec=SEVERAL)
        assert condition(made.status, "Running").message == "2 pods run, tone-0 first"
        assert made.status is not None
        assert made.status.start_time == after(5)

    def test_the_trouble_of_any_pod_is_told(self) -> None:
        stuck = pod("tone-1", index=1, waiting_reason="ErrImagePull", waiting_message="denied")
        made = look(look(spec=SEVERAL).status, kind=child(pods=2), pods=[pod("tone-0", "Running"), stuck], spec=SEVERAL)
        assert condition(made.status, "Running").reason == "ImagePullBackOff"

    def test_a_pod_that_has_finished_beside_the_first_one_is_no_loss(self) -> None:
        pods = [pod("tone-0", "Running"), pod("tone-1", "Succeeded", index=1)]
        assert look(running(spec=SEVERAL), now=after(5), kind=child(pods=2), pods=pods, spec=SEVERAL).status is None

    def test_fewer_pods_than_asked_for_are_all_where_kueue_admitted_fewer(self) -> None:
        made = look(
            look(spec={"pods": {"count": 4}}).status, kind=child(pods=1), pods=[pod(phase="Running")], spec={"pods": {"count": 4}}
        )
        assert condition(made.status, "Running").status == "True"

    def test_an_undisturbed_life_of_several_pods_has_as_few_writes_as_one_pods(self) -> None:
        first = look(spec=SEVERAL)
        statuses, status = [first.status], first.status
        ends = {"reason": "Completed", "message": "", "snapshot": {"attempt": 1, "progress": {"stage": "Publishing", "step": 10}}}
        done = pod("tone-0", "Succeeded", termination=ended(0, ends, at=after(50)))
        moments: list[tuple[float, list[PodView], tuple[str, ...]]] = [
            (1, [pod("tone-0")], ()),
            (1, [pod("tone-0"), pod("tone-1", index=1)], ()),
            (4, [pod("tone-0", "Running"), pod("tone-1", index=1)], ()),
            (5, [pod("tone-0", "Running"), pod("tone-1", "Running", index=1)], ()),
            (50, [done, pod("tone-1", "Running", index=1)], ()),
            (51, [done, pod("tone-1", "Running", index=1)], ("Complete",)),
        ]
        for seconds, pods, held in moments:
            made = look(status, now=after(seconds), kind=child(*held, pods=2), pods=pods, spec=SEVERAL)
            assert made.actions == ()
            if made.status is not None:
                statuses.append(made.status)
                status = made.status
        assert [s.phase for s in statuses if s is not None] == [Phase.PENDING, Phase.RUNNING, Phase.SUCCEEDED]

    def test_the_job_ends_when_the_first_pod_has_published_though_another_never_goes(self) -> None:
        """Complete waits for every pod, and a lost node never lets its pod go."""
        ends = {"reason": "Completed", "message": "", "snapshot": {"attempt": 1, "progress": {"stage": "Publishing", "step": 10}}}
        pods = [pod("tone-0", "Succeeded", termination=ended(0, ends)), pod("tone-1", "Running", index=1, deleting=True, node="n1")]
        made = look(running(spec=SEVERAL), now=after(9), kind=child("SuccessCriteriaMet", pods=2), pods=pods, spec=SEVERAL)
        assert made.status is not None
        assert made.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(("pods", "kind", "kept"), [(2, "Job", 1), (2, "JobSet", 0), (1, "Job", 0)])
def test_after_an_incident_of_several_pods_their_service_is_made_sure_of_once(pods: int, kind: Any, kept: int) -> None:
    """Somebody may have deleted it: its absence shows in nothing but pods that do not find each other."""
    lost = failed("tone-1", 31, words("PeerLost", 1), index=pods - 1)
    seen: Any = {"kind": replace(child(pods=pods), kind=kind), "pods": [lost], "spec": {"pods": {"count": pods}}}
    made = look(running(spec={"pods": {"count": pods}}), now=after(1), **seen)
    assert [type(action) for action in made.actions].count(KeepService) == kept
    again = look(made.status, now=after(2), **seen)
    assert KeepService not in [type(action) for action in again.actions]
