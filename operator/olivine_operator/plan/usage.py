"""What a job has used so far: seconds in Running, of pods, of accelerators.

Counted with each status write from where the last one ended, so that neither pods that are gone nor an operator that was
restarted lose or repeat any; counting alone writes nothing.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from olivine_api.status import ConditionType, FineTuneJobStatus
from olivine_operator.plan.conditions import find
from olivine_operator.plan.observed import PodView

_NEVER = datetime.min.replace(tzinfo=UTC)


def metered(before: FineTuneJobStatus, after: FineTuneJobStatus, pods: Sequence[PodView], now: datetime) -> FineTuneJobStatus:
    """`after` with the use up to now; `before` says what ran until now."""
    since = before.metered_time or _NEVER
    seconds = [(_overlap(pod, since, now), pod.accelerators) for pod in pods]
    spent = sum(span for span, _ in seconds)
    running = running_seconds(before, pods, now)
    if not spent and running == before.running_seconds and before.metered_time is None:
        return after  # nothing ran yet
    return after.model_copy(
        update={
            "running_seconds": running,
            "pod_seconds": before.pod_seconds + spent,
            "accelerator_seconds": before.accelerator_seconds + sum(span * count for span, count in seconds),
            "metered_time": max(now, since),
        }
    )


def running_seconds(status: FineTuneJobStatus, pods: Sequence[PodView], now: datetime) -> int:
    """Seconds in Running until now, all attempts together."""
    running = find(status.conditions, ConditionType.RUNNING)
    if running is None or running.status != "True":
        return status.running_seconds
    since = max(running.last_transition_time, status.metered_time or _NEVER)
    return status.running_seconds + max(0, int((_last_seen_running(pods, now) - since).total_seconds()))


def _last_seen_running(pods: Sequence[PodView], now: datetime) -> datetime:
    """Now, unless all pods have ended since: an operator that was away must not count its own absence."""
    ends = [pod.termination.at for pod in pods if pod.termination is not None and pod.termination.at is not None]
    return now if not ends or any(pod.running for pod in pods) else min(now, max(ends))


def _overlap(pod: PodView, since: datetime, now: datetime) -> int:
    if pod.started_at is None:
        return 0
    end = pod.termination.at if pod.termination is not None and pod.termination.at is not None else now
    return max(0, int((min(end, now) - max(pod.started_at, since)).total_seconds()))
