"""The life of a job as the plan sees it, look by look."""

from dataclasses import replace
from typing import Any

import pytest

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_api.status import CheckpointStatus, FineTuneJobStatus, Phase, Stage
from olivine_operator.plan.observed import ANNOTATION_CONFIG_DIGEST, Observed, Obstacle
from olivine_operator.plan.outcome import CreateChild, DeleteChild, ExplainNoPod, KeepConfigMap, Plan, SuspendChild, WriteConfig
from olivine_operator.plan.reconcile import plan
from olivine_operator.plan.settings import Policy
from tests.unit.operator.builders import (
    SETTINGS,
    T0,
    accepted,
    after,
    child,
    condition,
    config_digest,
    ended,
    failed,
    job,
    look,
    pod,
    report,
    running,
    snapshot,
)


def saved(step: int) -> CheckpointStatus:
    return CheckpointStatus(uri=f"s3://olivine/runs/step-{step}", step=step, digest="d", saved_at=T0)


def reasons(made: Plan) -> list[str]:
    return [event.reason for event in made.events]


def test_a_new_job_writes_its_child_down_and_asks_for_it() -> None:
    made = look()
    assert made.status is not None
    assert made.status.child is not None
    assert made.status.child.name == "tone-012345"
    assert made.status.phase is Phase.PENDING
    assert [type(action) for action in made.actions] == [CreateChild]
    assert reasons(made) == ["Accepted"]


def test_a_look_that_sees_nothing_new_plans_nothing() -> None:
    states: list[tuple[FineTuneJobStatus, dict[str, Any]]] = [
        (accepted(), {"kind": child()}),
        (accepted(), {"kind": child(), "pods": [pod()]}),
        (running(), {"kind": child(), "pods": [pod(phase="Running")]}),
        # Between a pod's end and the Job's.
        (running(), {"kind": child(), "pods": [pod(phase="Succeeded", termination=ended(0))]}),
        (running(), {"kind": child(), "pods": [pod(phase="Running", running=False, termination=ended(1))]}),
    ]
    for status, seen in states:
        made = look(status, now=after(15), **seen)
        assert made.status is None
        assert made.actions == ()
        assert made.events == ()


def test_of_a_job_that_is_being_deleted_nothing_is_written() -> None:
    assert plan(Observed(job=replace(job(running()), deleting=True)), T0, SETTINGS) == Plan()


def test_an_undisturbed_life_has_three_statuses_and_six_events() -> None:
    final = {
        "attempt": 1,
        "progress": {"stage": "Publishing", "step": 10},
        "baseline": {"accuracy": 0.02},
        "metrics": {"accuracy": 0.94},
        "artifacts": [{"kind": "Adapter", "uri": "s3://x", "digest": "d", "bytes": 1}],
    }
    first = look()
    second = look(first.status, now=after(5), kind=child(), pods=[pod(phase="Running")])
    progress = look(
        second.status,
        now=after(20),
        kind=child(),
        pods=[pod(phase="Running")],
        report=report(3, baseline={"accuracy": 0.02}, at=after(20)),
    )
    last = pod(phase="Succeeded", termination=ended(0, {"reason": "Completed", "message": "", "snapshot": final}, at=after(60)))
    assert look(progress.status, now=after(60), kind=child(), pods=[last]).status is None
    third = look(progress.status, now=after(61), kind=child("Complete"), pods=[last])
    told = [reason for made in (first, second, progress, third) for reason in reasons(made)]
    assert told == ["Accepted", "PodRunning", "BaseEvaluated", "Evaluated", "Published", "Completed"]
    assert third.status is not None
    assert third.status.phase is Phase.SUCCEEDED
    assert condition(third.status, "Evaluated").message == "accuracy 0.02 (base) -> 0.94 (tuned)"
    assert condition(third.status, "Running").status == "False"
    assert third.status.completion_time == after(61)


