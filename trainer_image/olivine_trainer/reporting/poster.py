"""POSTs of the whole snapshot to the operator, from a background thread of PID 1: never in the work's way."""

import http.client
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from olivine_api import names
from olivine_api.base import StatusModel
from olivine_api.status import JobIdentity
from olivine_trainer.reporting.logs import log, warn

INTERVAL = 2.0  # seconds between two POSTs
_TIMEOUT = 5.0  # seconds for one of them
_OK = range(200, 300)


@dataclass(frozen=True)
class Endpoint:
    """The operator's status endpoint, and where the means to reach it are mounted."""

    url: str
    identity: JobIdentity
    ca_file: Path = Path(names.CONFIG_DIR) / names.CONFIG_CA
    token_file: Path = Path(names.TOKEN_DIR) / names.TOKEN_FILE
    path: str = names.STATUS_PATH

    def post(self, snapshot: StatusModel) -> None:
        """Send one snapshot. Raises OSError or http.client.HTTPException, with what the endpoint answered."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise OSError(f"{names.ENV_STATUS_URL} is no http or https URL: {self.url}")
        path = self.path.format(namespace=self.identity.namespace, name=self.identity.name)
        headers = {"Content-Type": "application/json"}
        # Both files are rotated under a running pod: read them each time.
        if self.token_file.exists():
            headers["Authorization"] = f"Bearer {self.token_file.read_text().strip()}"
        if parts.scheme == "https":
            ca = str(self.ca_file) if self.ca_file.exists() else None
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=_TIMEOUT, context=ssl.create_default_context(cafile=ca)
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT)
        try:
            body = snapshot.model_dump_json(by_alias=True, exclude_none=True).encode()
            connection.request("POST", parts.path.rstrip("/") + path, body=body, headers=headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status not in _OK:
                raise OSError(f"the status endpoint answered {answer.status} {answer.reason}")
        finally:
            connection.close()


class Poster:
    """The heartbeat: every few seconds the newest snapshot, whole; one line when the endpoint goes, one when it is back."""

    def __init__(self, endpoint: Endpoint, newest: Callable[[], StatusModel | None], *, interval: float = INTERVAL) -> None:
        self._endpoint = endpoint
        self._newest = newest
        self._interval = interval
        self._reachable = True
        self._taken = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def stop(self) -> None:
        """Post once more, so that the end arrives too, and stop."""
        self._stopping.set()
        self._thread.join(timeout=2 * _TIMEOUT)

    def insist(self, seconds: float, *, given_up: Callable[[], bool]) -> bool:
        """After `stop`: post until the endpoint has taken it, for so long at most; whether it has."""
        deadline = time.monotonic() + seconds
        while not self._taken and time.monotonic() < deadline and not given_up():
            time.sleep(min(self._interval, max(0.0, deadline - time.monotonic())))
            self._post_once()
        return self._taken

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self._post_once()
        self._post_once()

    def _post_once(self) -> None:
        self._taken = False
        try:
            snapshot = self._newest()
            if snapshot is None:
                return
            self._endpoint.post(snapshot)
            self._taken = True
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._reachable:
                warn(f"the status endpoint is out of reach; the work goes on, the next POST that arrives tells all: {error}")
            self._reachable = False
        else:
            if not self._reachable:
                log("the status endpoint is back")
            self._reachable = True
