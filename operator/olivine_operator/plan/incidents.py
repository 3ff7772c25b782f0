"""Incidents: which failures belong together, which of them cost a retry, and when there were too many.

One incident is one attempt that ended, however many of its pods failed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from olivine_operator.plan.failures import PodFailure

RESTART_TIMES_LIMIT = 64
# As many crashes in a row without a new checkpoint as are forgiven.
CRASHES_ALLOWED = 3
# Pods of one attempt whose attempt is not known end within this: a lost peer ends every worker within seconds.
_TOGETHER = timedelta(seconds=60)
# A pod that lost its peer waits for it at the rendezvous (15 min), after a collective that took long to give up (5 min).
_PEER_PATIENCE = timedelta(minutes=20)
# The failure that made a peer go may be told a little later.
PEER_LAG = timedelta(seconds=15)


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Failures of one attempt, oldest first."""

    failures: tuple[PodFailure, ...]

    @property
    def costly(self) -> tuple[PodFailure, ...]:
        """What it is counted by: a pod that only lost its peer counts where nothing else is known of the peer."""
        counted = tuple(f for f in self.failures if f.costs_retry and not f.peer_lost)
        if counted or any(not f.peer_lost for f in self.failures):
            return counted
        return tuple(f for f in self.failures if f.costs_retry)

    @property
    def at(self) -> datetime:
        """Its mark in `restartTimes`."""
        return self.costly[0].at

    @property
    def cause(self) -> PodFailure:
        """The failure that explains it best."""
        return self.costly[0] if self.costly else next((f for f in self.failures if not f.peer_lost), self.failures[0])

    @property
    def crash(self) -> bool:
        """Whether the next attempt is likely to end the same way."""
        return any(f.crash for f in self.costly)

    @property
    def out_of_memory(self) -> bool:
        """Whether a smaller micro-batch is likely to help."""
        return any(f.out_of_memory for f in self.costly)


def incidents_of(failures: Iterable[PodFailure]) -> tuple[Incident, ...]:
    """The failures, oldest first, by the attempt that they ended."""
    found: list[list[PodFailure]] = []
    for failure in failures:
        if found and _belongs(failure, found[-1]):
            found[-1].append(failure)
        else:
            found.append([failure])
    return tuple(Incident(failures=tuple(group)) for group in found)


def _belongs(failure: PodFailure, group: Sequence[PodFailure]) -> bool:
    if any(other.index == failure.index for other in group):
        return False  # a pod that came after the incident
    known = {other.attempt for other in group if other.attempt is not None}
    if failure.attempt is not None and known:
        return failure.attempt in known or (failure.peer_lost and failure.at - group[-1].at <= _PEER_PATIENCE)
    return failure.at - group[0].at <= (_PEER_PATIENCE if failure.peer_lost else _TOGETHER)


def new_incidents(incidents: Iterable[Incident], counted: Sequence[datetime]) -> tuple[Incident, ...]:
    """The incidents that cost a retry and are not yet in `restartTimes`.

    The time of a pod's end is the mark there, so that an operator that was restarted counts none twice; of a full list,
    what is older than its oldest mark was counted before.
    """
    full = len(counted) >= RESTART_TIMES_LIMIT

    def known(incident: Incident) -> bool:
        return any(f.at in counted or (full and f.at < min(counted)) for f in incident.failures if f.costs_retry)

    return tuple(incident for incident in incidents if incident.costly and not known(incident))


def early(incident: Incident, now: datetime) -> bool:
    """Whether a pod lost its peer so lately that the peer's own failure may still come to be known."""
    return all(f.peer_lost for f in incident.failures) and now < incident.failures[-1].at + PEER_LAG


def too_many(restart_times: Sequence[datetime], total: int, *, max_restarts: int, window_seconds: int, now: datetime) -> bool:
    """Whether more incidents than allowed lie within the window."""
    recent = sum(1 for at in restart_times if at > now - timedelta(seconds=window_seconds))
    if max_restarts < RESTART_TIMES_LIMIT:
        return recent > max_restarts
    # Not all of them are remembered: with a full list of recent ones, the total decides.
    return recent >= RESTART_TIMES_LIMIT and total > max_restarts


def crashes_in_a_row(incidents: Iterable[Incident], known: int, *, checkpoint_since: datetime | None) -> int:
    """The crashes since the newest checkpoint: those that were known, and what new incidents add."""
    return known + sum(1 for i in incidents if i.crash and (checkpoint_since is None or i.at >= checkpoint_since))