def test_a_job_that_stopped_early_says_whose_weights_are_published() -> None:
    final = {
        "attempt": 1,
        "progress": {"stage": "Publishing", "step": 8, "totalSteps": 40},
        "best": {"step": 4, "metric": "accuracy", "value": 0.9},
        "artifacts": [{"kind": "Adapter", "uri": "s3://x", "digest": "d", "bytes": 1}],
    }
    last = pod(phase="Succeeded", termination=ended(0, {"reason": "Completed", "message": "", "snapshot": final}, at=after(60)))
    ended_well = look(running(), now=after(61), kind=child("Complete"), pods=[last])
    assert ended_well.status is not None
    told = condition(ended_well.status, "Complete").message
    assert told == "stopped early after 8 of 40 steps: accuracy was best at step 4, whose weights are published; adapter at s3://x"


def test_a_complete_job_whose_pod_is_not_seen_yet_waits_a_little_then_ends_with_what_it_knows() -> None:
    early = look(running(), now=after(3), kind=child("Complete"))
    assert early.status is None
    assert early.requeue_after == 1
    best = {"step": 4, "metric": "evalLoss", "value": 0.9}
    late = look(running(), now=after(11), kind=child("Complete"), report=report(10, Stage.PUBLISHING, best=best, at=after(1)))
    assert late.status is not None
    assert late.status.phase is Phase.SUCCEEDED
    assert condition(late.status, "Complete").message.startswith("trained 10 steps; the final report was lost")


def test_a_report_from_before_the_end_takes_nothing_of_the_last_words_back() -> None:
    artifact = {"kind": "Adapter", "uri": "s3://x", "digest": "d", "bytes": 1}
    final = {"attempt": 1, "progress": {"stage": "Publishing", "step": 10}, "metrics": {"accuracy": 0.94}, "artifacts": [artifact]}
    last = pod(phase="Succeeded", termination=ended(0, {"reason": "Completed", "message": "", "snapshot": final}))
    made = look(running(), kind=child("Complete"), pods=[last], report=report(9, metrics={"trainLoss": 1.5}))
    assert made.status is not None
    assert made.status.metrics == {"accuracy": 0.94}


def test_an_unmet_gate_fails_the_job_with_its_numbers_and_says_where_the_artifact_is_kept() -> None:
    artifact = {"kind": "Adapter", "uri": "s3://x", "digest": "d", "bytes": 1}
    final = {
        "attempt": 1,
        "progress": {"stage": "Publishing", "step": 10},
        "baseline": {"accuracy": 0.1},
        "metrics": {"accuracy": 0.82},
        "artifacts": [artifact],
    }
    told = "evaluation.gates: accuracy is 0.82, not at least 0.9; the artifact is kept at s3://x, not published"
    message = {"category": "User", "reason": "GateUnmet", "message": told, "attempt": 1, "snapshot": final}
    last = pod(phase="Failed", termination=ended(13, message))
    made = look(running(), kind=child(), pods=[last])
    assert made.status is not None
    assert made.status.phase is Phase.FAILED
    for kind in ("Failed", "Stalled"):
        assert (condition(made.status, kind).reason, condition(made.status, kind).message) == ("GateUnmet", told)
    assert (condition(made.status, "Published").status, condition(made.status, "Published").reason) == ("False", "GateUnmet")
    assert made.status.last_failure is not None
    assert made.status.last_failure.category == "User"
    # The numbers are there as those of a run that was published.
    assert made.status.metrics == {"accuracy": 0.82}
    assert [one.uri for one in made.status.artifacts] == ["s3://x"]
    assert condition(made.status, "Evaluated").message == "accuracy 0.10 (base) -> 0.82 (tuned)"


@pytest.mark.parametrize("phase_pod", [[], [pod(phase="Running")]])
def test_terminal_is_terminal(phase_pod: list[Any]) -> None:
    done = look(running(), now=after(20), kind=child("Failed", reason="BackoffLimitExceeded", message="oh")).status
    made = look(done, now=after(99), kind=child(suspended=True), pods=phase_pod, report=report(9, at=after(99)))
    assert made.status is None
    assert made.actions == ()
    # Nor is it started again when its Job is gone.
    assert look(done, now=after(99)).actions == ()


