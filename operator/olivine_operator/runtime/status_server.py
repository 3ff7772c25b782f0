"""The status endpoint: trainers POST snapshots, over HTTPS, each for its own job only.

Every replica serves it. One that does not lead checks a report and hands it to the leader, which checks it again.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from aiohttp import web
from pydantic import ValidationError

from olivine_api import names
from olivine_api.bundle_build import BuildSnapshot
from olivine_api.status import Phase, Snapshot
from olivine_operator.plan.observed import BuildReport, BundleView, JobView, Key, PodView, Report
from olivine_operator.plan.snapshots import UnboundedNumberError, bounded, refuse_unbounded
from olivine_operator.plan.validation import sentence
from olivine_operator.runtime.api import ApiError
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.forwarding import HOP_HEADER, ForwardError, Reply
from olivine_operator.runtime.metrics import Metrics
from olivine_operator.runtime.rate_limit import RateLimit
from olivine_operator.runtime.tokens import Caller

_log = logging.getLogger(__name__)
M = TypeVar("M", Snapshot, BuildSnapshot)
_LONGEST_TOKEN = 16 * 1024
_BODY_SECONDS = 10.0
_REPORTS_PER_SECOND = 1.0
# A good token needs one review in ten minutes; forged ones must not keep the API server from reviewing others'.
_REVIEWS_PER_SECOND = 0.2


class Verifier(Protocol):
    """Tells callers by their tokens."""

    def claimed(self, token: str) -> Caller | None:
        """Whom a token says it is bound to, unverified."""
        ...

    def remembers(self, token: str) -> bool:
        """Whether the caller is known without asking anybody."""
        ...

    async def caller(self, token: str) -> Caller | None:
        """The caller of a good token."""
        ...


class Forward(Protocol):
    """Hands a report to the leader."""

    async def __call__(self, path: str, authorization: str, body: bytes) -> Reply:
        """The leader's answer."""
        ...


