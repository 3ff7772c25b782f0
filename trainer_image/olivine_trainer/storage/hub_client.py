"""The hub's own client, on our terms: who waits how long, trusts which certificates, and tries again."""

import contextlib
import errno
import ssl
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from olivine_api.reasons import Reason
from olivine_trainer.faults import is_disk_fault
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import FIELDS, Place, user_error
from olivine_trainer.storage.hub_failures import Asking, HubUnavailableError, explain_hub
from olivine_trainer.storage.store import PATIENCE_SECONDS, RETRY_DELAYS

Result = TypeVar("Result")

_LOCAL = (errno.EROFS, errno.EACCES, errno.EPERM)

# A hub that takes a call and stays silent: the client's own choice is to wait for ever.
SILENCE_SECONDS = 60.0
_CONNECT_SECONDS = 10.0


class HubClient:
    """Runs requests, again after each delay while another try may help. Raises TrainerErrors only."""

    def __init__(
        self,
        access: Access,
        *,
        offline: bool = False,
        writes: bool = False,
        delays: tuple[float, ...] = RETRY_DELAYS,
        sleep: Callable[[float], None] = time.sleep,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        """`silence`: seconds without a byte after which a request is tried again."""
        from huggingface_hub import constants  # noqa: PLC0415  (half a second, for this scheme alone)

        self.endpoint = access.endpoint or constants.ENDPOINT
        self.place = Place(access.role, access.uri, self.endpoint)
        self.token = access.keys.get("HF_TOKEN")
        self._ca = access.ca_bundle
        self._offline = offline
        self._writes = writes
        self._delays = delays
        self._sleep = sleep
        self._silence = silence

    def tried(self, request: Callable[[Any], Result], asking: Asking, *, doing: str = "reading") -> Result:
        """What `request` gives, which is called with an HfApi. `asking`: for sentences."""
        from httpx2 import HTTPError  # noqa: PLC0415
        from huggingface_hub import HfApi  # noqa: PLC0415
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        begun = time.monotonic()
        for delay in (*self._delays, None):
            try:
                with self._client():
                    return request(api)
            except (HfHubHTTPError, HTTPError, OSError, ValueError, RuntimeError) as caught:
                error = caught
                if isinstance(caught, RuntimeError) and not isinstance(caught, OSError | HTTPError):
                    # What happened to one of several files that are uploaded at a time.
                    if not isinstance(caught.__cause__, HfHubHTTPError | HTTPError | OSError):
                        raise
                    error = caught.__cause__
                if is_disk_fault(error) or getattr(error, "errno", None) in _LOCAL:
                    raise error from None  # of this machine's, not of the hub's
                if (told := explain_hub(error, asking)) is not None:
                    raise told from None
                if delay is None or time.monotonic() - begun > PATIENCE_SECONDS:
                    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise HubUnavailableError(f"{doing} failed at {self.place}: {first[:300]}") from error
                self._sleep(delay)
        raise AssertionError("unreachable: the last try returns or raises")

    @contextlib.contextmanager
    def _client(self) -> Generator[None]:
        """The hub's client, allowed to ask: workers forbid it to the libraries that would do so on their own."""
        from huggingface_hub import close_session, constants, set_client_factory  # noqa: PLC0415
        from huggingface_hub.utils import disable_progress_bars  # noqa: PLC0415
        from huggingface_hub.utils._http import default_client_factory  # noqa: PLC0415

        forbidden, without_xet = constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET
        constants.HF_HUB_OFFLINE = self._offline
        # Uploads by Xet have a client of their own, without our patience and certificates; LFS goes through this one.
        constants.HF_HUB_DISABLE_XET = without_xet or self._writes
        disable_progress_bars()
        set_client_factory(self._make_client)
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = forbidden, without_xet
            set_client_factory(default_client_factory)
            close_session()

    def _make_client(self) -> Any:
        """A client that waits for so long, and trusts the user's certificates beside the system's."""
        import httpx2  # noqa: PLC0415
        from huggingface_hub.utils._http import hf_request_event_hook  # noqa: PLC0415

        class Client(httpx2.Client):
            """Some calls ask for no limit at all, by name."""

            def build_request(self, *arguments: Any, timeout: Any = None, **options: Any) -> httpx2.Request:
                return super().build_request(*arguments, timeout=self.timeout if timeout is None else timeout, **options)

        return Client(
            event_hooks={"request": [hf_request_event_hook]},
            follow_redirects=True,
            timeout=httpx2.Timeout(self._silence, connect=min(self._silence, _CONNECT_SECONDS)),
            verify=self._trusting() if self._ca is not None else True,
        )

    def _trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(cadata=self._ca)
        except (ssl.SSLError, ValueError) as error:
            field = FIELDS[self.place.role]
            raise user_error(
                self.place,
                Reason.INVALID_SPEC,
                f"CA_BUNDLE in the Secret of {field}.secretRef must hold certificates in PEM form: {error}",
            ) from None
        return context
