"""What the CRD cannot check: the models' own rules once more, and the administrator's policy."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from olivine_api.finetunejob import FineTuneJobSpec, parse_spec
from olivine_api.reasons import Reason
from olivine_operator.plan.observed import Raw
from olivine_operator.plan.settings import Policy

_SHOWN_ERRORS = 3
_WAY_OUT = "correct it and use a new name, or kubectl replace --force"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a spec is not accepted."""

    reason: Reason
    message: str


def validate(raw: Raw, policy: Policy) -> FineTuneJobSpec | Refusal:
    """The spec with its defaults, or why it is refused."""
    try:
        spec = parse_spec(dict(raw))
    except ValidationError as error:
        return Refusal(reason=Reason.INVALID_SPEC, message=f"{sentence(error)}; {_WAY_OUT}")
    if not policy.allow_file_uris:
        for path, uri in _uris(spec):
            if uri.startswith("file://"):
                return Refusal(
                    reason=Reason.FILE_URI_NOT_ALLOWED,
                    message=f"{path}: {uri} is not allowed: put the files into object storage (s3://), "
                    "or ask the administrator for policy.allowFileUris",
                )
    return spec


def sentence(error: ValidationError, root: str = "spec") -> str:
    """pydantic's findings as one sentence with the fields' paths."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [
        f"{root}{''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in item['loc'])}: "
        + item["msg"].removeprefix("Value error, ")
        for item in found[:_SHOWN_ERRORS]
    ]
    more = len(found) - _SHOWN_ERRORS
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _uris(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    yield "spec.model.uri", spec.model.uri
    yield "spec.data.train.uri", spec.data.train.uri
    if spec.data.validation is not None:
        yield "spec.data.validation.uri", spec.data.validation.uri
    yield "spec.storage.uri", spec.storage.uri