class TestSuspension:
    def test_from_the_start_no_child(self) -> None:
        made = look(spec={"suspend": True})
        assert made.status is not None
        assert (made.status.phase, made.status.child, made.actions) == (Phase.SUSPENDED, None, ())
        resumed = look(made.status, now=after(9))
        assert [type(action) for action in resumed.actions] == [CreateChild]
        assert reasons(resumed) == ["NotSuspended"]

    def test_of_a_running_job_suspends_the_child_and_tells_when_it_is_so(self) -> None:
        asked = look(running(), kind=child(), pods=[pod(phase="Running")], spec={"suspend": True})
        assert asked.actions == (SuspendChild(name="tone-012345", suspend=True),)
        assert asked.status is None
        going = look(running(), kind=child(suspended=True), pods=[pod(phase="Running", deleting=True)], spec={"suspend": True})
        assert going.status is not None
        assert going.status.phase is Phase.SUSPENDED
        assert condition(going.status, "Running").status == "True"
        gone = look(going.status, kind=child(suspended=True), spec={"suspend": True})
        assert condition(gone.status, "Running").reason == Reason.SUSPENDED_BY_USER
        assert gone.events == ()

    def test_resumed_the_child_goes_on(self) -> None:
        status = look(running(), kind=child(suspended=True), spec={"suspend": True}).status
        made = look(status, kind=child(suspended=True))
        assert made.actions == (SuspendChild(name="tone-012345", suspend=False),)
        assert condition(made.status, "Suspended").reason == Reason.NOT_SUSPENDED
        again = look(made.status, kind=child())
        assert (again.status, again.actions) == (None, ())

    def test_a_pod_that_went_because_of_it_has_not_failed(self) -> None:
        leaving = failed("tone-0", 40, {"category": "Infrastructure", "reason": "Interrupted", "message": "saved"}, deleting=True)
        made = look(running(), kind=child(suspended=True), pods=[leaving], spec={"suspend": True})
        assert made.status is not None
        assert made.status.last_failure is None
        assert made.status.restarts == 0

    def test_kueue_owns_the_suspension_of_a_queued_job(self) -> None:
        labels = {"kueue.x-k8s.io/queue-name": "q"}
        create = look(labels=labels).actions[0]
        assert isinstance(create, CreateChild)
        assert create.job["spec"]["suspend"] is True
        made = look(accepted(), kind=child(suspended=True, queued=True), labels=labels)
        assert made.actions == ()
        assert condition(made.status, "Running").message == "waits until Kueue admits it"

    @pytest.mark.parametrize("queued", [False, True])
    def test_who_owns_the_suspension_is_read_from_the_job_and_not_from_labels_that_changed_since(self, queued: bool) -> None:
        labels = {} if queued else {"kueue.x-k8s.io/queue-name": "q"}
        made = look(running(), kind=child(queued=queued), labels=labels, spec={"suspend": True})
        assert made.actions == (() if queued else (SuspendChild(name="tone-012345", suspend=True),))

    def test_by_other_hands_is_undone_and_not_told_as_the_users(self) -> None:
        pods = [pod(phase="Running", deleting=True)]
        made = look(running(), now=after(9), kind=child("Suspended", suspended=True), pods=pods)
        assert made.actions == (SuspendChild(name="tone-012345", suspend=False),)
        assert made.status is not None
        assert made.status.phase is Phase.PENDING
        assert condition(made.status, "Running").reason == Reason.WAITING_FOR_POD
        # Resumed, but the Job controller has not seen it yet: no pod is missed.
        resumed = look(made.status, now=after(99), kind=child("Suspended"))
        assert (resumed.status, resumed.events) == (None, ())


