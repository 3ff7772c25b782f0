"""Out of memory: smaller pieces of the same effective batch, down to 1."""

from typing import Any

import pytest

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_api.status import Overrides, Phase
from olivine_operator.plan.healing import halved
from olivine_operator.plan.observed import PodView
from olivine_operator.plan.outcome import SuspendChild, WriteConfig
from tests.unit.operator.builders import after, child, condition, config_digest, ended, look, pod, report, running


@pytest.mark.parametrize(
    ("batch", "accumulation", "expected"),
    [(8, 1, (4, 2)), (4, 2, (2, 4)), (2, 4, (1, 8)), (1, 8, None), (6, 1, (3, 2)), (3, 1, (1, 3)), (5, 2, (2, 5)), (7, 3, (3, 7))],
)
def test_the_micro_batch_is_at_most_half_and_the_product_stays(
    batch: int, accumulation: int, expected: tuple[int, int] | None
) -> None:
    found = halved(batch, accumulation)
    assert (found and (found.batch_size, found.gradient_accumulation_steps)) == expected


def killed(number: int, *, reason: str = "OOMKilled", code: int = 137, index: int = 0) -> PodView:
    end = ended(code, reason=reason, at=after(number * 100))
    return pod(
        f"tone-{number}-{index}", "Failed", termination=end, memory_limit="2Gi", index=index, created=after(number * 100 - 50)
    )


@pytest.mark.parametrize("view", [killed(1), killed(1, reason="Error", code=20)], ids=["OOMKilled", "exit code 20"])
def test_a_pod_that_ran_out_of_memory_is_followed_by_one_with_half_the_micro_batch(view: PodView) -> None:
    made = look(running(), now=after(101), kind=child(), pods=[view])
    assert made.status is not None
    smaller = Overrides(batch_size=4, gradient_accumulation_steps=2)
    assert (made.status.overrides, made.status.restarts, made.status.crashes) == (smaller, 1, 0)
    assert "batchSize 4 x gradientAccumulationSteps 2, the same effective batch" in condition(made.status, "Running").message
    (write,) = made.actions
    assert isinstance(write, WriteConfig)
    assert write.data[names.CONFIG_OVERRIDES] == '{"batchSize": 4, "gradientAccumulationSteps": 2}'
    assert write.digest == config_digest(overrides=smaller)
    # Looked at again by an operator that remembers nothing, before the ConfigMap was written.
    again = look(made.status, now=after(105), kind=child(), pods=[view])
    assert (again.status, again.actions) == (None, made.actions)


def test_two_pods_of_one_attempt_halve_it_once() -> None:
    spec = {"pods": {"count": 2}}
    made = look(running(spec=spec), now=after(101), kind=child(pods=2), pods=[killed(1), killed(1, index=1)], spec=spec)
    assert made.status is not None
    assert made.status.overrides == Overrides(batch_size=4, gradient_accumulation_steps=2)
    assert made.status.restarts == 1


@pytest.mark.parametrize("away", [False, True], ids=["watched", "operator was away"])
def test_at_a_micro_batch_of_1_the_job_ends_with_the_measured_peak_and_the_limit(away: bool) -> None:
    spec: dict[str, Any] = {"training": {"maxSteps": 10, "batchSize": 4}}
    pods = [killed(n) for n in (1, 2, 3)]
    status = look(
        running(spec=spec), kind=child(), pods=[pod(phase="Running")], spec=spec, report=report(1, peak_memory_bytes=3 * 2**29)
    ).status
    made = None
    for seen in range(len(pods) if away else 1, len(pods) + 1):
        made = look(status, now=after(100 * seen + 1), kind=child(), pods=pods[:seen], spec=spec)
        status = made.status
    assert status is not None
    assert made is not None
    assert (status.phase, condition(status, "Failed").reason) == (Phase.FAILED, Reason.OUT_OF_MEMORY)
    message = condition(status, "Failed").message
    assert message.startswith(
        "out of memory with a micro-batch of 1: the trainer had used up to 1536 MiB, and the pod's limit is 2Gi; "
    )
    assert "spec.pods.resources.limits.memory" in message
    assert status.overrides == Overrides(batch_size=1, gradient_accumulation_steps=4)
    assert status.restarts == 3
    assert made.actions == (SuspendChild(name="tone-012345", suspend=True),)


def test_a_pod_that_was_evicted_for_its_nodes_memory_changes_no_batch() -> None:
    made = look(
        running(), now=after(101), kind=child(), pods=[pod("p", "Failed", termination=ended(137, at=after(100)), deleting=True)]
    )
    assert made.status is not None
    assert made.status.overrides is None
