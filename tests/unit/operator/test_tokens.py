"""Tokens: junk costs no TokenReview, good ones cost one, and a verdict does not outlive its token."""

import asyncio
import base64
import json
from typing import Any, cast

import pytest

from olivine_operator.runtime import tokens as module
from olivine_operator.runtime.api import KubeApi
from olivine_operator.runtime.rate_limit import RateLimit
from olivine_operator.runtime.tokens import Caller, TokenVerifier


def token(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"aud": ["olivine-status"], "exp": 5000, **claims}).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


class Reviews:
    """An API server that knows every token."""

    def __init__(self, **status: Any) -> None:
        extra = {"authentication.kubernetes.io/pod-name": ["p"], "authentication.kubernetes.io/pod-uid": ["u"]}
        user = {"username": "system:serviceaccount:team-a:default", "extra": extra}
        self.status = {"authenticated": True, "audiences": ["olivine-status"], "user": user} | status
        self.asked = 0

    async def create(self, *_: Any) -> Any:
        self.asked += 1
        return {"status": self.status}


def ask(reviews: Reviews, *tokens: str, at: tuple[float, ...] = (1000.0,)) -> list[Caller | None]:
    clock = iter([*at, *[at[-1]] * len(tokens)])
    verifier = TokenVerifier(cast(KubeApi, reviews), lambda: next(clock))

    async def scenario() -> list[Caller | None]:
        return [await verifier.caller(text) for text in tokens]

    return asyncio.run(scenario())


def test_a_good_token_is_reviewed_once() -> None:
    reviews = Reviews()
    assert ask(reviews, token(), token(), token()) == [Caller(namespace="team-a", pod="p", pod_uid="u")] * 3
    assert reviews.asked == 1


def test_refusals_push_no_good_token_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    reviews = Reviews()
    verifier = TokenVerifier(cast(KubeApi, reviews), lambda: 1000.0)

    async def scenario() -> None:
        assert await verifier.caller(token()) is not None
        reviews.status["authenticated"] = False
        for number in range(5):
            assert await verifier.caller(token(jti=number)) is None
            assert not verifier.remembers(token(jti=number))

    asyncio.run(scenario())
    assert verifier.remembers(token())
    assert not verifier.remembers("junk")


def test_a_verdict_that_is_too_old_is_not_remembered() -> None:
    now = 1000.0
    verifier = TokenVerifier(cast(KubeApi, Reviews()), lambda: now)
    asyncio.run(verifier.caller(token()))
    now = 1600.0
    assert not verifier.remembers(token())


def test_junk_is_refused_without_asking() -> None:
    reviews = Reviews()
    junk = ["", "a.b", "a.b.c", "a.e30.c", token(aud="kubernetes"), token(exp=999), token(exp="never"), "e30.W10.c2ln"]
    assert ask(reviews, *junk) == [None] * len(junk)
    assert reviews.asked == 0


def test_a_verdict_is_asked_for_again_after_a_while() -> None:
    reviews = Reviews()
    assert None not in ask(reviews, token(), token(), at=(1000.0, 1700.0))
    assert reviews.asked == 2


def test_tokens_that_are_good_for_others_or_for_no_pod_are_refused() -> None:
    for status in (
        {"authenticated": False},
        {"audiences": []},
        {"user": {"username": "system:serviceaccount:team-a:default", "extra": {}}},
        {
            "user": {
                "username": "admin",
                "extra": {"authentication.kubernetes.io/pod-name": ["p"], "authentication.kubernetes.io/pod-uid": ["u"]},
            }
        },
    ):
        assert ask(Reviews(**status), token()) == [None]


def test_a_sender_may_send_once_a_second_with_a_little_patience() -> None:
    clock = iter((0, 0, 0, 0.5, 1.0, 1.1, 1.1))
    limit = RateLimit(per_second=1, burst=2, clock=lambda: next(clock))
    assert [limit.allows("a") for _ in range(6)] == [True, True, False, False, True, False]
    assert limit.allows("b")


def test_who_a_token_claims_to_be_is_read_without_asking() -> None:
    reviews = Reviews()
    verifier = TokenVerifier(cast(KubeApi, reviews), lambda: 1000.0)
    bound = {"namespace": "team-a", "pod": {"name": "p", "uid": "u"}}
    assert verifier.claimed(token(**{"kubernetes.io": bound})) == Caller(namespace="team-a", pod="p", pod_uid="u")
    for nobody in ("junk", token(), token(**{"kubernetes.io": 1}), token(**{"kubernetes.io": {"pod": {"name": 1}}})):
        assert verifier.claimed(nobody) is None
    assert reviews.asked == 0


def test_few_reviews_run_at_once() -> None:
    running, most = 0, 0

    class Slow(Reviews):
        async def create(self, *_: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            return await super().create()

    verifier = TokenVerifier(cast(KubeApi, Slow()), lambda: 1000.0)

    async def flood() -> None:
        await asyncio.gather(*(verifier.caller(token(jti=number)) for number in range(50)))

    asyncio.run(flood())
    assert most <= 8