def test_a_policy_that_became_stricter_ends_no_job_whose_child_has_to_be_made_anew() -> None:
    """docs/operations.md: what already runs is not judged again."""
    strict = SETTINGS.model_copy(update={"policy": Policy(storage_prefixes=[])})
    assert look(settings=strict).actions == ()
    again = look(running(), now=after(9), settings=strict)
    assert [type(action) for action in again.actions] == [CreateChild]
    assert condition(again.status, "Running").reason == Reason.CHILD_LOST


class TestCancel:
    def test_deletes_the_child_and_ends_the_job(self) -> None:
        made = look(running(), kind=child(), pods=[pod(phase="Running")], spec={"cancel": True})
        assert made.actions == (DeleteChild(name="tone-012345", uid="child"),)
        assert made.status is not None
        assert made.status.phase is Phase.FAILED
        assert reasons(made) == ["Cancelled"]

    def test_is_repeated_until_the_child_is_gone(self) -> None:
        status = look(running(), kind=child(), spec={"cancel": True}).status
        assert look(status, kind=child(), spec={"cancel": True}).actions == (DeleteChild(name="tone-012345", uid="child"),)
        assert look(status, kind=child(deleting=True), spec={"cancel": True}).actions == ()

    def test_takes_over_what_was_reported_but_not_written_yet(self) -> None:
        """The checkpoint in status may be pruned by now."""
        told = report(6, at=after(1), checkpoint=saved(6))
        made = look(running(), now=after(1), kind=child(), pods=[pod(phase="Running")], report=told, spec={"cancel": True})
        assert made.status is not None
        assert made.status.checkpoint == saved(6)
        assert made.status.progress is not None
        assert made.status.progress.step == 6

    def test_hears_the_pods_last_words_when_its_child_is_gone_and_a_late_report_no_more(self) -> None:
        status = look(running(), now=after(1), kind=child(), pods=[pod(phase="Running")], spec={"cancel": True}).status
        last = snapshot(8, at=after(5), checkpoint=saved(8)).to_json_dict()
        words = {"category": "Infrastructure", "reason": "Interrupted", "message": "saved", "step": 8, "snapshot": last}
        gone = failed("tone-0", 40, words, at=after(5), deleting=True)
        made = look(status, now=after(5), pods=[gone], report=report(9, at=after(6), checkpoint=saved(9)), spec={"cancel": True})
        assert made.status is not None
        assert (made.status.checkpoint, made.status.phase) == (saved(8), Phase.FAILED)
        assert made.actions == ()
        # Once: rest costs nothing.
        assert look(made.status, now=after(6), pods=[gone], spec={"cancel": True}).status is None

    def test_after_the_job_has_published_comes_too_late(self) -> None:
        done = pod(phase="Succeeded", termination=ended(0, {"reason": "Completed", "message": "done"}, reason="Completed"))
        made = look(running(), now=after(1), kind=child("SuccessCriteriaMet"), pods=[done], spec={"cancel": True})
        assert made.status is not None
        assert (made.status.phase, made.actions) == (Phase.SUCCEEDED, ())

    def test_before_there_is_a_child_makes_none(self) -> None:
        made = look(spec={"cancel": True})
        assert made.actions == ()
        assert made.status is not None
        assert made.status.phase is Phase.FAILED


class TestValidation:
    def test_what_the_models_refuse_fails_with_the_fields_path(self) -> None:
        made = look(spec={"training": {"maxSteps": 10, "schedulerParameters": {"num_cycles": [1]}}})
        assert made.status is not None
        assert made.actions == ()
        assert condition(made.status, "Validated").status == "False"
        message = condition(made.status, "Failed").message
        assert message.startswith("spec.training.schedulerParameters.num_cycles")
        assert "kubectl replace --force" in message
        assert reasons(made) == ["InvalidSpec"]

    @pytest.mark.parametrize(
        ("field", "spec"),
        {
            "spec.model.uri": {"model": {"uri": "file:///m"}},
            "spec.storage.uri": {"storage": {"uri": "file:///s"}},
            "spec.data.train.uri": {"data": {"train": {"uri": "file:///d"}, "template": {"prompt": "{a}", "completion": "{b}"}}},
        }.items(),
    )
    def test_files_need_the_policys_leave(self, field: str, spec: dict[str, Any]) -> None:
        made = look(spec=spec)
        assert condition(made.status, "Failed").reason == Reason.FILE_URI_NOT_ALLOWED
        assert condition(made.status, "Failed").message.startswith(f"{field}: file:///")
        allowed = SETTINGS.model_copy(update={"policy": SETTINGS.policy.model_copy(update={"allow_file_uris": True})})
        assert look(spec=spec, settings=allowed).actions != ()


