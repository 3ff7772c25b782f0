"""How each role reaches its store: endpoint and keys, from its own Secret, else from storage's, else from the plain environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from olivine_api.finetunejob import FineTuneJobSpec
from olivine_api.names import ENV_SECRET_PREFIXES
from olivine_api.reasons import Reason
from olivine_api.sources import Source, Storage
from olivine_trainer.storage.addresses import check_endpoint, check_uri, same_endpoint
from olivine_trainer.storage.failures import FIELDS, Place, Role, user_error


@dataclass(frozen=True)
class _Means:
    """What a Secret, or the plain environment, may tell of a scheme's stores."""

    keys: tuple[str, ...]
    """Names; one that ends in _ stands for all that begin so."""
    endpoint: str
    """The one of them that is the store's URL."""
    needed: tuple[str, ...]
    """What a Secret that is named must have, all of it or (workload identity) nothing."""

    def of(self, environ: Mapping[str, str], prefix: str = "") -> dict[str, str]:
        """The keys that `environ` has behind `prefix`."""
        found = {name.removeprefix(prefix): value for name, value in environ.items() if value and name.startswith(prefix)}
        return {name: value for name, value in found.items() if name == "CA_BUNDLE" or self._takes(name)}

    def _takes(self, name: str) -> bool:
        return name in self.keys or any(key.endswith("_") and name.startswith(key) for key in self.keys)


