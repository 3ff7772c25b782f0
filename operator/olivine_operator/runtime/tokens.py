"""Who sends a report: bearer tokens, verified by the API server; good ones are remembered until they expire."""

import asyncio
import base64
import binascii
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from olivine_api import names
from olivine_operator.runtime.api import TOKEN_REVIEWS, Json, KubeApi

_REMEMBERED = 8192
# A token that was revoked with its pod is trusted no longer than this.
_LONGEST_TRUST_SECONDS = 600.0
_REVIEWS_AT_ONCE = 8
_POD_NAME, _POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
_USER_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A pod, by a token that is bound to it."""

    namespace: str
    pod: str
    pod_uid: str


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    caller: Caller
    until: float


class TokenVerifier:
    """Callers by their tokens."""

    def __init__(self, api: KubeApi, wall_clock: Callable[[], float]) -> None:
        self._api = api
        self._wall_clock = wall_clock
        self._reviews = asyncio.Semaphore(_REVIEWS_AT_ONCE)
        # Refusals are not kept: whoever sends forged tokens would push good ones out.
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()

    def remembers(self, token: str) -> bool:
        """Whether a token is known to be good, so that the API server is not asked."""
        verdict = self._verdicts.get(_mark(token))
        return verdict is not None and verdict.until > self._wall_clock()

    def claimed(self, token: str) -> Caller | None:
        """Whom a token says it is bound to; not to be believed, but a reason not to ask the API server about a stranger's."""
        bound = (_claims(token) or {}).get("kubernetes.io")
        pod = bound.get("pod") if isinstance(bound, dict) else None
        if not isinstance(bound, dict) or not isinstance(pod, dict):
            return None
        namespace, name, uid = bound.get("namespace"), pod.get("name"), pod.get("uid")
        if not (isinstance(namespace, str) and isinstance(name, str) and isinstance(uid, str)):
            return None
        return Caller(namespace=namespace, pod=name, pod_uid=uid)

    async def caller(self, token: str) -> Caller | None:
        """The caller; None for a token that is not good. Fails with ApiError where nobody can say."""
        now = self._wall_clock()
        # Junk is told from tokens without the API server: a flood of it must not become a flood of TokenReviews.
        expires = _expiry(token)
        if expires is None or expires <= now:
            return None
        mark = _mark(token)
        verdict = self._verdicts.get(mark)
        if verdict is None or verdict.until <= now:
            async with self._reviews:
                caller = await self._review(token)
            if caller is None:
                return None
            verdict = _Verdict(caller=caller, until=min(expires, now + _LONGEST_TRUST_SECONDS))
            self._verdicts[mark] = verdict
            while len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(mark)
        return verdict.caller

    async def _review(self, token: str) -> Caller | None:
        body: Json = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.TOKEN_AUDIENCE]},
        }
        status = (await self._api.create(TOKEN_REVIEWS, None, body)).get("status", {})
        # An API server that ignores audiences names none: then the token may be meant for anybody.
        if not status.get("authenticated") or names.TOKEN_AUDIENCE not in status.get("audiences", ()):
            return None
        user = status.get("user", {})
        username, extra = user.get("username", ""), user.get("extra", {})
        pod, pod_uid = extra.get(_POD_NAME, [""])[0], extra.get(_POD_UID, [""])[0]
        if not username.startswith(_USER_PREFIX) or not pod or not pod_uid:
            return None
        return Caller(namespace=username.removeprefix(_USER_PREFIX).split(":")[0], pod=pod, pod_uid=pod_uid)


def _mark(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _expiry(token: str) -> float | None:
    """When a token that looks like one of ours says that it expires; nothing in it is believed before the API server says so."""
    claims = _claims(token)
    if claims is None:
        return None
    audiences, expires = claims.get("aud"), claims.get("exp")
    audiences = [audiences] if isinstance(audiences, str) else audiences
    if not isinstance(audiences, list) or names.TOKEN_AUDIENCE not in audiences or not isinstance(expires, int | float):
        return None
    return float(expires)


def _claims(token: str) -> dict[str, Any] | None:
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None
