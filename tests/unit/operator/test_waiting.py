"""Why a pod does not run yet."""

import pytest

from olivine_api.reasons import Reason
from olivine_operator.plan.observed import ChildCondition, Obstacle, PodView
from olivine_operator.plan.outcome import ExplainSlowPod
from olivine_operator.plan.waiting import waiting_of
from tests.unit.operator.builders import T0, accepted, after, child, condition, look, pod

CASES: dict[str, tuple[PodView, str | None, str]] = {
    "just made": (pod(), None, ""),
    "creating": (pod(waiting_reason="ContainerCreating", scheduled_at=T0), None, ""),
    "first pull": (
        pod(waiting_reason="ErrImagePull", waiting_message="denied"),
        "ImagePullBackOff",
        "denied; correct spec.pods.image",
    ),
    "later pulls": (
        pod(waiting_reason="ImagePullBackOff", waiting_message="Back-off"),
        "ImagePullBackOff",
        "or let the image be pulled",
    ),
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
    "no such claim": (
        pod(
            unschedulable=ChildCondition(
                type="PodScheduled", reason="Unschedulable", message='persistentvolumeclaim "models" not found', since=T0
            )
        ),
        Reason.CLAIM_NOT_FOUND,
        'PersistentVolumeClaim "models" not found in namespace team-a: create it',
    ),
    "a claim that is not bound": (
        pod(
            unschedulable=ChildCondition(
                type="PodScheduled", reason="Unschedulable", message="pod has unbound immediate PersistentVolumeClaims", since=T0
            )
        ),
        Reason.CLAIM_NOT_BOUND,
        "kubectl get pvc -n team-a",
    ),
    "a name that is no image's": (
        pod(waiting_reason="InvalidImageName", waiting_message="couldn't parse image name"),
        "InvalidImageName",
        "couldn't parse",
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
    early = look(accepted(), now=after(10), kind=child(), pods=[view])
    assert (early.status, early.actions, early.requeue_after) == (None, (), 11)
    # Then kubelet's Events are read; an image that is pulled for long is no trouble.
    asked = look(accepted(), now=after(21), kind=child(), pods=[view])
    assert (asked.status, asked.actions) == (None, (ExplainSlowPod(name="tone-0"),))
    late = look(accepted(), now=after(91), kind=child(), pods=[view])
    assert condition(late.status, "Running").reason == "ContainerCreating"


def test_what_kubelet_says_of_a_pod_that_it_cannot_set_up_is_told_until_it_can() -> None:
    view = pod(waiting_reason="ContainerCreating", scheduled_at=T0)
    answer = Obstacle(reason="FailedMount", message='pod tone-0 cannot be set up: secret "certs" not found')
    made = look(accepted(), now=after(21), kind=child(), pods=[view], obstacle=answer)
    assert condition(made.status, "Running").message == answer.message
    assert made.actions == ()
    # Longer than any pod should take: it says better why.
    later = look(made.status, now=after(120), kind=child(), pods=[view])
    assert later.status is None
    assert ExplainSlowPod(name="tone-0") in later.actions
    runs = look(made.status, now=after(130), kind=child(), pods=[pod(phase="Running")])
    assert condition(runs.status, "Running").status == "True"


def test_the_same_trouble_of_another_pod_is_told_with_its_name() -> None:
    def stuck(name: str, seconds: float, words: str) -> PodView:
        held = ChildCondition(type="PodScheduled", reason="Unschedulable", message=words, since=T0)
        return pod(name, created=after(seconds), unschedulable=held)

    first = look(accepted(), kind=child(), pods=[stuck("tone-0", 0, "0/1 nodes")])
    assert look(first.status, kind=child(), pods=[stuck("tone-0", 0, "0/2 nodes")]).status is None
    second = look(first.status, kind=child(), pods=[stuck("tone-1", 9, "0/2 nodes")])
    assert condition(second.status, "Running").message.startswith(
        "no node takes pod tone-1: 0/2 nodes; it waits for room: spec.pods.resources"
    )
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
