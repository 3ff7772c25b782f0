"""Reading a stored spec leniently."""

from typing import Any

import pytest

from olivine_api.finetunejob import Retries
from olivine_operator.plan.wishes import Wishes


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"pods": None, "training": [], "retries": 3},
        {"pods": {"count": 0, "processesPerPod": "2", "resources": "many"}, "retries": {"maxRestarts": -1}},
        {"activeDeadlineSeconds": True, "queueDeadlineSeconds": 0, "ttlSecondsAfterFinished": -1, "suspend": "no", "cancel": 1},
    ],
)
def test_what_another_release_wrote_is_the_default(spec: dict[str, Any]) -> None:
    assert Wishes.read(spec) == Wishes()


def test_what_is_there_is_read() -> None:
    found = Wishes.read(
        {
            "suspend": True,
            "retries": {"maxRestarts": 2},
            "pods": {"count": 3, "processesPerPod": 4, "resources": {"limits": {"cpu": 1}}},
            "training": {"batchSize": 2, "gradientAccumulationSteps": 5},
            "activeDeadlineSeconds": 9,
            "ttlSecondsAfterFinished": 0,
        }
    )
    assert (found.suspend, found.retries, found.pods, found.processes_per_pod) == (True, Retries(max_restarts=2), 3, 4)
    assert (found.batch_size, found.accumulation, found.active_deadline_seconds, found.ttl_seconds) == (2, 5, 9, 0)
