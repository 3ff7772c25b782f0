"""How each role reaches its store: endpoint and keys, from its own Secret, else from storage's, else from the plain environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from olivine_api.finetunejob import FineTuneJobSpec
from olivine_api.names import ENV_SECRET_PREFIXES
from olivine_api.reasons import Reason
from olivine_trainer.storage.addresses import check_endpoint, check_uri, same_endpoint
from olivine_trainer.storage.failures import FIELDS, Place, Role, user_error

_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "CA_BUNDLE",
)
_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_REGION = "us-east-1"


@dataclass(frozen=True)
class Access:
    """Where a role's store is, and with which keys; a key that is None is left to the platform (workload identity)."""

    role: Role
    uri: str
    endpoint: str | None
    access_key_id: str | None = field(repr=False)
    secret_access_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    region: str
    ca_bundle: str | None
    """PEM text of certificates that are trusted beside the system's."""

    @property
    def scheme(self) -> str:
        """The part of the URI before ://."""
        return self.uri.partition("://")[0]

    def at(self, uri: str) -> "Access":
        """The same means for another place in the same store."""
        return replace(self, uri=uri)


def resolve_access(spec: FineTuneJobSpec, role: Role, environ: Mapping[str, str]) -> Access:
    """Access of one role of the specification; raises the role's user error for an address or a Secret that cannot be used.

    Endpoint: the role's own field, its own Secret's, storage's field, storage's Secret's where the scheme is the same. Keys: the
    role's own Secret where it names one, else storage's where the endpoint is the same: they go nowhere else. What is still
    missing comes from the plain AWS_* variables.
    """
    source = _source(spec, role)
    place = Place(role, source.uri, None)
    check_uri(place)
    if _scheme(source.uri) != "s3":
        return Access(role, source.uri, None, None, None, None, region=_REGION, ca_bundle=None)
    named = source.secret_ref is not None
    own = _secret(role, environ) if role == "storage" or named else {}
    lends = role != "storage" and _scheme(spec.storage.uri) == "s3"
    lent = _secret("storage", environ) if lends else {}
    plain = {key: environ[key] for key in _KEYS if environ.get(key)}
    candidates = (
        (f"{FIELDS[role]}.endpoint", source.endpoint),
        (_in_secret("AWS_ENDPOINT_URL", role), own.get("AWS_ENDPOINT_URL")),
        ("storage.endpoint", spec.storage.endpoint if lends else None),
        (_in_secret("AWS_ENDPOINT_URL", "storage"), lent.get("AWS_ENDPOINT_URL")),
        ("AWS_ENDPOINT_URL in the environment", plain.get("AWS_ENDPOINT_URL")),
    )
    where, endpoint = next(((where, value) for where, value in candidates if value), ("", None))
    if endpoint is not None:
        check_endpoint(place, endpoint, where)
    theirs = spec.storage.endpoint or lent.get("AWS_ENDPOINT_URL") or plain.get("AWS_ENDPOINT_URL")
    if not named and lends:
        own = lent if same_endpoint(endpoint, theirs) else {}
    _check_keys(place, own, named=source.secret_ref.name if source.secret_ref is not None and not plain else None)
    keys = own or plain
    return Access(
        role=role,
        uri=source.uri,
        endpoint=endpoint.rstrip("/") if endpoint else None,
        access_key_id=keys.get("AWS_ACCESS_KEY_ID"),
        secret_access_key=keys.get("AWS_SECRET_ACCESS_KEY"),
        session_token=keys.get("AWS_SESSION_TOKEN"),
        region=keys.get("AWS_REGION") or environ.get("AWS_REGION") or _REGION,
        ca_bundle=keys.get("CA_BUNDLE"),
    )


def _check_keys(place: Place, keys: Mapping[str, str], *, named: str | None) -> None:
    """A Secret may leave the keys to the platform (workload identity), but not half of them, nor be of no use at all."""
    missing = [key for key in _PAIR if key not in keys]
    if len(missing) == 1 or (named is not None and not keys):
        field = FIELDS[place.role]
        secret = f"the Secret {named!r} of {field}.secretRef" if named else f"the Secret of {field}"
        raise user_error(
            place,
            Reason.SECRET_NOT_FOUND,
            f"{secret} has no {' and no '.join(missing)}: add what is missing, or leave {field}.secretRef out",
        )


def _in_secret(key: str, role: Role) -> str:
    return f"{key} in the Secret of {FIELDS[role]}.secretRef"


def _source(spec: FineTuneJobSpec, role: Role):  # noqa: ANN202  (Storage and Source share their members, not a base)
    if role == "storage":
        return spec.storage
    if role == "model":
        return spec.model
    if role == "train":
        return spec.data.train
    if spec.data.validation is None:
        raise ValueError("the specification has no data.validation")
    return spec.data.validation


def _secret(role: Role, environ: Mapping[str, str]) -> dict[str, str]:
    prefix = ENV_SECRET_PREFIXES[role]
    return {key: environ[prefix + key] for key in _KEYS if environ.get(prefix + key)}


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]
