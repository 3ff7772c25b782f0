"""Pods that do not go: their node is lost."""

from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_operator.plan.outcome import RemoveLostPod
from tests.unit.operator.builders import SETTINGS, after, child, condition, look, pod, running

STUCK = pod(phase="Running", deleting=True, node="n1", gone_by=after(30))


def see(seconds: float, *, remove: bool = False, status: Any = None) -> Any:
    settings = SETTINGS.model_copy(update={"lost_pod_timeout_seconds": 60, "remove_lost_pods": remove})
    return look(status or running(), now=after(seconds), kind=child(), pods=[STUCK], settings=settings)


def test_within_its_grace_and_a_while_a_pod_is_leaving() -> None:
    made = see(10)
    assert condition(made.status, "Running").reason == Reason.POD_LEAVING
    assert made.requeue_after == 81
    assert made.events == ()


@pytest.mark.parametrize("remove", [False, True])
def test_after_it_the_node_is_lost_and_the_pod_removed_only_where_the_administrator_wants_that(remove: bool) -> None:
    made = see(90, remove=remove)
    found = condition(made.status, "Running")
    assert (found.status, found.reason) == ("False", Reason.NODE_LOST)
    assert "node n1 does not answer" in found.message
    assert [type(action) for action in made.actions] == ([RemoveLostPod] if remove else [])
    assert ("kubectl delete node n1" in found.message) is not remove
    assert see(900, remove=remove, status=made.status).status is None


@pytest.mark.parametrize("remove", [False, True])
def test_a_suspended_job_says_so_too_and_does_not_wait_for_ever(remove: bool) -> None:
    settings = SETTINGS.model_copy(update={"lost_pod_timeout_seconds": 60, "remove_lost_pods": remove})
    seen: Any = {"kind": child(suspended=True), "pods": [STUCK], "settings": settings, "spec": {"suspend": True}}
    early = look(running(), now=after(10), **seen)
    assert condition(early.status, "Suspended").message == "spec.suspend is true: pod tone-0 saves a checkpoint and goes"
    assert early.requeue_after == 81
    late = look(early.status, now=after(91), **seen)
    assert condition(late.status, "Running").reason == Reason.NODE_LOST
    assert "its node does not answer" in condition(late.status, "Suspended").message
    assert [type(action) for action in late.actions] == ([RemoveLostPod] if remove else [])
    assert look(late.status, now=after(900), **seen).status is None