class StatusServer:
    """Takes reports; what is not in order is answered with a sentence and leaves no trace."""

    def __init__(
        self,
        *,
        cache: Cache,
        verifier: Verifier,
        accept: Callable[[JobView, Report], None],
        accept_build: Callable[[BundleView, BuildReport], None],
        metrics: Metrics,
        ready: Callable[[], bool],
        leading: Callable[[], bool],
        forward: Forward,
        clock: Callable[[], datetime],
    ) -> None:
        self._cache = cache
        self._verifier = verifier
        self._accept = accept
        self._accept_build = accept_build
        self._metrics = metrics
        self._ready = ready
        self._leading = leading
        self._forward = forward
        self._clock = clock
        self._reports = RateLimit(per_second=_REPORTS_PER_SECOND)
        self._reviews = RateLimit(per_second=_REVIEWS_PER_SECOND)
        self._runner: web.AppRunner | None = None

    async def start(self, address: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Listens."""
        app = web.Application(client_max_size=names.STATUS_BODY_LIMIT)
        app.router.add_post(names.STATUS_PATH, self._post)
        app.router.add_post(names.BUNDLE_STATUS_PATH, self._post)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=75)
        await self._runner.setup()
        await web.TCPSite(self._runner, address, port, ssl_context=tls).start()

    async def stop(self) -> None:
        """Listens no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        try:
            key = _key(request)
            self._check_hops(request)
            caller = await self._caller(request, key)
            job = self._owner_of(caller, key)
            self._admit(job, caller)
            async with asyncio.timeout(_BODY_SECONDS):
                body = await request.read()
            if not self._leading():
                return await self._hand_on(request, body)
            if isinstance(job, BundleView):
                self._take_build(job, caller, body)
            else:
                self._take(job, caller, body)
            response = web.Response(status=204)
        except _RefusedError as error:
            response = _answer(error.status, str(error), error.retry_after)
        except ApiError as error:
            response = _answer(503, f"the token cannot be verified now: {error.message}", retry_after=5)
        except TimeoutError:
            response = _answer(408, f"a report is to be here within {_BODY_SECONDS:.0f} seconds")
        except web.HTTPRequestEntityTooLarge:
            response = _answer(413, f"a report has at most {names.STATUS_BODY_LIMIT} bytes")
        self._metrics.status_posts.labels(_RESULTS.get(response.status, "refused")).inc()
        return response

    def _check_hops(self, request: web.Request) -> None:
        if HOP_HEADER in request.headers and not self._leading():
            raise _RefusedError(503, "this replica does not lead: a report is handed on once only", retry_after=2)

    async def _hand_on(self, request: web.Request, body: bytes) -> web.Response:
        self._check_hops(request)  # it may have led until now
        try:
            reply = await self._forward(request.path, request.headers["Authorization"], body)
        except ForwardError as error:
            raise _RefusedError(503, str(error), retry_after=2) from error
        self._metrics.status_posts.labels("forwarded").inc()
        headers = {"Content-Type": "application/json"} | ({"Retry-After": reply.retry_after} if reply.retry_after else {})
        return web.Response(status=reply.status, body=reply.body or None, headers=headers if reply.body else None)

    async def _caller(self, request: web.Request, key: Key) -> Caller:
        """Who sends it."""
        if not self._ready():
            raise _RefusedError(503, "the operator is still reading the cluster's state", retry_after=2)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > _LONGEST_TOKEN:
            raise _RefusedError(401, f"a report needs a bearer token with the audience {names.TOKEN_AUDIENCE}")
        claimed = self._verifier.claimed(token)
        caller = None
        if claimed is not None:
            # Before the API server is asked: whoever names no pod of this job costs it nothing.
            self._owner_of(claimed, key)
            if not self._verifier.remembers(token) and not self._reviews.allows(claimed.pod_uid):
                raise _RefusedError(429, "too many new tokens in this pod's name", retry_after=5)
            caller = await self._verifier.caller(token)
        if caller is None or caller != claimed:
            raise _RefusedError(401, "the token is not good: expired, of another audience, or not bound to a pod")
        return caller

    def _owner_of(self, caller: Caller, key: Key) -> JobView:
        """The resource, where the caller is a pod of its current child."""
        owner, mates = self._mates(key)
        pod = next((pod for pod in mates if pod.uid == caller.pod_uid), None)
        if owner is None or pod is None or (caller.namespace, caller.pod, owner.uid) != (key[0], pod.name, pod.job_uid):
            raise _RefusedError(403, f"pod {caller.pod} does not work for this job")
        if pod.phase in ("Succeeded", "Failed"):
            raise _RefusedError(403, f"pod {caller.pod} has ended: it is of an earlier attempt")
        if pod.index != 0:
            raise _RefusedError(403, f"pod {caller.pod} has index {pod.index}: the pod with index 0 reports for all")
        return owner

    def _mates(self, key: Key) -> tuple[JobView | None, Sequence[PodView]]:
        if not key[1].startswith(names.BUNDLE_PREFIX):
            job = self._cache.job(key)
            return job, self._cache.pods_of(job) if job is not None else ()
        bundle = self._cache.bundle(key)
        name = (bundle.status.get("build") or {}).get("job") if bundle is not None else None
        return bundle, self._cache.pods_of_build(bundle, name) if bundle is not None and name else ()

    def _admit(self, job: JobView, caller: Caller) -> None:
        """Refuses what comes too often, or too late."""
        if not self._reports.allows(caller.pod_uid):
            raise _RefusedError(429, "a pod may report once a second", retry_after=1)
        if job.deleting or job.status.get("phase") in (Phase.SUCCEEDED, Phase.FAILED):
            raise _RefusedError(409, "the job has ended")

    def _take(self, job: JobView, caller: Caller, body: bytes) -> None:
        snapshot = _read(body, Snapshot)
        # A pod that was given up, and goes on where nobody sees it.
        known = job.status.get("attempt", 0)
        if 0 < snapshot.attempt < known:
            raise _RefusedError(409, f"attempt {snapshot.attempt} is over: the job is at attempt {known}")
        now = self._clock()
        self._accept(job, Report(snapshot=bounded(snapshot, now).model_copy(update={"pod": caller.pod}), received_at=now))

    def _take_build(self, bundle: BundleView, caller: Caller, body: bytes) -> None:
        snapshot = _read(body, BuildSnapshot)
        known = (bundle.status.get("build") or {}).get("sequence", 0)
        if snapshot.sequence != known:
            raise _RefusedError(409, f"build {snapshot.sequence} is over: the bundle is at build {known}")
        report = BuildReport(snapshot=snapshot.model_copy(update={"pod": caller.pod}), received_at=self._clock())
        self._accept_build(bundle, report)


def _key(request: web.Request) -> Key:
    """The resource that a path names."""
    namespace, name = request.match_info["namespace"], request.match_info["name"]
    of_bundle = request.path == names.BUNDLE_STATUS_PATH.format(namespace=namespace, name=name)
    return namespace, f"{names.BUNDLE_PREFIX}{name}" if of_bundle else name


def _read(body: bytes, model: type[M]) -> M:
    """A report. Raises what the answer says."""
    try:
        raw = json.loads(body)
        refuse_unbounded(raw)
        return model.model_validate(raw)
    except UnboundedNumberError as error:
        raise _RefusedError(422, f"the report cannot be read: {error}") from error
    except ValidationError as error:
        raise _RefusedError(422, f"the report cannot be read: {sentence(error, root='report')}") from error
    except (ValueError, RecursionError) as error:
        raise _RefusedError(400, "the report is not JSON") from error


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


_RESULTS = {
    204: "accepted",
    400: "invalid",
    401: "unauthenticated",
    403: "forbidden",
    408: "invalid",
    409: "ended",
    413: "too_large",
    422: "invalid",
    429: "throttled",
    503: "unavailable",
}


def _answer(status: int, message: str, retry_after: int | None = None) -> web.Response:
    headers = {"Retry-After": str(retry_after)} if retry_after is not None else None
    return web.json_response({"message": message}, status=status, headers=headers)
