"""What a store's errors mean: the user's to mend (exit code by role), or the platform's (retried, then exit code 30)."""

from dataclasses import dataclass
from typing import Literal

import obstore.exceptions as obs

from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError, DataError, ModelError, StorageUnavailableError, TrainerError

Role = Literal["storage", "model", "train", "validation", "test", "benchmark", "publish", "bundle-publish", "adapter", "bundle"]

# Roles whose repositories are models on a hub; those of the others are datasets.
OF_MODELS: tuple[Role, ...] = ("model", "adapter", "bundle", "publish", "bundle-publish")
# How each role's place is called in the specification, and which exit code its faults have.
FIELDS: dict[Role, str] = {
    "storage": "storage",
    "model": "model",
    "train": "data.train",
    "validation": "data.validation",
    "test": "data.test",
    "benchmark": "evaluation.benchmarks[]",
    "publish": "outputs.publish",
    "bundle-publish": "publish",
    "adapter": "adapters[]",
    "bundle": "bundle",
}
_CLASSES: dict[Role, type[TrainerError]] = {
    "storage": ConfigurationError,
    "model": ModelError,
    "train": DataError,
    "validation": DataError,
    "test": DataError,
    "benchmark": DataError,
    "publish": ConfigurationError,
    "bundle-publish": ConfigurationError,
    "adapter": ModelError,
    "bundle": ConfigurationError,
}

# The instance metadata services: asked for credentials only where none were given; they have their hiccups.
_METADATA = ("169.254.169.254", "metadata.google.internal")
# Refusals that pass: a clock that is being set, a token that is about to be renewed.
_PASSING = (*_METADATA, "RequestTimeTooSkewed", "ExpiredToken")
_KEYS_OF = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_DENIED = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "403 Forbidden",
    "status: 403",
    "AuthenticationFailed",
)
_NO_BUCKET = ("NoSuchBucket", "NotFoundBucket", "InvalidBucketName", "bucket does not exist", "ContainerNotFound")


@dataclass(frozen=True)
class Place:
    """What a sentence about a store needs to name."""

    role: Role
    uri: str
    endpoint: str | None

    @property
    def scheme(self) -> str:
        """The part of the URI before ://."""
        return self.uri.partition("://")[0]

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"{FIELDS[self.role]}.uri {self.uri}{at}"


def user_error(place: Place, reason: Reason, message: str) -> TrainerError:
    """A user's error with the exit code of the role."""
    return _CLASSES[place.role](reason, message)


def is_missing_bucket(error: Exception) -> bool:
    """Whether the answer says that the bucket, not the object, is missing."""
    return any(sign in str(error) for sign in _NO_BUCKET)


def is_passing(error: Exception) -> bool:
    """Whether a refusal is the platform's and mends itself."""
    return any(sign in str(error) for sign in _PASSING)


def is_retryable(error: Exception, *, granted: bool = False) -> bool:
    """Whether another try may help: everything that is not a clear answer."""
    unclear = isinstance(error, obs.GenericError | obs.JoinError | OSError) or is_passing(error)
    return unclear and explain(error, Place("storage", "", None), granted=granted) is None


def explain(error: Exception, place: Place, *, granted: bool = False) -> TrainerError | None:
    """The user's error behind a store's answer, or None where the answer is not the user's fault.

    `granted`: the same keys were let in before. A denial then is the platform's: keys that are rotated reach only the next pod.
    """
    field = FIELDS[place.role]
    text = str(error)
    if is_missing_bucket(error):
        return user_error(
            place,
            Reason.STORAGE_NOT_FOUND,
            f"{place} names a {'container' if place.scheme == 'az' else 'bucket'} that does not exist: create it, or correct {field}.uri or {field}.endpoint",
        )
    if granted or is_passing(error):
        return None
    denied = isinstance(error, obs.PermissionDeniedError | obs.UnauthenticatedError | PermissionError)
    if denied or any(sign in text for sign in _DENIED):
        return user_error(
            place,
            Reason.STORAGE_ACCESS_DENIED,
            f"access to {place} was denied: check the keys in the Secret of {field}.secretRef and what they are allowed to do",
        )
    return None


def unavailable(error: Exception, place: Place, doing: str) -> StorageUnavailableError:
    """The platform's error after the last retry."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = ""
    if any(address in str(error) for address in _METADATA):
        secret = f"a Secret with {_KEYS_OF.get(place.scheme, 'keys')} in {FIELDS[place.role]}.secretRef"
        hint = f"; no keys were given, so that the platform was asked for them: where it has none, name {secret}"
    return StorageUnavailableError(f"{doing} failed at {place}: {lines[0][:300] if lines else type(error).__name__}{hint}")
