"""Who may make the operator ask the API server about a token."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from olivine_operator.plan.observed import JobView, Report
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.forwarding import Reply
from olivine_operator.runtime.metrics import Metrics
from olivine_operator.runtime.status_server import StatusServer
from olivine_operator.runtime.tokens import Caller
from tests.unit.operator.builders import KEY, child, job, pod

TRAINER = Caller(namespace=KEY[0], pod="tone-0", pod_uid="tone-0")


class Verifier:
    """Takes tokens for what they claim, and counts what would be TokenReviews."""

    def __init__(self, claimed: Caller | None, real: Caller | None, *, known: bool = False) -> None:
        self._claimed, self._real, self._known = claimed, real, known
        self.asked = 0

    def claimed(self, token: str) -> Caller | None:
        return self._claimed

    def remembers(self, token: str) -> bool:
        return self._known

    async def caller(self, token: str) -> Caller | None:
        self.asked += 1
        return self._real


async def nowhere(path: str, authorization: str, body: bytes) -> Reply:
    raise AssertionError("nothing is to be handed on")


def answers(verifier: Verifier, *, times: int = 1) -> list[int]:
    cache = Cache()
    cache.jobs.put(job())
    cache.children.put(child())
    cache.pods.put(pod(phase="Running"))

    def accept(_: JobView, __: Report) -> None:
        raise AssertionError("nothing is to be accepted")

    server = StatusServer(
        cache=cache,
        verifier=verifier,
        accept_build=lambda _bundle, _report: None,
        accept=accept,
        metrics=Metrics(),
        ready=lambda: True,
        leading=lambda: True,
        forward=nowhere,
        clock=lambda: datetime.now(UTC),
    )
    match = {"namespace": KEY[0], "name": KEY[1]}
    request: Any = make_mocked_request("POST", "/", headers={"Authorization": "Bearer t"}, match_info=match)

    async def post() -> int:
        return (await server._post(request)).status  # pyright: ignore[reportPrivateUsage]

    return [asyncio.run(post()) for _ in range(times)]


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
    assert (answers(verifier), verifier.asked) == ([status], asked)


def test_forged_tokens_in_a_pods_name_cost_few_reviews() -> None:
    verifier = Verifier(TRAINER, None)
    assert answers(verifier, times=9) == [401] * 3 + [429] * 6
    assert verifier.asked == 3


def test_a_token_that_is_known_to_be_good_needs_no_review_to_be_left() -> None:
    verifier = Verifier(TRAINER, Caller(namespace=KEY[0], pod="other", pod_uid="o"), known=True)
    assert answers(verifier, times=9) == [401] * 9
