"""Deadlines and what is kept: seconds are counted in status, not by the Job, whose clock starts again with each suspension."""

from dataclasses import replace
from typing import Any

from olivine_api.reasons import Reason
from olivine_api.status import FineTuneJobStatus, Phase
from olivine_operator.plan.observed import ChildCondition
from olivine_operator.plan.outcome import CreateChild, DeleteChild, SuspendChild
from tests.unit.operator.builders import after, child, condition, failed, look, pod, report, running
from tests.unit.operator.test_queueing import QUEUE, WORKLOAD

RUNNING = pod(phase="Running", started_at=after(0))


def since(seconds: float, kind: str) -> ChildCondition:
    return ChildCondition(type=kind, reason="", message="", since=after(seconds))


class TestActiveDeadline:
    spec: dict[str, Any] = {"activeDeadlineSeconds": 100}

    def test_asks_for_a_look_when_it_passes(self) -> None:
        assert look(running(), now=after(30), kind=child(), pods=[RUNNING], spec=self.spec).requeue_after == 70

    def test_ends_the_job_and_its_pods(self) -> None:
        made = look(running(), now=after(100), kind=child(), pods=[RUNNING], spec=self.spec)
        assert made.status is not None
        assert (made.status.phase, condition(made.status, "Failed").reason) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED)
        assert "spec.activeDeadlineSeconds is 100" in condition(made.status, "Failed").message
        assert made.actions == (SuspendChild(name="tone-012345", suspend=True),)

    def test_sums_over_attempts_and_does_not_run_while_the_job_is_suspended(self) -> None:
        status = look(running(), now=after(60), kind=child(suspended=True), spec={"suspend": True, **self.spec}).status
        assert status is not None
        assert status.running_seconds == 60
        resumed = look(status, now=after(5000), kind=child(), spec=self.spec)
        assert resumed.status is not None
        assert resumed.status.phase is Phase.PENDING
        again = look(
            resumed.status, now=after(5010), kind=child(), pods=[pod(phase="Running", started_at=after(5009))], spec=self.spec
        )
        assert again.status is not None
        assert (again.status.running_seconds, again.requeue_after) == (60, 40)
        last = pod(phase="Running", started_at=after(5009))
        assert look(again.status, now=after(5049), kind=child(), pods=[last], spec=self.spec).status is None
        ended = look(again.status, now=after(5050), kind=child(), pods=[last], spec=self.spec)
        assert condition(ended.status, "Failed").reason == Reason.DEADLINE_EXCEEDED

    def test_is_kept_by_an_operator_that_was_restarted(self) -> None:
        status = look(running(), now=after(40), kind=child(), pods=[RUNNING], report=report(1, at=after(40))).status
        assert status is not None
        assert status.running_seconds == 40
        assert look(status, now=after(50), kind=child(), pods=[RUNNING], spec=self.spec).requeue_after == 50

    def test_does_not_count_how_long_the_operator_was_away_after_the_pod_had_ended(self) -> None:
        gone = failed("tone-0", 30, {"category": "Infrastructure", "reason": "X", "message": "x"}, at=after(20))
        made = look(running(), now=after(5000), kind=child(), pods=[gone], spec=self.spec)
        assert made.status is not None
        assert (made.status.running_seconds, made.status.phase) == (20, Phase.PENDING)

    def test_that_passes_while_the_jobs_end_is_awaited_makes_no_look_follow_look(self) -> None:
        gone = look(
            running(), now=after(105), kind=replace(child("Complete"), conditions=(since(100, "Complete"),)), spec=self.spec
        )
        assert (gone.status, gone.requeue_after) == (None, 1)

    def test_passes_while_the_child_is_being_deleted(self) -> None:
        made = look(running(), now=after(100), kind=child(deleting=True), pods=[RUNNING], spec=self.spec)
        assert condition(made.status, "Failed").reason == Reason.DEADLINE_EXCEEDED
        assert made.actions == ()

    def test_lowered_below_what_was_spent_ends_the_job_at_once(self) -> None:
        made = look(running(), now=after(40), kind=child(), pods=[RUNNING], spec={"activeDeadlineSeconds": 10})
        assert condition(made.status, "Failed").reason == Reason.DEADLINE_EXCEEDED

    def test_of_a_job_in_a_queue_takes_it_out_of_the_queue(self) -> None:
        """Kueue would let a suspended one run again."""
        queued = child(queued=True)
        made = look(running(), now=after(100), kind=queued, pods=[RUNNING], workload=WORKLOAD, labels=QUEUE, spec=self.spec)
        assert condition(made.status, "Failed").reason == Reason.DEADLINE_EXCEEDED
        assert made.actions == (DeleteChild(name="tone-012345", uid="child"),)

    def test_does_not_run_while_kueue_has_taken_the_quota_back(self) -> None:
        told: dict[str, Any] = {"workload": WORKLOAD, "labels": QUEUE, "spec": self.spec}
        waits = look(running(), now=after(60), kind=child("Suspended", suspended=True, queued=True), **told)
        assert waits.status is not None
        assert (waits.status.running_seconds, waits.requeue_after) == (60, None)
        later = look(waits.status, now=after(9000), kind=child("Suspended", suspended=True, queued=True), **told)
        assert (later.status, later.actions) == (None, ())


