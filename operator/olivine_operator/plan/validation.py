"""What the CRD cannot check: the models' own rules once more, and the administrator's policy."""

from dataclasses import dataclass

from pydantic import ValidationError

from olivine_api.adapterbundle import AdapterBundleSpec, parse_bundle
from olivine_api.finetunejob import FineTuneJobSpec, parse_spec
from olivine_api.reasons import Reason
from olivine_operator.plan.observed import Raw
from olivine_operator.plan.policy import violations
from olivine_operator.plan.settings import Policy

_SHOWN_ERRORS = 3
_WAY_OUT = "correct it and use a new name, or kubectl replace --force"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a spec is not accepted."""

    reason: Reason
    message: str


def validate(raw: Raw, policy: Policy | None) -> FineTuneJobSpec | Refusal:
    """The spec with its defaults, or why it is refused; without a policy, what an earlier one allowed stays allowed."""
    try:
        spec = parse_spec(dict(raw))
    except ValidationError as error:
        return Refusal(reason=Reason.INVALID_SPEC, message=f"{sentence(error)}; {_WAY_OUT}")
    return _refusal(spec, policy, f"; {_WAY_OUT}") or spec


def validate_bundle(raw: Raw, policy: Policy) -> AdapterBundleSpec | Refusal:
    """The same of an AdapterBundle, whose spec may be corrected in place."""
    try:
        spec = parse_bundle(dict(raw))
    except ValidationError as error:
        return Refusal(reason=Reason.INVALID_SPEC, message=sentence(error))
    return _refusal(spec, policy, "") or spec


def _refusal(spec: FineTuneJobSpec | AdapterBundleSpec, policy: Policy | None, way_out: str) -> Refusal | None:
    found = list(violations(spec, policy)) if policy is not None else []
    if not found:
        return None
    files_only = all(": file://" in text for text in found)
    reason = Reason.FILE_URI_NOT_ALLOWED if files_only else Reason.NOT_ALLOWED_BY_POLICY
    return Refusal(reason=reason, message=f"{_together(found)}{way_out}")


def sentence(error: ValidationError, root: str = "spec") -> str:
    """pydantic's findings as one sentence with the fields' paths."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [
        f"{root}{''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in item['loc'])}: "
        + item["msg"].removeprefix("Value error, ")
        for item in found[:_SHOWN_ERRORS]
    ]
    return _together(parts, len(found) - len(parts))


def _together(parts: list[str], more: int = 0) -> str:
    more += max(0, len(parts) - _SHOWN_ERRORS)
    return "; ".join(parts[:_SHOWN_ERRORS]) + (f"; and {more} more" if more > 0 else "")
