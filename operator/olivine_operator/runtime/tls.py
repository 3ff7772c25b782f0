"""The status endpoint's certificate, kept in a Secret so that running pods trust the operator after its restart."""

import asyncio
import base64
import logging
import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from olivine_api import names
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.runtime.api import SECRETS, ApiError, Json, KubeApi
from olivine_operator.runtime.certificates import Identity, Pair, renewed

_log = logging.getLogger(__name__)

SECRET_NAME = "olivine-status-tls"
_CA_CERTIFICATE, _CA_KEY, _SERVER_CERTIFICATE, _SERVER_KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"
_COMING_CERTIFICATE, _COMING_KEY, _PREVIOUS_CERTIFICATE = "coming-ca.crt", "coming-ca.key", "previous-ca.crt"
# Set by an administrator who wants another CA: docs/operations.md.
ROTATE_ANNOTATION = f"{names.GROUP}/rotate-ca"


class StatusTls:
    """The endpoint's identity and the TLS context that serves it."""

    def __init__(self, api: KubeApi, settings: OperatorSettings) -> None:
        self._api = api
        self._namespace = settings.namespace
        self._hosts = (settings.status_host,)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._identity: Identity | None = None
        self._overlap = timedelta(seconds=settings.status_endpoint.ca_overlap_seconds)
        self._check_seconds = settings.status_endpoint.certificate_check_seconds
        self._trusted = ssl.create_default_context()

    def ca_certificate(self) -> str:
        """What pods trust, PEM: one certificate, or several while one follows another."""
        return self._identity.bundle if self._identity is not None else ""

    def trusted(self) -> ssl.SSLContext:
        """How a replica trusts the endpoint of another."""
        return self._trusted

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
        """Renews the certificates in time, for ever; tells of other CAs."""
        while True:
            await asyncio.sleep(self._check_seconds)
            known = self.ca_certificate()
            try:
                await self.load()
            except ApiError as error:
                _log.warning("the status endpoint's certificate was not checked: %s", error.message)
            if self.ca_certificate() != known:
                changed()

    async def _agree(self) -> Identity:
        now = datetime.now(UTC)
        try:
            secret = await self._api.get(SECRETS, self._namespace, SECRET_NAME)
        except ApiError as error:
            if error.code != 404:
                raise
            # Deleted under a running operator: what pods trust is put back.
            identity = renewed(self._identity, self._hosts, now, overlap=self._overlap)
            await self._api.create(SECRETS, self._namespace, self._secret(identity))
            return identity
        known = _identity(secret)
        rotate = ROTATE_ANNOTATION in secret["metadata"].get("annotations", {})
        identity = renewed(known, self._hosts, now, overlap=self._overlap, rotate=rotate)
        if identity is not known or rotate:
            _log.info("renewing the status endpoint's certificates")
            metadata: Json = {"resourceVersion": secret["metadata"]["resourceVersion"], "annotations": {ROTATE_ANNOTATION: None}}
            data: Json = dict.fromkeys(secret.get("data") or {}) | _data(identity)
            await self._api.patch(SECRETS, self._namespace, SECRET_NAME, {"metadata": metadata, "data": data})
        return identity

    def _serve(self, identity: Identity) -> None:
        if identity == self._identity:
            return
        # ssl reads certificates from files only; connections made from now on get the new one.
        with tempfile.TemporaryDirectory() as name:
            chain, key = Path(name) / "tls.crt", Path(name) / "tls.key"
            chain.write_text(identity.server.certificate)
            key.touch(mode=0o600)
            key.write_text(identity.server.key)
            self.context.load_cert_chain(chain, key)
        self._trusted = ssl.create_default_context(cadata=identity.bundle)
        self._identity = identity

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
        _COMING_CERTIFICATE: identity.coming.certificate if identity.coming else None,
        _COMING_KEY: identity.coming.key if identity.coming else None,
        _PREVIOUS_CERTIFICATE: identity.previous,
    }
    return {key: base64.b64encode(value.encode()).decode() for key, value in plain.items() if value is not None}


def _identity(secret: Json) -> Identity | None:
    data = secret.get("data") or {}
    try:
        text = {key: base64.b64decode(value).decode() for key, value in data.items()}
        coming = _COMING_CERTIFICATE in text and _COMING_KEY in text
        return Identity(
            authority=Pair(certificate=text[_CA_CERTIFICATE], key=text[_CA_KEY]),
            server=Pair(certificate=text[_SERVER_CERTIFICATE], key=text[_SERVER_KEY]),
            coming=Pair(certificate=text[_COMING_CERTIFICATE], key=text[_COMING_KEY]) if coming else None,
            previous=text.get(_PREVIOUS_CERTIFICATE),
        )
    except (KeyError, ValueError):
        return None  # somebody emptied it