class TestObstacles:
    taken = Obstacle(reason=Reason.NAME_TAKEN, message="the Job tone-012345 belongs to something else")

    def test_is_told_once_and_tried_again(self) -> None:
        made = look(accepted(), obstacle=self.taken)
        assert made.actions == ()
        assert made.requeue_after == 15
        assert condition(made.status, "Running").reason == Reason.NAME_TAKEN
        again = look(made.status, now=after(15))
        assert again.status is None
        assert [type(action) for action in again.actions] == [CreateChild]
        assert look(made.status, now=after(15), obstacle=self.taken).status is None

    def test_is_forgotten_when_the_child_is_there(self) -> None:
        status = look(accepted(), obstacle=self.taken).status
        assert condition(look(status, kind=child()).status, "Running").reason == Reason.WAITING_FOR_POD

    def test_a_permanent_one_ends_the_job(self) -> None:
        made = look(accepted(), obstacle=Obstacle(reason=Reason.INVALID_SPEC, message="no such quantity", permanent=True))
        assert condition(made.status, "Failed").message == "no such quantity"


class TestLostChild:
    def test_that_ran_is_one_incident_however_often_it_is_looked_at(self) -> None:
        made = look(running(), now=after(9))
        assert made.status is not None
        assert made.status.restarts == 1
        assert [type(action) for action in made.actions] == [CreateChild]
        assert reasons(made) == ["ChildLost"]
        # The making failed: the next look makes it, and counts nothing.
        again = look(made.status, now=after(10))
        assert again.status is None
        assert [type(action) for action in again.actions] == [CreateChild]

    def test_that_never_ran_is_made_again_without_a_word(self) -> None:
        made = look(accepted(), now=after(9))
        assert made.status is None
        assert [type(action) for action in made.actions] == [CreateChild]

    def test_that_is_being_deleted_is_waited_for(self) -> None:
        made = look(running(), kind=child(deleting=True))
        assert made.actions == ()
        assert condition(made.status, "Running").reason == Reason.WAITING_FOR_CHILD


class TestProgress:
    pods = [pod(phase="Running")]

    def test_is_written_at_most_once_an_interval(self) -> None:
        status = look(running(), kind=child(), pods=self.pods, report=report(1)).status
        seen: dict[str, Any] = {"kind": child(), "pods": self.pods, "report": report(2, at=after(2)), "written_at": T0}
        held = look(status, now=after(2), **seen)
        assert held.status is None
        assert held.requeue_after == 3
        due = look(status, now=after(5), **seen)
        assert due.status is not None
        assert due.status.progress is not None
        assert due.status.progress.step == 2

    def test_a_new_stage_is_told_at_once_but_not_twice_a_second(self) -> None:
        status = look(running(), kind=child(), pods=self.pods, report=report(1)).status
        seen: dict[str, Any] = {
            "kind": child(),
            "pods": self.pods,
            "report": report(1, Stage.EVALUATING, at=after(1)),
            "written_at": T0,
        }
        assert look(status, now=after(1), **seen).status is not None
        assert look(status, now=after(0.5), **seen).requeue_after == pytest.approx(0.5)

    def test_other_news_take_it_along(self) -> None:
        made = look(accepted(), kind=child(), pods=self.pods, report=report(4), written_at=T0)
        assert made.status is not None
        assert made.status.phase is Phase.RUNNING
        assert made.status.progress is not None

    def test_the_same_report_twice_is_no_news(self) -> None:
        status = look(running(), kind=child(), pods=self.pods, report=report(1)).status
        made = look(status, now=after(60), kind=child(), pods=self.pods, report=report(1))
        assert (made.status, made.requeue_after) == (None, None)


