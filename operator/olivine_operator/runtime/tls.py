"""The status endpoint's certificate, kept in a Secret so that running pods trust the operator after its restart."""

import asyncio
import base64
import logging
import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from olivine_api import names
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.runtime.api import SECRETS, ApiError, Json, KubeApi
from olivine_operator.runtime.certificates import Identity, Pair, renewed

_log = logging.getLogger(__name__)

SECRET_NAME = "olivine-status-tls"
_CA_CERTIFICATE, _CA_KEY, _SERVER_CERTIFICATE, _SERVER_KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"
_RENEWAL_SECONDS = 24 * 3600


class StatusTls:
    """The endpoint's identity and the TLS context that serves it."""

    def __init__(self, api: KubeApi, settings: OperatorSettings) -> None:
        self._api = api
        self._namespace = settings.namespace
        self._hosts = (settings.status_host,)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._ca_certificate = ""

    def ca_certificate(self) -> str:
        """What pods trust, PEM."""
        return self._ca_certificate

    async def load(self) -> None:
        """Takes the identity from the Secret; makes what is missing or about to expire."""
        for _ in range(5):
            try:
                identity = await self._agree()
                break
            except ApiError as error:
                if error.code != 409:
                    raise
                # Another replica was faster: take what it made.
        else:
            raise ApiError(409, "Conflict", f"the Secret {SECRET_NAME} changes faster than it can be read")
        self._serve(identity)

    async def keep(self, changed: Callable[[], None]) -> None:
        """Renews the certificate in time, for ever; tells of another CA."""
        while True:
            await asyncio.sleep(_RENEWAL_SECONDS)
            known = self._ca_certificate
            try:
                await self.load()
            except ApiError as error:
                _log.warning("the status endpoint's certificate was not checked: %s", error.message)
            if self._ca_certificate != known:
                changed()

    async def _agree(self) -> Identity:
        try:
            secret = await self._api.get(SECRETS, self._namespace, SECRET_NAME)
        except ApiError as error:
            if error.code != 404:
                raise
            identity = renewed(None, self._hosts, datetime.now(UTC))
            await self._api.create(SECRETS, self._namespace, self._secret(identity))
            return identity
        known = _identity(secret)
        identity = renewed(known, self._hosts, datetime.now(UTC))
        if identity is not known:
            _log.info("renewing the status endpoint's certificate")
            body: Json = {"metadata": {"resourceVersion": secret["metadata"]["resourceVersion"]}, "data": _data(identity)}
            await self._api.patch(SECRETS, self._namespace, SECRET_NAME, body)
        return identity

    def _serve(self, identity: Identity) -> None:
        # ssl reads certificates from files only; connections made from now on get the new one.
        with tempfile.TemporaryDirectory() as name:
            chain, key = Path(name) / "tls.crt", Path(name) / "tls.key"
            chain.write_text(identity.server.certificate)
            key.touch(mode=0o600)
            key.write_text(identity.server.key)
            self.context.load_cert_chain(chain, key)
        self._ca_certificate = identity.authority.certificate

    def _secret(self, identity: Identity) -> Json:
        labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY}
        metadata: Json = {"name": SECRET_NAME, "namespace": self._namespace, "labels": labels}
        return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": _data(identity)}


def _data(identity: Identity) -> dict[str, str]:
    plain = {
        _CA_CERTIFICATE: identity.authority.certificate,
        _CA_KEY: identity.authority.key,
        _SERVER_CERTIFICATE: identity.server.certificate,
        _SERVER_KEY: identity.server.key,
    }
    return {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}


def _identity(secret: Json) -> Identity | None:
    data = secret.get("data") or {}
    try:
        text = {key: base64.b64decode(value).decode() for key, value in data.items()}
        return Identity(
            authority=Pair(certificate=text[_CA_CERTIFICATE], key=text[_CA_KEY]),
            server=Pair(certificate=text[_SERVER_CERTIFICATE], key=text[_SERVER_KEY]),
        )
    except (KeyError, ValueError):
        return None  # somebody emptied it
