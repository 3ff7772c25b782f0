"""Kueue: it owns the child's suspension, the user's goes to the Workload."""

from dataclasses import replace
from typing import Any

from olivine_api.reasons import Reason
from olivine_api.status import FineTuneJobStatus, Phase
from olivine_operator.plan.observed import WorkloadView
from olivine_operator.plan.outcome import CreateChild, Plan, SetWorkloadActive
from tests.unit.operator.builders import KEY, accepted, after, child, condition, look, pod

QUEUE = {"kueue.x-k8s.io/queue-name": "q"}
WORKLOAD = WorkloadView(
    key=KEY, name="job-tone", uid="w", owner_uid="child", resource_version="1", active=True, reserved=False, message="no quota"
)
RUNNING = pod(phase="Running")


def see(status: FineTuneJobStatus | None, seconds: float = 0, **seen: Any) -> Plan:
    options: dict[str, Any] = {
        "kind": child(suspended=True, queued=True),
        "workload": WORKLOAD,
        "serves_workloads": True,
        "labels": QUEUE,
    }
    return look(status, now=after(seconds), **(options | seen))


def test_a_child_in_a_queue_is_made_suspended_and_the_job_is_queued() -> None:
    made = look(labels=QUEUE, serves_workloads=True)
    assert isinstance(made.actions[0], CreateChild)
    assert made.actions[0].job["spec"]["suspend"] is True
    assert made.status is not None
    assert made.status.phase is Phase.QUEUED
    assert condition(made.status, "QuotaReserved").status == "False"


def test_what_kueue_waits_for_is_told_and_its_admission_too() -> None:
    waiting = see(accepted(labels=QUEUE, serves_workloads=True))
    assert waiting.actions == ()
    assert condition(waiting.status, "QuotaReserved").message == "waits until Kueue admits it: no quota"
    reserved = see(waiting.status, 5, workload=replace(WORKLOAD, reserved=True))
    assert condition(reserved.status, "QuotaReserved").status == "True"
    runs = see(reserved.status, 9, workload=replace(WORKLOAD, reserved=True), kind=child(queued=True), pods=[RUNNING])
    assert runs.status is not None
    assert runs.status.phase is Phase.RUNNING
    assert runs.actions == ()


def test_without_a_workload_the_childs_suspension_tells() -> None:
    status = accepted(labels=QUEUE, serves_workloads=True)
    assert see(status, workload=None).status is None
    assert condition(see(status, workload=None, kind=child(queued=True)).status, "QuotaReserved").status == "True"
    none = see(status, workload=None, serves_workloads=False)
    assert "the cluster has no Kueue" in condition(none.status, "QuotaReserved").message


class TestSuspend:
    def running(self) -> FineTuneJobStatus | None:
        return see(
            accepted(labels=QUEUE), kind=child(queued=True), workload=replace(WORKLOAD, reserved=True), pods=[RUNNING]
        ).status

    def test_by_the_user_deactivates_the_workload_and_nothing_else(self) -> None:
        active = replace(WORKLOAD, reserved=True)
        made = see(self.running(), 5, kind=child(queued=True), workload=active, pods=[RUNNING], spec={"suspend": True})
        assert made.actions == (SetWorkloadActive(name="job-tone", active=False),)
        gone = see(made.status or self.running(), 6, workload=replace(WORKLOAD, active=False), spec={"suspend": True})
        assert gone.actions == ()
        assert gone.status is not None
        assert gone.status.phase is Phase.SUSPENDED

    def test_is_taken_back_and_the_job_queues_again(self) -> None:
        inactive = replace(WORKLOAD, active=False)
        held = see(self.running(), 6, workload=inactive, spec={"suspend": True}).status
        back = see(held, 9, workload=inactive)
        assert back.actions == (SetWorkloadActive(name="job-tone", active=True),)
        # Until that is done it is repeated, by an operator that remembers nothing too.
        assert see(back.status or held, 10, workload=inactive).actions == back.actions
        queued = see(back.status or held, 11)
        assert queued.status is not None
        assert (queued.status.phase, queued.actions) == (Phase.QUEUED, ())
        assert condition(queued.status, "Suspended").reason == Reason.NOT_SUSPENDED

    def test_by_others_is_not_fought(self) -> None:
        made = see(self.running(), 5, workload=replace(WORKLOAD, active=False))
        assert made.actions == ()
        assert "set its spec.active to true" in condition(made.status, "QuotaReserved").message

    def test_before_kueue_has_made_its_workload_is_told_to_be_late(self) -> None:
        made = see(accepted(labels=QUEUE), workload=None, spec={"suspend": True})
        assert made.actions == ()
        assert condition(made.status, "Suspended").reason == Reason.LEFT_TO_KUEUE
        assert see(made.status, 5, spec={"suspend": True}).actions == (SetWorkloadActive(name="job-tone", active=False),)
