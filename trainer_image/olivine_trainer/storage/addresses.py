"""Whether an address can be one at all: told before a client is made, which would panic over it."""

import re
from urllib.parse import urlsplit

from olivine_api.reasons import Reason
from olivine_trainer.storage.failures import FIELDS, Place, user_error

_ENDPOINT = re.compile(r"^https?://[^/\s?#@]+(/[^\s?#]*)?$")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_CLAIM = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
_REPOSITORY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_ROWS = ("train", "validation")

# What stands between :// and the path.
_FIRST_PARTS = {
    "s3": (_BUCKET, "bucket"),
    "gs": (_BUCKET, "bucket"),
    "az": (_BUCKET, "container"),
    "pvc": (_CLAIM, "PersistentVolumeClaim"),
    "file": (re.compile("^$"), "machine to read files from"),
}
# What each scheme's address looks like.
FORMS = {
    "s3": "s3://bucket/path",
    "gs": "gs://bucket/path",
    "az": "az://container/path",
    "hf": "hf://organisation/name",
    "pvc": "pvc://claim/path",
    "file": "file:///path",
}


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
    """Raise the role's user error unless the URI has a scheme that is served, and is one of its addresses."""
    field = f"{FIELDS[place.role]}.uri"
    scheme, _, rest = place.uri.partition("://")
    if scheme not in FORMS:
        forms = ", ".join(form for known, form in FORMS.items() if known != "hf" or place.role != "storage")
        raise user_error(place, Reason.INVALID_SPEC, f"{field} is {place.uri!r}, whose scheme is not served: write one of {forms}")
    fault = _fault(place, scheme, rest)
    if fault is not None:
        raise user_error(place, Reason.INVALID_SPEC, f"{field} is {place.uri!r}, but {fault}: write {FORMS[scheme]}")


def _fault(place: Place, scheme: str, rest: str) -> str | None:
    """What is wrong with an address, as the middle of a sentence."""
    first, _, path = rest.partition("/")
    parts = path.rstrip("/").split("/") if path.strip("/") else []
    if scheme == "hf":
        return _hub_fault(place, rest.rstrip("/"))
    pattern, called = _FIRST_PARTS[scheme]
    if not pattern.match(first):
        return f"{first!r} is no name of a {called}"
    if any(part in ("", ".", "..") for part in parts) or any(ord(sign) < 32 for sign in path):
        return "its path has an empty, a . or a .. part, or a control character"
    if place.role in _ROWS and not parts and scheme != "pvc":
        return "it names no file"
    return None


def _hub_fault(place: Place, rest: str) -> str | None:
    if place.role == "storage":
        return "a hub only gives models and data, it keeps no runs; the address of a store is needed"
    parts = rest.removeprefix("datasets/").split("/")
    if len(parts) < 2 or not all(_REPOSITORY.match(part) for part in parts[:2]) or any(part in ("", ".", "..") for part in parts):
        return f"{rest!r} is no name of a repository"
    return None


def same_endpoint(one: str | None, other: str | None) -> bool:
    """Whether two endpoints are one, a trailing slash and the case aside."""
    return (one or "").rstrip("/").lower() == (other or "").rstrip("/").lower()


def _has_host(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number or too large, brackets that do not close
        return False