_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION")
_MEANS = {
    "s3": _Means(_AWS, endpoint="AWS_ENDPOINT_URL", needed=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
    "gs": _Means(("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_BASE_URL"), endpoint="GOOGLE_BASE_URL", needed=("GOOGLE_SERVICE_ACCOUNT",)),
    "az": _Means(("AZURE_",), endpoint="AZURE_STORAGE_ENDPOINT", needed=("AZURE_STORAGE_ACCOUNT_NAME",)),
    "hf": _Means(("HF_TOKEN", "HF_ENDPOINT"), endpoint="HF_ENDPOINT", needed=("HF_TOKEN",)),
}
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
    keys: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """What the Secret tells of a store of another scheme than s3, by its names there (AZURE_…, HF_TOKEN, …)."""

    @property
    def scheme(self) -> str:
        """The part of the URI before ://."""
        return self.uri.partition("://")[0]

    def at(self, uri: str) -> "Access":
        """The same means for another place in the same store."""
        return replace(self, uri=uri)


def resolve_access(spec: FineTuneJobSpec, role: Role, environ: Mapping[str, str], *, benchmark: str | None = None) -> Access:
    """Access of one role of the specification; raises the role's user error for an address or a Secret that cannot be used.

    Endpoint: the role's own field, its own Secret's, storage's field, storage's Secret's where the scheme is the same. Keys: the
    role's own Secret where it names one, else storage's where the endpoint is the same: they go nowhere else. What is still
    missing comes from the plain variables of the scheme (AWS_*, AZURE_*, …). `benchmark`: the URI of one, which has neither.
    """
    source = Source(uri=benchmark) if benchmark is not None else _source(spec, role)
    return access_to(source, spec.storage, role, environ)


def access_to(
    source: Source | Storage, storage: Storage, role: Role, environ: Mapping[str, str], *, prefix: str | None = None
) -> Access:
    """Access of one source beside a storage, as `resolve_access` has it.

    `prefix`: before the keys of the source's own Secret, where that is not the role's; such a Secret may be missing in the pod, and
    nothing stands in for it.
    """
    place = Place(role, source.uri, None)
    check_uri(place)
    scheme = _scheme(source.uri)
    means = _MEANS.get(scheme)
    if means is None:  # a folder, which needs nothing
        return Access(role, source.uri, None, None, None, None, region=_REGION, ca_bundle=None)
    named_secret = source.secret_ref.name if source.secret_ref is not None else None
    named = named_secret is not None or prefix is not None
    own = means.of(environ, prefix or _prefix(role)) if role == "storage" or named else {}
    lends = role != "storage" and _scheme(storage.uri) == scheme
    lent = means.of(environ, ENV_SECRET_PREFIXES["storage"]) if lends else {}
    plain = means.of(environ)
    candidates = (
        (f"{FIELDS[role]}.endpoint", source.endpoint),
        (_in_secret(means.endpoint, role), own.get(means.endpoint)),
        ("storage.endpoint", storage.endpoint if lends else None),
        (_in_secret(means.endpoint, "storage"), lent.get(means.endpoint)),
        (f"{means.endpoint} in the environment", plain.get(means.endpoint)),
    )
    where, endpoint = next(((where, value) for where, value in candidates if value), ("", None))
    if endpoint is not None:
        check_endpoint(place, endpoint, where)
    theirs = storage.endpoint or lent.get(means.endpoint) or plain.get(means.endpoint)
    if not named and lends:
        own = lent if same_endpoint(endpoint, theirs) else {}
    if prefix is not None and not own:
        raise user_error(
            place,
            Reason.SECRET_NOT_FOUND,
            f"the Secret {named_secret!r} of {FIELDS[role]}.secretRef is not there, or has none of"
            f" {', '.join(means.needed)}: create it, or leave {FIELDS[role]}.secretRef out",
        )
    _check_keys(place, means, own, named=named_secret if prefix is not None or not plain else None)
    keys = own or plain
    if scheme == "az" and "AZURE_STORAGE_ACCOUNT_NAME" not in keys:
        raise user_error(
            place,
            Reason.SECRET_NOT_FOUND,
            f"{FIELDS[role]}.uri is {source.uri!r}, but no storage account is named:"
            f" put AZURE_STORAGE_ACCOUNT_NAME into the Secret of {FIELDS[role]}.secretRef",
        )
    return Access(
        role=role,
        uri=source.uri,
        endpoint=endpoint.rstrip("/") if endpoint else None,
        access_key_id=keys.get("AWS_ACCESS_KEY_ID"),
        secret_access_key=keys.get("AWS_SECRET_ACCESS_KEY"),
        session_token=keys.get("AWS_SESSION_TOKEN"),
        region=keys.get("AWS_REGION") or environ.get("AWS_REGION") or _REGION,
        ca_bundle=keys.get("CA_BUNDLE"),
        keys={} if scheme == "s3" else {key: value for key, value in keys.items() if key not in ("CA_BUNDLE", means.endpoint)},
    )


def _check_keys(place: Place, means: _Means, keys: Mapping[str, str], *, named: str | None) -> None:
    """A Secret may leave the keys to the platform (workload identity), but not half of them, nor be of no use at all."""
    missing = [key for key in means.needed if key not in keys]
    if 0 < len(missing) < len(means.needed) or (named is not None and not keys):
        field = FIELDS[place.role]
        secret = f"the Secret {named!r} of {field}.secretRef" if named else f"the Secret of {field}"
        raise user_error(
            place,
            Reason.SECRET_NOT_FOUND,
            f"{secret} has no {' and no '.join(missing)}: add what is missing, or leave {field}.secretRef out",
        )


def _prefix(role: Role) -> str:
    """Before the keys of the role's own Secret; a bundle in a command's argument has none."""
    return ENV_SECRET_PREFIXES.get("publish" if role == "bundle-publish" else role, "")


def _in_secret(key: str, role: Role) -> str:
    return f"{key} in the Secret of {FIELDS[role]}.secretRef"


def _source(spec: FineTuneJobSpec, role: Role):  # noqa: ANN202  (Storage and Source share their members, not a base)
    if role == "storage":
        return spec.storage
    if role == "model":
        return spec.model
    publish = spec.outputs.publish if spec.outputs is not None else None
    known = {"train": spec.data.train, "validation": spec.data.validation, "test": spec.data.test, "publish": publish}
    source = known[role]
    if source is None:
        raise ValueError(f"the specification has no {FIELDS[role]}")
    return source


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]
