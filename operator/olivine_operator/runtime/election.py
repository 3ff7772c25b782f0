"""Who leads: a Lease that every replica sees, and that one of them holds.

The client's own leaderelection package compares wall clocks, does not bound its requests, and lets a leader that cannot renew
go on writing: docs/decisions/0020-the-lease.md.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from olivine_operator.runtime.api import LEASES, ApiError, Json, KubeApi
from olivine_operator.runtime.metrics import Metrics

_log = logging.getLogger(__name__)

LEASE_NAME = "olivine-operator"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds. Nobody compares clocks: each replica counts by its own from what it saw or did."""

    lasts: float = 12.0
    """After so long without a renewal that it saw, another replica takes the Lease."""
    writes_until: float = 8.0
    """So long after its last renewal began, the holder writes no more: well before another could begin."""
    retry: float = 2.0
    """Between two renewals, and between two looks of those that wait."""
    request: float = 3.0
    """For one request: a hanging one must not use up the time that is left."""


class Election:
    """One replica's part in it."""

    def __init__(
        self,
        *,
        api: KubeApi,
        namespace: str,
        identity: str,
        metrics: Metrics,
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._timing = timing
        self._clock = clock
        # The Lease as it was last seen: None where it has to be read before anything is written into it.
        self._version: str | None = None
        self._spec: Json = {}
        self._changed_at = clock()
        self._renewed_at: float | None = None
        metrics.leader.set_function(lambda: float(self.leading()))

    def remaining(self) -> float:
        """For how many seconds this replica may still write."""
        if self._renewed_at is None:
            return 0.0
        return max(0.0, self._renewed_at + self._timing.writes_until - self._clock())

    def leading(self) -> bool:
        """Whether this replica leads."""
        return self.remaining() > 0

    def leader(self) -> str | None:
        """Who led when the Lease was last looked at."""
        return self._spec.get("holderIdentity") or None

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Leads whenever it may, and works as long as it leads; for ever. Cancelled, it hands the Lease over."""
        try:
            while True:
                while not await self._attempt():
                    await asyncio.sleep(self._timing.retry)
                await self._lead(work)
        finally:
            await self._release()

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        _log.info("leading, as %s", self._identity)
        task = asyncio.ensure_future(work())
        try:
            while self.leading():
                done, _ = await asyncio.wait([task], timeout=self._timing.retry)
                if done:
                    break
                await self._attempt()
            else:
                _log.warning("leading no more: %s", self._why_lost())
        finally:
            task.cancel()
            # Nothing of this term may be under way when the next one begins, here or elsewhere.
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    def _why_lost(self) -> str:
        if self.leader() not in (None, self._identity):
            return f"{self.leader()} holds the Lease"
        return f"the Lease could not be renewed for {self._timing.writes_until:.0f} s"

    async def _attempt(self) -> bool:
        """Takes or renews the Lease where that is possible; whether it is held."""
        try:
            async with asyncio.timeout(self._timing.request):
                return await self._take()
        except (ApiError, TimeoutError) as error:
            self._version = None  # whether it was written, nobody knows
            _log.warning("the Lease %s: %s", LEASE_NAME, getattr(error, "message", "the API server does not answer"))
            return False

    async def _take(self) -> bool:
        for _ in range(2):
            if self._version is None or not self._is_holder():
                await self._look()
            if self._version is not None and not self._is_holder() and not self._is_free():
                self._renewed_at = None
                return False
            began = self._clock()
            try:
                self._see(await self._write())
            except ApiError as error:
                if error.code not in (404, 409):
                    raise
                self._version = None  # somebody wrote since: look again
                continue
            self._renewed_at = began
            return True
        return False

    async def _look(self) -> None:
        try:
            self._see(await self._api.get(LEASES, self._namespace, LEASE_NAME))
        except ApiError as error:
            if error.code != 404:
                raise
            self._version, self._spec = None, {}

    def _see(self, lease: Json) -> None:
        spec = lease.get("spec") or {}
        marks = ("holderIdentity", "renewTime", "leaseTransitions")
        if any(spec.get(mark) != self._spec.get(mark) for mark in marks):
            self._changed_at = self._clock()
        self._version, self._spec = lease["metadata"]["resourceVersion"], spec

    def _is_holder(self) -> bool:
        return self.leader() == self._identity

    def _is_free(self) -> bool:
        lasts = float(self._spec.get("leaseDurationSeconds") or self._timing.lasts)
        return self.leader() is None or self._clock() >= self._changed_at + lasts

    async def _write(self) -> Json:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec: Json = {"holderIdentity": self._identity, "leaseDurationSeconds": round(self._timing.lasts), "renewTime": now}
        if not self._is_holder():
            spec |= {"acquireTime": now, "leaseTransitions": int(self._spec.get("leaseTransitions") or 0) + 1}
        if self._version is None:
            metadata = {"name": LEASE_NAME, "namespace": self._namespace}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            return await self._api.create(LEASES, self._namespace, lease)
        return await self._api.patch(LEASES, self._namespace, LEASE_NAME, self._patch(spec))

    def _patch(self, spec: Json) -> Json:
        return {"metadata": {"resourceVersion": self._version}, "spec": spec}

    async def _release(self) -> None:
        """The next leader need not wait."""
        held, self._renewed_at = self._renewed_at is not None, None
        if not held or self._version is None:
            return
        try:
            async with asyncio.timeout(self._timing.request):
                body = self._patch({"holderIdentity": "", "leaseDurationSeconds": 1})
                await self._api.patch(LEASES, self._namespace, LEASE_NAME, body)
            _log.info("the Lease is released")
        except (ApiError, TimeoutError) as error:
            _log.warning("the Lease was not released: %s", getattr(error, "message", "the API server does not answer"))
