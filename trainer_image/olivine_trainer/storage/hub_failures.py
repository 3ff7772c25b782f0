"""What a hub's answers mean: the user's to mend, or the hub's own (retried, then exit code 30)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from olivine_api.reasons import Reason
from olivine_trainer.errors import StorageUnavailableError, TrainerError
from olivine_trainer.storage.failures import FIELDS, OF_MODELS, Place, user_error


@dataclass(frozen=True)
class Asking:
    """What a sentence about a hub's answer needs to name."""

    place: Place
    uri: str
    endpoint: str
    kind: str
    repository: str
    revision: str
    with_token: bool
    writes: bool = False

    @property
    def field(self) -> str:
        """The field of the specification."""
        return FIELDS[self.place.role]

    @property
    def secret(self) -> str:
        """Where a token belongs."""
        return f"the Secret of {self.field}.secretRef"


class HubUnavailableError(StorageUnavailableError):
    """The hub did not answer, in spite of retries."""


class EntryMissingError(TrainerError):
    """The repository is there, the file or folder in it is not."""


def missing(place: Place) -> Reason:
    """The reason of a repository, revision or folder that is not there."""
    if place.role in ("publish", "bundle-publish"):
        return Reason.STORAGE_NOT_FOUND
    return Reason.MODEL_NOT_FOUND if place.role in OF_MODELS else Reason.DATA_NOT_FOUND


def explain_hub(error: Exception, asking: Asking) -> TrainerError | None:
    """The user's error behind a hub's answer, or None where another try may help. Raises what is no answer at all."""
    from huggingface_hub import errors as hub  # noqa: PLC0415  (half a second, for this scheme alone)

    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client looks into its cache first, and wraps what the hub said
    told: tuple[tuple[type[Exception], Callable[[Asking], TrainerError]], ...] = (
        (hub.GatedRepoError, _gated),
        (hub.RevisionNotFoundError, _no_revision),
        (hub.RepositoryNotFoundError, _no_repository),
        (hub.RemoteEntryNotFoundError, _no_entry),
        (hub.FileMetadataError, _no_hub),
        (json.JSONDecodeError, _no_hub),
        (hub.DisabledRepoError, _denied),
        (hub.HFValidationError, _no_address),
    )
    for kind, sentence in told:
        if isinstance(error, kind):
            return sentence(asking)
    if _status(error) in (401, 403):
        return _denied(asking)
    if asking.writes and (_status(error) == 400 or isinstance(error.__cause__, hub.BadRequestError)):
        return _refused(asking, error)
    if _status(error) in (400, 404, 410):
        return _no_repository(asking)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        raise error
    return None


def _status(error: Any) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _gated(asking: Asking) -> TrainerError:
    page = f"{asking.endpoint}/{asking.repository}"
    advice = (
        f"its owner has not let in the account of the HF_TOKEN in {asking.secret}: ask for access at {page}"
        if asking.with_token
        else f"ask for access at {page}, and put an HF_TOKEN of that account into {asking.secret}"
    )
    return user_error(asking.place, Reason.STORAGE_ACCESS_DENIED, f"{asking.field}.uri {asking.uri} is gated: {advice}")


def _no_revision(asking: Asking) -> TrainerError:
    return user_error(
        asking.place,
        missing(asking.place),
        f"{asking.field}.uri {asking.uri} has no revision {asking.revision!r}: write a branch, a tag or a commit that it has into model.revision",
    )


def _no_repository(asking: Asking) -> TrainerError:
    token = (
        f"the HF_TOKEN in {asking.secret} may not see it"
        if asking.with_token
        else f"it is private: then put an HF_TOKEN into {asking.secret}"
    )
    return user_error(
        asking.place,
        missing(asking.place),
        f"{asking.field}.uri {asking.uri}: {asking.endpoint} knows no {asking.kind} {asking.repository!r}: correct {asking.field}.uri; or {token}",
    )


def _no_entry(asking: Asking) -> TrainerError:
    return EntryMissingError(missing(asking.place), f"{asking.field}.uri {asking.uri} does not exist at revision {asking.revision}")


def _no_hub(asking: Asking) -> TrainerError:
    return user_error(
        asking.place,
        Reason.STORAGE_UNSUPPORTED,
        f"{asking.endpoint} does not answer as a hub does (no commit, no ETag): correct {asking.field}.endpoint",
    )


def _no_address(asking: Asking) -> TrainerError:
    return user_error(
        asking.place,
        Reason.INVALID_SPEC,
        f"{asking.field}.uri {asking.uri} is no address of a repository: write hf://organisation/name",
    )


def _denied(asking: Asking) -> TrainerError:
    what = "write access" if asking.writes else "access"
    advice = (
        f"check the HF_TOKEN in {asking.secret}"
        if asking.with_token or not asking.writes
        else f"put an HF_TOKEN that may write there into {asking.secret}"
    )
    return user_error(
        asking.place,
        Reason.STORAGE_ACCESS_DENIED,
        f"{what} to {asking.field}.uri {asking.uri} at {asking.endpoint} was denied: {advice}",
    )


def _refused(asking: Asking, error: Exception) -> TrainerError:
    told = getattr(error, "server_message", None) or str(error)
    return user_error(
        asking.place,
        Reason.INVALID_SPEC,
        f"{asking.endpoint} does not take what goes to {asking.field}.uri {asking.uri}: {' '.join(told.split())[:300]};"
        f" name another repository in {asking.field}.uri",
    )