class TestQueueDeadline:
    spec: dict[str, Any] = {"queueDeadlineSeconds": 60}

    def test_counts_until_the_first_pod_runs(self) -> None:
        first = look(spec=self.spec)
        assert first.requeue_after == 60
        waiting = look(first.status, now=after(59), kind=child(), pods=[pod()], spec=self.spec)
        assert waiting.requeue_after == 1
        ended = look(first.status, now=after(60), kind=child(), pods=[pod()], spec=self.spec)
        assert condition(ended.status, "Failed").reason == Reason.QUEUE_DEADLINE_EXCEEDED
        assert ended.actions == (SuspendChild(name="tone-012345", suspend=True),)

    def test_does_not_hold_once_a_pod_ran(self) -> None:
        assert look(running(), now=after(600), kind=child(), pods=[RUNNING], spec=self.spec).requeue_after is None

    def test_does_not_count_while_suspended(self) -> None:
        status = look(spec={"suspend": True, **self.spec}).status
        assert look(status, now=after(900), spec={"suspend": True, **self.spec}).status is None
        resumed = look(status, now=after(1000), spec=self.spec)
        assert [type(action) for action in resumed.actions] == [CreateChild]
        assert resumed.requeue_after == 60

    def test_passed_makes_no_child(self) -> None:
        made = look(look(spec=self.spec).status, now=after(61), spec=self.spec)
        assert made.actions == ()
        assert condition(made.status, "Failed").reason == Reason.QUEUE_DEADLINE_EXCEEDED


class TestTimeToLive:
    spec: dict[str, Any] = {"ttlSecondsAfterFinished": 300}

    def done(self) -> FineTuneJobStatus:
        told = {"category": "User", "reason": "DataEmpty", "message": "no rows"}
        status = look(running(), now=after(10), kind=child(), pods=[failed("tone-0", 11, told, at=after(10))]).status
        assert status is not None
        return status

    def test_deletes_the_child_and_never_the_job(self) -> None:
        early = look(self.done(), now=after(100), kind=child("Failed"), spec=self.spec)
        assert (early.actions, early.requeue_after) == ((), 210)
        late = look(self.done(), now=after(310), kind=child("Failed"), spec=self.spec)
        assert late.actions == (DeleteChild(name="tone-012345", uid="child"),)
        assert late.status is None

    def test_is_over_when_the_child_is_gone(self) -> None:
        made = look(self.done(), now=after(900), spec=self.spec)
        assert (made.status, made.actions, made.requeue_after) == (None, (), None)

    def test_of_0_is_at_once(self) -> None:
        made = look(self.done(), now=after(10), kind=child(), spec={"ttlSecondsAfterFinished": 0})
        assert made.actions == (DeleteChild(name="tone-012345", uid="child"),)
