"""Reports that reach a standby: handed to the replica that leads, which checks them as if they had come to it."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

# Where it stands in a request, the request is not handed on again: at most one hop, whatever two replicas believe of one another.
HOP_HEADER = "Olivine-Forwarded-By"
# Less than a trainer waits for its answer.
_TIMEOUT = aiohttp.ClientTimeout(total=3, connect=1.5)
_LONGEST_ANSWER = 4096


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One of the operator's processes. Its identity stands in the Lease while it leads: NAME@HOST:PORT."""

    name: str
    host: str
    port: int

    @property
    def identity(self) -> str:
        """What the Lease says."""
        return f"{self.name}@{self.address}"

    @property
    def address(self) -> str:
        """Where its status endpoint listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the leader answered."""

    status: int
    body: bytes
    retry_after: str | None


class ForwardError(Exception):
    """Nobody leads, or the leader does not answer."""


class Forwarder:
    """The way to the leader."""

    def __init__(
        self, *, own: str, leader: Callable[[], str | None], trusted: Callable[[], ssl.SSLContext], server_name: str
    ) -> None:
        self._own = own
        self._leader = leader
        self._trusted = trusted
        self._server_name = server_name
        self._session: aiohttp.ClientSession | None = None

    async def forward(self, path: str, authorization: str, body: bytes) -> Reply:
        """Hands a report on."""
        leader = self._leader()
        if leader is None or leader == self._own:
            raise ForwardError("no replica of the operator leads at the moment")
        address = leader.rpartition("@")[2]
        # By the Lease's address, but vouched for by our own CA in the endpoint's name: a forged Lease gets no token.
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        headers = {"Authorization": authorization, "Content-Type": "application/json", HOP_HEADER: self._own}
        try:
            async with self._session.post(
                f"https://{address}{path}",
                data=body,
                headers=headers,
                ssl=self._trusted(),
                server_hostname=self._server_name,
                allow_redirects=False,
            ) as response:
                answer = await response.content.read(_LONGEST_ANSWER)
                return Reply(status=response.status, body=answer, retry_after=response.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ForwardError(f"the replica that leads, at {address}, does not answer") from error

    async def close(self) -> None:
        """Ends the connections."""
        if self._session is not None:
            await self._session.close()
