"""Seconds of pods and accelerators, counted with the writes that happen anyway."""

from olivine_api.status import FineTuneJobStatus
from olivine_operator.plan.usage import metered
from tests.unit.operator.builders import after, child, ended, look, pod, report, running


def test_each_second_of_each_pod_counts_once_however_often_status_is_written() -> None:
    status = running()
    for seconds in range(10, 100, 7):
        pods = [
            pod("a", "Running", started_at=after(2), accelerators=4),
            pod("b", "Running", started_at=after(5), index=1, accelerators=4),
        ]
        status = (
            look(status, now=after(seconds), kind=child(), pods=pods, report=report(seconds, at=after(seconds))).status or status
        )
    assert (status.pod_seconds, status.accelerator_seconds) == ((94 - 2) + (94 - 5), 4 * (92 + 89))
    assert status.metered_time == after(94)
    assert status.running_seconds == 94


def test_a_pod_that_ended_counts_until_then() -> None:
    before = FineTuneJobStatus(metered_time=after(10), pod_seconds=10)
    gone = pod("a", "Failed", started_at=after(0), termination=ended(1, at=after(15)))
    old = pod("b", "Failed", started_at=after(0), termination=ended(1, at=after(9)))
    assert metered(before, before, [gone, old], after(60)).pod_seconds == 15


def test_counting_alone_writes_nothing() -> None:
    status = running()
    assert look(status, now=after(500), kind=child(), pods=[pod(phase="Running", started_at=after(0))]).status is None