def test_a_spec_of_another_release_does_not_end_a_running_job() -> None:
    made = look(running(), kind=child(), pods=[pod(phase="Running")], spec={"novelty": 1, "retries": {"maxRestarts": -1}})
    assert made.status is None


def test_a_job_that_fails_without_a_users_mistake_is_the_platforms_failure() -> None:
    made = look(running(), kind=child("Failed", reason="DeadlineExceeded", message="too long"), now=after(1))
    assert made.status is not None
    assert made.status.last_failure is not None
    assert (made.status.last_failure.category, made.status.last_failure.reason) == ("Infrastructure", "DeadlineExceeded")


def test_a_failed_jobs_child_that_goes_on_is_suspended_after_a_while() -> None:
    told = {"category": "User", "reason": "DataEmpty", "message": "no rows"}
    status = look(running(), kind=child(), pods=[failed("tone-0", 11, told)]).status
    early = look(status, now=after(5), kind=child())
    assert early.actions == ()
    assert early.requeue_after == 26
    assert look(status, now=after(31), kind=child()).actions == (SuspendChild(name="tone-012345", suspend=True),)


def test_a_change_of_a_finished_jobs_spec_is_observed() -> None:
    status = look(spec={"cancel": True}).status
    view = job(status, generation=2, cancel=True)
    made = plan(Observed(job=view), after(9), SETTINGS)
    assert made.status is not None
    assert made.status.observed_generation == 2
    assert made.events == ()


@pytest.mark.parametrize("suspended", [False, True])
def test_a_queued_jobs_child_is_deleted_on_overrun_since_kueue_could_run_it_again(suspended: bool) -> None:
    queued = child(suspended=suspended, queued=True)
    pods = [failed("tone-0", 30, at=after(2))]
    made = look(running(), now=after(3), kind=queued, pods=pods, spec={"retries": {"maxRestarts": 0}})
    assert condition(made.status, "Failed").reason == Reason.TOO_MANY_RESTARTS
    assert made.actions == (DeleteChild(name="tone-012345", uid="child"),)


