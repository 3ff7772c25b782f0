"""The termination message: at most 4 KiB of JSON, the most important things first to stay."""

from collections.abc import Callable, Iterator
from pathlib import Path

from olivine_api.names import TERMINATION_LOG_LIMIT
from olivine_api.status import Resolved, Snapshot, TerminationMessage, thin_curve

MESSAGE_LIMIT = 1024  # characters, as TerminationMessage has it
_SHORT_MESSAGE = 240
_Shrink = Callable[[Snapshot], Snapshot]


def fit_message(message: TerminationMessage, limit: int = TERMINATION_LOG_LIMIT) -> bytes:
    """The message as JSON of at most `limit` bytes.

    Dropped in this order until it fits: points of the curve, what was resolved, best and checkpoint, the whole snapshot, the
    tail of the sentence. Metrics and artifacts outlive the rest: nobody else can tell them.
    """
    for candidate in _candidates(message):
        body = candidate.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(body) <= limit:
            return body
    raise ValueError(f"no termination message fits into {limit} bytes")


def _candidates(message: TerminationMessage) -> Iterator[TerminationMessage]:
    yield message
    if message.snapshot is not None:
        snapshot = message.snapshot
        for shrink in _SHRINKS:
            snapshot = shrink(snapshot)
            yield message.model_copy(update={"snapshot": snapshot})
        message = message.model_copy(update={"snapshot": None})
        yield message
    yield message.model_copy(update={"message": shorten(message.message, _SHORT_MESSAGE)})
    yield message.model_copy(update={"message": ""})


def _thinned(points: int) -> _Shrink:
    return lambda snapshot: snapshot.model_copy(update={"curve": thin_curve(list(snapshot.curve), points)})


_SHRINKS: tuple[_Shrink, ...] = (
    _thinned(48),
    _thinned(32),
    _thinned(24),
    _thinned(16),
    _thinned(8),
    lambda snapshot: snapshot.model_copy(update={"curve": []}),
    lambda snapshot: snapshot.model_copy(update={"resolved": Resolved()}),
    lambda snapshot: snapshot.model_copy(update={"best": None, "checkpoint": None}),
)


def shorten(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """The text, its middle left out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


def write_termination(message: TerminationMessage, path: Path) -> None:
    """Leave the message where the kubelet looks; a bare process has no such place, and needs none."""
    leave(fit_message(message), path)


def leave(body: bytes, path: Path) -> None:
    """See `write_termination`."""
    if path.exists():
        path.write_bytes(body)
