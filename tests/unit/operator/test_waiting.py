"""Why a pod does not run yet."""

import pytest

from olivine_api.reasons import Reason
from olivine_operator.plan.observed import ChildCondition, PodView
from olivine_operator.plan.waiting import waiting_of
from tests.unit.operator.builders import T0, accepted, after, child, condition, look, pod

CASES: dict[str, tuple[PodView, str | None, str]] = {
    "just made": (pod(), None, ""),
    "creating": (pod(waiting_reason="ContainerCreating", scheduled_at=T0), None, ""),
    "first pull": (pod(waiting_reason="ErrImagePull", waiting_message="denied"), "ImagePullBackOff", "denied"),
    "later pulls": (pod(waiting_reason="ImagePullBackOff", waiting_message="Back-off"), "ImagePullBackOff", "Back-off"),
    "no such secret": (
        pod(waiting_reason="CreateContainerConfigError", waiting_message='secret "store" not found'),
        Reason.SECRET_NOT_FOUND,
        'secret "store" not found in namespace team-a: create it',
    ),
    "other configuration": (
        pod(waiting_reason="CreateContainerConfigError", waiting_message="container has runAsNonRoot"),
        "CreateContainerConfigError",
        "runAsNonRoot",
    ),
    "no room": (
        pod(unschedulable=ChildCondition(type="PodScheduled", reason="Unschedulable", message="0/1 nodes", since=T0)),
        Reason.UNSCHEDULABLE,
        "0/1 nodes",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_waiting_pods_trouble_is_named(case: str) -> None:
    view, reason, part = CASES[case]
    found = waiting_of(view, after(1))
    assert (found.reason if found else None) == reason
    assert part in (found.message if found else "")


def test_a_pod_that_is_set_up_for_long_is_told_of() -> None:
    view = pod(waiting_reason="ContainerCreating", scheduled_at=T0)
    early = look(accepted(), now=after(30), kind=child(), pods=[view])
    assert early.status is None
    assert early.requeue_after == 61
    late = look(accepted(), now=after(91), kind=child(), pods=[view])
    assert condition(late.status, "Running").reason == "ContainerCreating"


def test_the_same_trouble_of_another_pod_is_told_with_its_name() -> None:
    def stuck(name: str, seconds: float, words: str) -> PodView:
        held = ChildCondition(type="PodScheduled", reason="Unschedulable", message=words, since=T0)
        return pod(name, created=after(seconds), unschedulable=held)

    first = look(accepted(), kind=child(), pods=[stuck("tone-0", 0, "0/1 nodes")])
    assert look(first.status, kind=child(), pods=[stuck("tone-0", 0, "0/2 nodes")]).status is None
    second = look(first.status, kind=child(), pods=[stuck("tone-1", 9, "0/2 nodes")])
    assert condition(second.status, "Running").message == "no node takes pod tone-1: 0/2 nodes"
    assert second.events == ()


def test_the_same_trouble_in_other_words_is_no_news() -> None:
    first = look(accepted(), kind=child(), pods=[pod(waiting_reason="ErrImagePull", waiting_message="denied")])
    assert [event.reason for event in first.events] == ["ImagePullBackOff"]
    again = look(first.status, kind=child(), pods=[pod(waiting_reason="ImagePullBackOff", waiting_message="Back-off 20s")])
    assert again.status is None
    # Over: the pod is being set up.
    over = look(first.status, kind=child(), pods=[pod(waiting_reason="ContainerCreating")])
    assert condition(over.status, "Running").reason == Reason.WAITING_FOR_POD
    assert over.events == ()