class TestNoPod:
    def test_that_comes_in_time_is_waited_for_without_a_word(self) -> None:
        made = look(accepted(), now=after(10), kind=child())
        assert (made.status, made.requeue_after) == (None, 11)

    @pytest.mark.parametrize(
        ("pods", "part"),
        [
            ({}, "its ServiceAccount is missing"),
            ({"serviceAccountName": "robot"}, "the ServiceAccount robot of spec.pods.serviceAccountName"),
        ],
    )
    def test_that_does_not_come_is_told_with_likely_causes(self, pods: dict[str, str], part: str) -> None:
        seen: dict[str, Any] = {"kind": child(), "spec": {"pods": pods}}
        # The Job controller is asked first; what it says is told at once.
        asked = look(accepted(), now=after(21), **seen)
        assert asked.status is None
        (action,) = asked.actions
        assert isinstance(action, ExplainNoPod)
        assert part in action.likely
        assert "kubectl describe job tone-012345 -n team-a" in action.likely
        answer = Obstacle(reason=Reason.QUOTA_EXCEEDED, message="no pod can be made: exceeded quota: few, used: 4")
        made = look(accepted(), now=after(21), obstacle=answer, **seen)
        assert reasons(made) == ["QuotaExceeded"]
        assert condition(made.status, "Running").message == answer.message
        assert look(made.status, now=after(99), **seen).status is None
        again = Obstacle(reason=Reason.QUOTA_EXCEEDED, message="no pod can be made: exceeded quota: few, used: 5")
        assert look(made.status, now=after(99), obstacle=again, **seen).status is None
        came = look(made.status, now=after(100), kind=child(), pods=[pod(created=after(100))])
        assert condition(came.status, "Running").reason == Reason.WAITING_FOR_POD

    def test_is_counted_from_the_resumption(self) -> None:
        status = look(running(), now=after(5), kind=child(suspended=True), spec={"suspend": True}).status
        resumed = look(status, now=after(500), kind=child())
        assert condition(resumed.status, "Running").reason == Reason.WAITING_FOR_POD
        assert look(resumed.status, now=after(519), kind=child()).actions == ()
        late = look(resumed.status, now=after(521), kind=child())
        assert [type(action) for action in late.actions] == [ExplainNoPod]

    def test_a_queued_child_counts_from_its_admission(self) -> None:
        admitted = replace(child(queued=True), pods_since=after(5000))
        status = look(accepted(), kind=child(suspended=True, queued=True)).status
        made = look(status, now=after(5002), kind=admitted)
        assert condition(made.status, "Running").reason == Reason.WAITING_FOR_POD

    def test_while_the_job_controller_may_still_hold_it_back_is_no_news(self) -> None:
        old = failed("tone-0", 30, at=after(2))
        status = look(running(), now=after(3), kind=child(), pods=[old]).status
        early = look(status, now=after(600), kind=child(), pods=[old])
        assert (early.status, early.actions) == (None, ())
        late = look(status, now=after(700), kind=child(), pods=[old])
        assert [type(action) for action in late.actions] == [ExplainNoPod]


def test_a_pod_that_is_deleted_and_does_not_go_is_told_to_be_leaving() -> None:
    stuck = pod(phase="Running", deleting=True, node="n1")
    made = look(running(), now=after(5), kind=child(), pods=[stuck])
    found = condition(made.status, "Running")
    assert (found.status, found.reason, made.events) == ("False", Reason.POD_LEAVING, ())
    assert "pod tone-0 is going away from node n1" in found.message
    assert look(made.status, now=after(5000), kind=child(), pods=[stuck]).status is None


class TestConfigMap:
    slow = pod(waiting_reason="ContainerCreating", scheduled_at=T0)

    def test_is_made_again_for_a_pod_that_waits_for_long(self) -> None:
        made = look(accepted(), now=after(90), kind=child(), pods=[self.slow])
        create = look().actions[0]
        assert isinstance(create, CreateChild)
        assert made.actions[0] == KeepConfigMap(config_map=create.config_map)
        # It may be deleted later, too.
        assert made.requeue_after == 60
        assert KeepConfigMap not in [type(a) for a in look(accepted(), now=after(89), kind=child(), pods=[self.slow]).actions]

    def test_is_there_where_an_image_is_missing(self) -> None:
        waiting = replace(self.slow, waiting_reason="ImagePullBackOff")
        assert look(accepted(), now=after(90), kind=child(), pods=[waiting]).actions == ()

    def test_of_a_spec_of_another_release_is_left_alone(self) -> None:
        made = look(accepted(), now=after(90), kind=child(), pods=[self.slow], spec={"novelty": 1})
        assert KeepConfigMap not in [type(action) for action in made.actions]


def test_a_child_with_another_ca_gets_the_operators() -> None:
    made = look(running(), kind=replace(child(), config_digest="old"), pods=[pod(phase="Running")])
    assert made.status is None
    world = {names.CONFIG_CA: "CA", names.CONFIG_WORLD: '{"pods": 1, "processesPerPod": 1}'}
    assert made.actions == (WriteConfig(name="tone-012345", data=world, digest=config_digest()),)
    # One that was just made carries it.
    create = look().actions[0]
    assert isinstance(create, CreateChild)
    assert create.job["metadata"]["annotations"][ANNOTATION_CONFIG_DIGEST] == config_digest()
    assert look(running(), kind=child(), pods=[pod(phase="Running")]).actions == ()
