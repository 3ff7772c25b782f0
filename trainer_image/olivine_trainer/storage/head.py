"""Attempts and fencing: who may write to a run.

run/head.json holds {attempt, fence} and moves only with If-Match. Whoever takes the next number owns the run; everybody else
finds out at the next look and stops. Two pods may live at once (a lost node comes back): only one of them is the head.
"""

import json
import secrets
from dataclasses import dataclass

from olivine_trainer.errors import StorageUnavailableError, SupersededError
from olivine_trainer.storage.layout import HEAD
from olivine_trainer.storage.store import Store

_TRIES = 16


@dataclass(frozen=True)
class Attempt:
    """The right to write: the attempt's number and a secret that tells it from another of the same number."""

    number: int
    fence: str


def take_attempt(run: Store) -> Attempt:
    """Move the head to the next attempt and return it.

    The first attempt of a run also proves that the store honours conditional writes (a user's error otherwise).
    """
    for _ in range(_TRIES):
        found = run.get(HEAD)
        number = 1 if found is None else _parse(found.data).number + 1
        mine = Attempt(number=number, fence=secrets.token_hex(16))
        if found is None:
            if run.put_if_absent(HEAD, _render(mine)):
                run.require_conditional_writes(HEAD, _render(mine))
                return mine
        elif run.put_if_match(HEAD, _render(mine), found.etag):
            return mine
    raise StorageUnavailableError(f"{run.uri}/{HEAD} was moved by others {_TRIES} times in a row")


def require_head(run: Store, mine: Attempt) -> None:
    """Raise SupersededError where the head is another attempt's: call before each manifest and before publishing."""
    found = run.get(HEAD)
    head = _parse(found.data) if found is not None else None
    if head != mine:
        now = f"attempt {head.number}" if head else "nobody's (run/head.json is gone)"
        raise SupersededError(f"the run is {now} now: attempt {mine.number} stops and writes nothing more")


def _render(attempt: Attempt) -> bytes:
    return json.dumps({"attempt": attempt.number, "fence": attempt.fence}).encode()


def _parse(data: bytes) -> Attempt:
    try:
        raw = json.loads(data)
        return Attempt(number=int(raw["attempt"]), fence=str(raw["fence"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageUnavailableError(f"{HEAD} is damaged ({error}): its folder cannot be written to safely") from error
