"""The client of each scheme's stores: S3, Google Cloud Storage, Azure Blob Storage."""

from datetime import timedelta
from typing import Any

from obstore.store import AzureStore, GCSStore, S3Store

from olivine_trainer.storage.credentials import Access

RemoteStore = S3Store | GCSStore | AzureStore


def connect(access: Access, *, seconds: int) -> RemoteStore:
    """A client of the bucket or container that `access` names; `seconds` bound one request with its body.

    Raises ValueError or obstore's errors where the client refuses what it was given.
    """
    options: dict[str, Any] = {
        "client_options": _client_options(access, seconds),
        "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
    }
    bucket = access.uri.partition("://")[2].partition("/")[0]
    if access.scheme == "gs":
        return GCSStore(bucket, **_google(access), **options)
    if access.scheme == "az":
        return AzureStore(bucket, config=_azure(access), **options)
    return S3Store(bucket, **_amazon(access), **options)


def has_generations(store: object) -> bool:
    """Whether conditional writes compare an object's generation (Google), not its ETag."""
    return isinstance(store, GCSStore)


def _client_options(access: Access, seconds: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=5),
        "timeout": timedelta(seconds=seconds),
        "allow_http": bool(access.endpoint and access.endpoint.startswith("http://")),
    }
    if access.ca_bundle:
        options["root_certificate"] = access.ca_bundle
    return options


def _amazon(access: Access) -> dict[str, Any]:
    optional = {
        "endpoint": access.endpoint,
        "access_key_id": access.access_key_id,
        "secret_access_key": access.secret_access_key,
        "session_token": access.session_token,
    }
    given = {key: value for key, value in optional.items() if value}
    return {"region": access.region, "virtual_hosted_style_request": False, **given}


def _google(access: Access) -> dict[str, Any]:
    """A service account is the text of its JSON key, or the path of a file with it."""
    account = access.keys.get("GOOGLE_SERVICE_ACCOUNT", "")
    given: dict[str, Any] = {}
    if account:
        given["service_account_key" if account.lstrip().startswith("{") else "service_account"] = account
    if access.endpoint:
        given["base_url"] = access.endpoint
    return given


def _azure(access: Access) -> Any:
    """The client knows Azure's own variables by their names in small letters."""
    given = {key.lower(): value for key, value in access.keys.items()}
    if access.endpoint:
        given["azure_storage_endpoint"] = access.endpoint
    return given
