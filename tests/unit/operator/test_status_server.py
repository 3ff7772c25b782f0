"""Who may make the operator ask the API server about a token."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from olivine_operator.plan.observed import JobView, Report
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.metrics import Metrics
from olivine_operator.runtime.status_server import StatusServer
from olivine_operator.runtime.tokens import Caller
from tests.unit.operator.builders import KEY, child, job, pod

TRAINER = Caller(namespace=KEY[0], pod="tone-0", pod_uid="tone-0")


class Verifier:
    """Takes tokens for what they claim, and counts what would be TokenReviews."""

    def __init__(self, claimed: Caller | None, real: Caller | None) -> None:
        self._claimed, self._real = claimed, real
        self.asked = 0

    def claimed(self, token: str) -> Caller | None:
        return self._claimed

    async def caller(self, token: str) -> Caller | None:
        self.asked += 1
        return self._real


def answer(verifier: Verifier) -> int:
    cache = Cache()
    cache.jobs.put(job())
    cache.children.put(child())
    cache.pods.put(pod(phase="Running"))

    def accept(_: JobView, __: Report) -> None:
        raise AssertionError("nothing is to be accepted")

    server = StatusServer(
        cache=cache, verifier=verifier, accept=accept, metrics=Metrics(), ready=lambda: True, clock=lambda: datetime.now(UTC)
    )
    match = {"namespace": KEY[0], "name": KEY[1]}
    request: Any = make_mocked_request("POST", "/", headers={"Authorization": "Bearer t"}, match_info=match)
    return asyncio.run(server._post(request)).status  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("claimed", "real", "status", "asked"),
    {
        "names no pod": (None, TRAINER, 401, 0),
        "names a pod that is not known": (Caller(namespace=KEY[0], pod="tone-0", pod_uid="x"), None, 403, 0),
        "names a pod of another namespace": (Caller(namespace="team-b", pod="tone-0", pod_uid="tone-0"), None, 403, 0),
        "forged in a trainer's name": (TRAINER, None, 401, 1),
        "is another's than it says": (TRAINER, Caller(namespace=KEY[0], pod="other", pod_uid="o"), 401, 1),
    }.values(),
)
def test_a_token_that_names_no_trainer_of_the_job_costs_no_review(
    claimed: Caller | None, real: Caller | None, status: int, asked: int
) -> None:
    verifier = Verifier(claimed, real)
    assert (answer(verifier), verifier.asked) == (status, asked)
