"""Another size while the job is suspended: the child is changed in place where it can be, else made anew."""

from dataclasses import replace
from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_api.status import FineTuneJobStatus, Phase
from olivine_operator.plan.observed import ChildView
from olivine_operator.plan.outcome import CreateChild, DeleteChild, ResizeChild, SuspendChild, WriteConfig
from tests.unit.operator.builders import after, child, condition, config_digest, look, pod, running

GONE = child("Suspended", suspended=True, pods=2)


def paused(**spec: Any) -> FineTuneJobStatus:
    status = look(running(), now=after(5), kind=child("Suspended", suspended=True), spec={"suspend": True, **spec}).status
    assert status is not None
    return status


def several(count: int, **pods: Any) -> dict[str, Any]:
    return {"suspend": True, "pods": {"count": count, **pods}}


def test_more_pods_change_completions_and_parallelism_of_the_job() -> None:
    made = look(paused(), now=after(9), kind=GONE, spec=several(3))
    (action,) = made.actions
    assert isinstance(action, ResizeChild)
    assert (action.pods, action.resources) == (3, None)
    assert action.annotations["olivine.dev/pods"] == "3"


def test_other_resources_are_the_containers() -> None:
    resources = {"limits": {"memory": "4Gi"}}
    (action,) = look(paused(), now=after(9), kind=GONE, spec=several(2, resources=resources)).actions
    assert isinstance(action, ResizeChild)
    assert (action.pods, action.resources) == (2, resources)


REMADE: dict[str, tuple[ChildView, int]] = {
    "one pod becomes several, which need names": (child("Suspended", suspended=True), 2),
    "several become one": (GONE, 1),
    "a JobSet cannot be changed": (replace(GONE, kind="JobSet"), 3),
}


@pytest.mark.parametrize("case", REMADE)
def test_what_cannot_be_changed_is_made_anew_and_is_no_incident(case: str) -> None:
    old, count = REMADE[case]
    made = look(paused(), now=after(9), kind=old, spec=several(count))
    assert made.actions == (DeleteChild(name="tone-012345", uid="child", kind=old.kind),)
    going = look(made.status, now=after(10), kind=replace(old, deleting=True), spec=several(count))
    assert condition(going.status or made.status, "Running").reason == Reason.RESIZING
    resumed = look(going.status or made.status, now=after(20), spec=several(count) | {"suspend": False})
    assert resumed.status is not None
    assert resumed.status.restarts == 0
    (create,) = resumed.actions
    assert isinstance(create, CreateChild)
    assert create.job["spec"]["parallelism"] == count


@pytest.mark.parametrize(
    ("view", "pods"),
    [
        (child(suspended=True, pods=2), []),  # the Job controller has not seen it yet
        (GONE, [pod(phase="Running", deleting=True)]),
    ],
)
def test_nothing_is_changed_before_the_pods_are_gone(view: ChildView, pods: list[Any]) -> None:
    assert look(paused(), now=after(9), kind=view, pods=pods, spec=several(3)).actions == ()


def test_the_child_resumes_only_when_it_has_its_size_and_its_world_is_written() -> None:
    spec = {"pods": {"count": 3}}
    waits = look(paused(), now=after(9), kind=GONE, spec=spec)
    assert [type(action) for action in waits.actions] == [ResizeChild]
    resized = replace(GONE, parallelism=3, asked_pods=3)
    made = look(waits.status, now=after(10), kind=resized, spec=spec)
    write, resume = made.actions
    assert isinstance(write, WriteConfig)
    assert write.digest == config_digest(3)
    assert resume == SuspendChild(name="tone-012345", suspend=False)


def test_a_running_child_of_another_size_is_suspended_first() -> None:
    """Changed while suspend was true, and resumed before the operator saw it."""
    made = look(running(), now=after(9), kind=child(), pods=[pod(phase="Running")], spec={"pods": {"count": 2}})
    assert made.actions == (SuspendChild(name="tone-012345", suspend=True),)


def test_fewer_pods_than_asked_for_are_kueues_choice_and_the_world_follows() -> None:
    admitted = replace(child(queued=True, pods=4), parallelism=2)
    spec = {"pods": {"count": 4}}
    made = look(look(spec=spec, labels={"kueue.x-k8s.io/queue-name": "q"}).status, now=after(3), kind=admitted, spec=spec)
    (write,) = made.actions
    assert isinstance(write, WriteConfig)
    assert write.digest == config_digest(2)


def test_a_child_of_an_earlier_release_is_left_as_it_is() -> None:
    old = replace(child("Suspended", suspended=True), asked_pods=None, resources_digest="")
    made = look(paused(), now=after(9), kind=old, spec=several(2))
    assert made.actions == ()
    assert paused().phase is Phase.SUSPENDED
