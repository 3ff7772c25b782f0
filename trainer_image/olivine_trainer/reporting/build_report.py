"""A build's reports within their limits: what nobody can tell later, the bundle and its base, is left out last."""

from collections.abc import Callable, Iterator

from olivine_api.adapterbundle import AdapterStatus
from olivine_api.bundle_build import BuildResult, BuildSnapshot, BuildTermination
from olivine_api.names import STATUS_BODY_LIMIT, TERMINATION_LOG_LIMIT
from olivine_trainer.reporting.termination import shorten

_Shrink = Callable[[AdapterStatus], AdapterStatus]
_SHORT_REASON = 120
_NUMBERS = (
    "rank", "bytes", "top1_agreement", "greedy_agreement", "base_mean_kl", "shipped_top1_agreement", "shipped_greedy_agreement",
    "load_milliseconds", "switch_microseconds", "overhead_percent",
)  # fmt: skip
_SHRINKS: tuple[_Shrink, ...] = (
    lambda adapter: adapter.model_copy(update={"targets": []}),
    lambda adapter: adapter.model_copy(update={"model_digest": None}),
    lambda adapter: adapter.model_copy(update={"reason": shorten(adapter.reason, _SHORT_REASON) if adapter.reason else None}),
    lambda adapter: adapter.model_copy(update={"digest": None}),
)


def fit_snapshot(snapshot: BuildSnapshot, limit: int = STATUS_BODY_LIMIT) -> BuildSnapshot:
    """The snapshot, its adapters' details left out until its JSON has at most `limit` bytes."""
    return next((one for one in _candidates(snapshot) if len(_json(one)) <= limit), snapshot)


def fit_termination(message: BuildTermination, limit: int = TERMINATION_LOG_LIMIT) -> bytes:
    """The termination message as JSON of at most `limit` bytes."""
    for sentence in (message.message, shorten(message.message, 2 * _SHORT_REASON)):
        told = message.model_copy(update={"message": sentence})
        builds = _candidates(message.build) if message.build is not None else [None]
        for build in builds:
            body = _json(told.model_copy(update={"build": build}))
            if len(body) <= limit:
                return body
    return _json(message.model_copy(update={"message": shorten(message.message, 2 * _SHORT_REASON), "build": None}))


def _candidates(snapshot: BuildSnapshot) -> Iterator[BuildSnapshot]:
    """Targets go first, then digests, long reasons, the numbers of the last adapters, the last adapters."""
    yield snapshot
    result = snapshot.result
    if result is None:
        return
    adapters = list(result.adapters)
    for shrink in _SHRINKS:
        adapters = [shrink(adapter) for adapter in adapters]
        yield _with(snapshot, result, adapters)
    for last in reversed(range(len(adapters))):
        adapters[last] = adapters[last].model_copy(update=dict.fromkeys(_NUMBERS))
        yield _with(snapshot, result, adapters)
    while adapters:
        adapters = adapters[:-1]
        yield _with(snapshot, result, adapters)


def _with(snapshot: BuildSnapshot, result: BuildResult, adapters: list[AdapterStatus]) -> BuildSnapshot:
    return snapshot.model_copy(update={"result": result.model_copy(update={"adapters": list(adapters)})})


def _json(model: BuildSnapshot | BuildTermination) -> bytes:
    return model.model_dump_json(by_alias=True, exclude_none=True).encode()
