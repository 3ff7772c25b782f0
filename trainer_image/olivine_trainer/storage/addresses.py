"""Whether an address can be one at all: told before a client is made, which would panic over it."""

import re
from urllib.parse import urlsplit

from olivine_api.reasons import Reason
from olivine_trainer.storage.failures import FIELDS, Place, user_error

_ENDPOINT = re.compile(r"^https?://[^/\s?#@]+(/[^\s?#]*)?$")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_NEEDS_FILE = ("train", "validation")


def check_endpoint(place: Place, endpoint: str, where: str) -> None:
    """Raise the role's user error unless `endpoint`, which stands in `where`, is http(s)://host[:port]."""
    if _ENDPOINT.match(endpoint) and _has_host(endpoint):
        return
    raise user_error(
        place,
        Reason.INVALID_SPEC,
        f"{where} is {endpoint!r}: write http:// or https:// and a host, like https://minio.example:9000",
    )


def check_uri(place: Place) -> None:
    """Raise the role's user error unless the URI is s3://bucket[/path] or file:///path without empty or .. parts."""
    field = f"{FIELDS[place.role]}.uri"
    scheme, _, rest = place.uri.partition("://")
    bucket, _, path = rest.partition("/")
    wanted = "s3://bucket/path" if scheme == "s3" else "file:///path"
    parts = path.rstrip("/").split("/") if path.strip("/") else []
    if scheme == "s3" and not _BUCKET.match(bucket):
        fault = f"{bucket!r} is no name of a bucket"
    elif any(part in ("", ".", "..") for part in parts) or any(ord(sign) < 32 for sign in path):
        fault = "its path has an empty, a . or a .. part, or a control character"
    elif place.role in _NEEDS_FILE and not parts:
        fault = "it names no file"
    else:
        return
    raise user_error(place, Reason.INVALID_SPEC, f"{field} is {place.uri!r}, but {fault}: write {wanted}")


def same_endpoint(one: str | None, other: str | None) -> bool:
    """Whether two endpoints are one, a trailing slash and the case aside."""
    return (one or "").rstrip("/").lower() == (other or "").rstrip("/").lower()


def _has_host(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number or too large, brackets that do not close
        return False
