"""Where things are read from and written to: URIs, the Secrets beside them, and what each scheme can do."""

import re
from typing import Annotated

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule

# Bounds that keep an object small and CEL's cost estimate within the API server's budget.
Uri = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
FieldName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]

_PATH = r"(/[^/]+)*/?$"
_HUB_REPOSITORY = r"^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
# A bucket or a claim, and keys without empty parts: what a server takes.
_URI = rf"(^(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*{_PATH}|^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?{_PATH}|{_HUB_REPOSITORY}{_PATH}|^file://(/[^/]+)+/?$)"
_DOTTED = r"/[.][.]?(/|$)"  # a path that means another
_ENDPOINT = r"^https?://[^/\s]+/?$"
_MODEL = rf"(^(s3|gs|az|pvc|file)://|{_HUB_REPOSITORY}/?$)"
_WRITABLE = r"^(s3|gs|az|pvc|file)://"
_SPLIT_PART = r"[A-Za-z0-9_.-]+(\[-?[0-9]*%?:-?[0-9]*%?\])?"
_SPLIT = rf"^{_SPLIT_PART}(\+{_SPLIT_PART})*$"

PLACE_RULE = Rule(
    cel=f"self.uri.matches(r'{_URI}') && !self.uri.matches(r'{_DOTTED}')",
    holds=lambda place: re.search(_URI, place.uri) is not None and re.search(_DOTTED, place.uri) is None,
    message="uri must be hf://org/name, s3://bucket/path, gs://bucket/path, az://container/path, pvc://claim/path or file:///path,"
    " without empty, . or .. parts: other schemes are not served",
    field_path=".uri",
)
OPTIONAL_PLACE_RULE = Rule(
    cel=f"!has(self.uri) || ({PLACE_RULE.cel})",
    holds=lambda place: place.uri is None or (PLACE_RULE.holds is not None and PLACE_RULE.holds(place)),
    message=PLACE_RULE.message,
    field_path=".uri",
)
_PLACE_RULES = (
    PLACE_RULE,
    Rule(
        cel=f"!has(self.endpoint) || self.endpoint.matches(r'{_ENDPOINT}')",
        holds=lambda place: place.endpoint is None or re.search(_ENDPOINT, place.endpoint) is not None,
        message="endpoint must be the store's URL without a path: http://host:port or https://host:port",
        field_path=".endpoint",
    ),
    Rule(
        cel="!self.uri.matches('^(pvc|file)://') || !(has(self.endpoint) || has(self.secretRef))",
        holds=lambda place: re.search("^(pvc|file)://", place.uri) is None or (place.endpoint is None and place.secret_ref is None),
        message="endpoint and secretRef mean nothing beside pvc:// and file://: leave them out",
    ),
)


class LocalObjectReference(ApiModel):
    """The name of an object in the same namespace."""

    name: ObjectName


class Source(ApiModel):
    """Where something is read from."""

    rules = _PLACE_RULES

    uri: Uri
    """hf://org/name, s3://bucket/path, gs://bucket/path, az://container/path, pvc://claim/path, or file:///path (the last only where the administrator allows it)."""
    secret_ref: LocalObjectReference | None = None
    """A Secret with the store's keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION; AZURE_*; GOOGLE_SERVICE_ACCOUNT; HF_TOKEN; CA_BUNDLE. Default: storage's, where the scheme is the same."""
    endpoint: Uri | None = None
    """URL of the store, or of a mirror of the hub. Default: its own Secret's AWS_ENDPOINT_URL; without one, storage's, where the scheme is the same."""


class ModelCache(ApiModel):
    """A volume in which pods keep base models."""

    claim_name: ObjectName
    """A PersistentVolumeClaim of the namespace; ReadWriteMany where several pods share it."""


class ModelSource(Source):
    """The base model: a folder in Hugging Face layout."""

    rules = (
        *_PLACE_RULES,
        Rule(
            cel=f"self.uri.matches(r'{_MODEL}')",
            holds=lambda model: re.search(_MODEL, model.uri) is not None,
            message="model.uri on the hub must be hf://org/name, without a path: the whole repository is the model",
            field_path=".uri",
        ),
        Rule(
            cel="!has(self.revision) || self.uri.startsWith('hf://')",
            holds=lambda model: model.revision is None or model.uri.startswith("hf://"),
            message="model.revision is for hf:// models: elsewhere the URI names the version; leave it out",
            field_path=".revision",
        ),
    )

    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=128)] | None = None
    """Branch, tag or commit on the hub (default: main); status.resolved.model.revision says which commit it was."""
    cache: ModelCache | None = None
    """Share the downloaded model between pods, so that a restart downloads nothing."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; refused unless the administrator's policy allows it for the namespace."""
    allowed_licenses: (
        Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=64)]], Field(min_length=1, max_length=32)] | None
    ) = None
    """Identifiers as the model's card has them, e.g. apache-2.0: another licence, or none, ends the job before weights are loaded."""


class DataSource(Source):
    """Rows: .jsonl, .json (an array or lines), .csv or .parquet; a dataset of the hub."""

    rules = (
        *_PLACE_RULES,
        Rule(
            cel=f"!has(self.split) || self.split.matches(r'{_SPLIT}')",
            holds=lambda data: data.split is None or re.search(_SPLIT, data.split) is not None,
            message="split must be a name with an optional slice, like train, train[:4096], train[10%:20%] or train[:100]+test",
            field_path=".split",
        ),
    )

    split: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """Which rows: train[:4096], train[10%:20%], sums with +. Default: the split that is named like the field (train, validation) on the hub and in a folder, all rows of a file."""


class Storage(ApiModel):
    """Where checkpoints and artifacts go: `<uri>/<namespace>/<name>/<uid>/`."""

    rules = (
        *_PLACE_RULES,
        Rule(
            cel=f"self.uri.matches(r'{_WRITABLE}')",
            holds=lambda storage: re.search(_WRITABLE, storage.uri) is not None,
            message="storage.uri cannot be on the hub: write s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or pvc://claim/prefix",
            field_path=".uri",
        ),
    )

    uri: Uri
    """s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, pvc://claim/prefix, or file:///path (the last only where the administrator allows it)."""
    secret_ref: LocalObjectReference | None = None
    """A Secret with the store's keys, as for a source. Optional with workload identity."""
    endpoint: Uri | None = None
    """URL of the store. Default: the Secret's AWS_ENDPOINT_URL."""
