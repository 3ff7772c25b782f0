"""Failed pods: whose fault, what it costs, what is told."""

from datetime import timedelta
from typing import Any

import pytest

from olivine_api.exit_codes import Category
from olivine_api.reasons import Reason
from olivine_api.status import CheckpointStatus, Phase
from olivine_operator.plan.failures import failure_of, failures_of, next_retry, termination_message
from olivine_operator.plan.incidents import RESTART_TIMES_LIMIT, incidents_of, new_incidents, too_many
from olivine_operator.plan.observed import PodView
from olivine_operator.plan.outcome import SuspendChild
from tests.unit.operator.builders import T0, after, child, condition, disrupted, ended, failed, look, pod, report, running

TOLD = {"category": "Infrastructure", "reason": "StorageUnavailable", "message": "no answer", "step": 4}

CASES: dict[str, tuple[PodView, tuple[Category, str, bool], str]] = {
    "a user's code tells the trainer's sentence": (
        failed("p", 11, {"category": "User", "reason": "ColumnMissing", "message": "no {phrse}"}),
        (Category.USER, "ColumnMissing", False),
        "no {phrse}",
    ),
    "a user's code without a message": (failed("p", 10), (Category.USER, "PodFailed", False), "exit code 10"),
    "a user's code wins over a disruption": (failed("p", 12, disruption=disrupted()), (Category.USER, "PodFailed", False), "12"),
    "storage": (failed("p", 30, TOLD), (Category.INFRASTRUCTURE, "StorageUnavailable", True), "no answer"),
    "an unknown code": (failed("p", 137), (Category.INFRASTRUCTURE, "PodFailed", True), "exit code 137"),
    "interrupted": (
        failed("p", 40, {"category": "Infrastructure", "reason": "Interrupted", "message": "saved"}),
        (Category.INFRASTRUCTURE, "Interrupted", False),
        "saved",
    ),
    "evicted": (failed("p", 143, disruption=disrupted()), (Category.INFRASTRUCTURE, "EvictionByEvictionAPI", False), "removed"),
    "deleted by a person": (failed("p", 137, deleting=True), (Category.INFRASTRUCTURE, "PodFailed", False), "137"),
    "out of memory": (
        pod("p", "Failed", termination=ended(137, reason="OOMKilled"), memory_limit="2Gi"),
        (Category.INFRASTRUCTURE, "OutOfMemory", True),
        "(2Gi)",
    ),
    "never started": (
        pod("p", "Failed", reason="UnexpectedAdmissionError"),
        (Category.INFRASTRUCTURE, "UnexpectedAdmissionError", True),
        "before",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_failed_pod_is_judged(case: str) -> None:
    view, (category, reason, costs), part = CASES[case]
    found = failure_of(view)
    assert (found.category, found.reason, found.costs_retry) == (category, reason, costs)
    assert part in found.message


@pytest.mark.parametrize("text", ["", "Killed", "[]", '{"reason": 1}', '{"reason":"a","message":"b","step":NaN}', "[" * 100_000])
def test_a_termination_message_that_cannot_be_read_is_none(text: str) -> None:
    assert termination_message(pod(phase="Failed", termination=ended(1, text))) is None


def test_a_custom_image_with_a_reason_that_is_too_long_ends_the_job_nevertheless() -> None:
    told = {"category": "User", "reason": "R" * 129, "message": "no rows"}
    made = look(running(), now=after(3), kind=child(), pods=[failed("tone-0", 11, told, at=after(2))])
    found = condition(made.status, "Failed")
    assert found.reason == Reason.POD_FAILED
    assert found.message == "the trainer ended with exit code 11 and left no message"


def test_incidents_are_counted_once_and_only_those_that_cost() -> None:
    pods = [failed("a", 1, at=after(1)), failed("b", 40, at=after(2)), failed("c", 30, at=after(3))]
    incidents = incidents_of(failures_of(pods))
    assert [i.cause.pod for i in new_incidents(incidents, [])] == ["a", "c"]
    assert [i.cause.pod for i in new_incidents(incidents, [after(1)])] == ["c"]
    assert new_incidents(incidents, [after(1), after(3)]) == ()


def test_what_is_older_than_a_full_list_was_counted_before() -> None:
    counted = [after(10 + i) for i in range(RESTART_TIMES_LIMIT)]
    assert new_incidents(incidents_of(failures_of([failed("a", 1, at=after(1))])), counted) == ()
    assert len(new_incidents(incidents_of(failures_of([failed("a", 1, at=after(999))])), counted)) == 1


@pytest.mark.parametrize(
    ("ages", "total", "limit", "expected"),
    [
        ([1], 1, 1, False),
        ([1, 2], 2, 1, True),
        ([1, 4000], 2, 1, False),  # one of them lies before the window
        ([1], 1, 0, True),
        ([1] * 64, 64, 64, False),
        ([1] * 64, 65, 64, True),  # a full list: the total decides
        ([4000] * 64, 500, 64, False),
    ],
)
def test_restarts_are_limited_within_the_window(ages: list[int], total: int, limit: int, expected: bool) -> None:
    times = [T0 - timedelta(seconds=age) for age in ages]
    assert too_many(times, total, max_restarts=limit, window_seconds=3600, now=T0) is expected


def test_the_next_try_is_estimated_as_the_job_controller_spaces_them() -> None:
    def seconds(count: int) -> float:
        found = next_retry(failures_of([failed(f"p{i}", 1, at=T0) for i in range(count)]))
        assert found is not None
        return (found - T0).total_seconds()

    assert [seconds(n) for n in (1, 2, 3, 6, 7, 8, 2000)] == [10, 20, 40, 320, 600, 600, 600]
    assert next_retry(()) is None


def test_a_failed_pod_is_told_with_the_time_of_the_next_try() -> None:
    made = look(running(), now=after(3), kind=child(), pods=[failed("tone-0", 30, TOLD, at=after(2))])
    assert made.status is not None
    assert made.status.restarts == 1
    assert made.status.restart_times == [after(2)]
    assert made.status.next_retry_time == after(12)
    assert condition(made.status, "Running").message == "no answer; the next try comes about 12:00:12 UTC"
    assert made.status.last_failure is not None
    assert made.status.last_failure.step == 4
    assert [(e.type, e.reason) for e in made.events] == [("Warning", "Restarting")]
    # Only then may the pod be missed: after the Job controller's longest delay.
    assert made.requeue_after == 620
    # Looked at again, and by an operator that remembers nothing.
    again = look(made.status, now=after(9), kind=child(), pods=[failed("tone-0", 30, TOLD, at=after(2))])
    assert again.status is None


def test_the_replacement_runs_and_nothing_of_the_old_failure_is_counted_again() -> None:
    old = failed("tone-0", 30, TOLD, at=after(2))
    status = look(running(), now=after(3), kind=child(), pods=[old]).status
    pending = look(status, now=after(12), kind=child(), pods=[old, pod("tone-1", created=after(12))])
    # Why there is a new one is told until it runs; the time of the next try is history.
    assert pending.status is not None
    assert pending.status.next_retry_time is None
    assert condition(pending.status, "Running").reason == Reason.RESTARTING
    assert pending.events == ()
    made = look(status, now=after(14), kind=child(), pods=[old, pod("tone-1", "Running", created=after(12))])
    assert made.status is not None
    assert (made.status.phase, made.status.restarts, made.status.next_retry_time) == (Phase.RUNNING, 1, None)
    assert [e.reason for e in made.events] == ["PodRunning"]


def test_a_second_failure_before_anything_ran_is_told_again() -> None:
    first = failed("tone-0", 30, TOLD, at=after(2))
    status = look(running(), now=after(3), kind=child(), pods=[first]).status
    second = failed("tone-1", 30, TOLD, at=after(20))
    made = look(status, now=after(21), kind=child(), pods=[first, second])
    assert made.status is not None
    assert made.status.restarts == 2
    assert made.status.next_retry_time == after(40)
    assert [e.reason for e in made.events] == ["Restarting"]


def test_one_incident_too_many_ends_the_job_and_stops_its_child() -> None:
    made = look(
        running(), now=after(3), kind=child(), pods=[failed("tone-0", 30, TOLD, at=after(2))], spec={"retries": {"maxRestarts": 0}}
    )
    assert made.actions == (SuspendChild(name="tone-012345", suspend=True),)
    found = condition(made.status, "Failed")
    assert found.reason == Reason.TOO_MANY_RESTARTS
    assert found.message == "retries.maxRestarts is 0 within 3600 s, and this was one more: no answer"
    assert made.status is not None
    assert made.status.last_failure is not None
    assert made.status.last_failure.reason == "StorageUnavailable"


def test_the_last_words_of_a_failed_pod_are_heard() -> None:
    snapshot: dict[str, Any] = {
        "attempt": 1,
        "progress": {"stage": "Training", "step": 7, "lastUpdateTime": "2026-01-01T12:00:01Z"},
        "checkpoint": {"uri": "s3://c", "step": 5, "digest": "d", "savedAt": "2026-01-01T12:00:01Z"},
    }
    view = failed("tone-0", 30, {**TOLD, "snapshot": snapshot}, at=after(2))
    made = look(running(), now=after(3), kind=child(), pods=[view])
    assert made.status is not None
    assert made.status.checkpoint is not None
    assert made.status.checkpoint.step == 5
    assert look(made.status, now=after(600), kind=child(), pods=[view]).status is None


def crash(number: int, code: int = 137, *, checkpoint: int | None = None) -> PodView:
    """A pod that ended after an hour's pause, so that the window never decides."""
    at = after(3600 * number)
    words: dict[str, Any] = {"category": "Infrastructure", "reason": "PodFailed", "message": "boom"}
    if checkpoint is not None:
        saved = {"uri": "s3://c", "step": checkpoint, "digest": "d", "savedAt": at.isoformat()}
        progress = {"stage": "Training", "step": checkpoint, "lastUpdateTime": at.isoformat()}
        words["snapshot"] = {"attempt": number, "progress": progress, "checkpoint": saved}
    return failed(f"tone-{number}", code, words, at=at, created=at)


CRASHES: dict[str, tuple[list[PodView], int, bool]] = {
    "three are forgiven": ([crash(n) for n in (1, 2, 3)], 3, False),
    "a fourth ends the job": ([crash(n) for n in (1, 2, 3, 4)], 4, True),
    "out of memory has an end of its own": (
        [pod(f"tone-{n}", "Failed", termination=ended(137, reason="OOMKilled", at=after(3600 * n))) for n in (1, 2, 3)],
        0,
        False,
    ),
    "a store that is down and lost peers do not": ([crash(n, 30 if n % 2 else 31) for n in range(1, 9)], 0, False),
    "an interruption does not": ([crash(n, 40) for n in range(1, 9)], 0, False),
    "a new checkpoint each time": ([crash(n, checkpoint=n) for n in range(1, 9)], 1, False),
    "a new checkpoint in between": ([crash(1), crash(2), crash(3, checkpoint=5), crash(4), crash(5)], 3, False),
    "the same checkpoint again and again": ([crash(n, checkpoint=5) for n in (1, 2, 3, 4)], 4, True),
}


@pytest.mark.parametrize("case", CRASHES)
@pytest.mark.parametrize("away", [False, True], ids=["watched", "operator was away"])
def test_crashes_in_a_row_without_a_new_checkpoint_end_the_job(case: str, away: bool) -> None:
    pods, crashes, ends = CRASHES[case]
    status = running()
    for seen in range(len(pods) if away else 1, len(pods) + 1):
        made = look(status, now=after(3600 * seen + 1), kind=child(), pods=pods[:seen])
        assert made.status is not None
        status = made.status
    assert status.crashes == crashes
    assert (status.phase is Phase.FAILED) is ends
    if ends:
        failure = condition(status, "Failed")
        assert failure.reason == Reason.CRASH_LOOP
        assert failure.message.startswith("the trainer failed 4 times in a row without a new checkpoint: ")


def test_a_report_of_a_new_checkpoint_ends_the_row() -> None:
    status = look(running(), now=after(3601), kind=child(), pods=[crash(1)]).status
    saved = CheckpointStatus(uri="s3://c", step=5, digest="d", saved_at=after(4000))
    told = report(5, at=after(4000), checkpoint=saved)
    made = look(status, now=after(4000), kind=child(), pods=[crash(1), pod("tone-2", "Running")], report=told)
    assert made.status is not None
    assert made.status.crashes == 0


def test_an_old_failure_is_not_told_again_after_a_suspension() -> None:
    old = failed("tone-0", 30, TOLD, at=after(2))
    status = look(running(), now=after(3), kind=child(), pods=[old]).status
    status = look(status, now=after(14), kind=child(), pods=[old, pod("tone-1", "Running", created=after(12))]).status
    status = look(status, now=after(50), kind=child(suspended=True), pods=[old], spec={"suspend": True}).status
    resumed = look(status, now=after(90), kind=child(), pods=[old])
    assert resumed.status is not None
    assert resumed.status.next_retry_time is None
    assert condition(resumed.status, "Running").reason == Reason.WAITING_FOR_POD
    assert [e.reason for e in resumed.events] == ["NotSuspended"]


def test_an_old_failure_is_not_told_again_when_a_later_pod_is_gone() -> None:
    old = failed("tone-0", 30, TOLD, at=after(2))
    status = look(running(), now=after(3), kind=child(), pods=[old]).status
    status = look(status, now=after(14), kind=child(), pods=[old, pod("tone-1", "Running", created=after(12))]).status
    made = look(status, now=after(90), kind=child(), pods=[old])
    assert condition(made.status, "Running").reason == Reason.WAITING_FOR_POD
    assert made.events == ()
