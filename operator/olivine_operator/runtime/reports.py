"""The newest report of each resource's pods, and when its status was last written: what this process remembers by itself."""

from datetime import datetime
from typing import Generic, TypeVar

R = TypeVar("R")


class Memory(Generic[R]):
    """Kept by the job's uid; lost with the process, which costs nothing: the next report is whole again."""

    def __init__(self) -> None:
        self._reports: dict[str, R] = {}
        self._written_at: dict[str, datetime] = {}

    def take_report(self, uid: str, report: R) -> None:
        """Replaces the report of a job."""
        self._reports[uid] = report

    def report(self, uid: str) -> R | None:
        """The newest report of a job."""
        return self._reports.get(uid)

    def mark_written(self, uid: str, now: datetime) -> None:
        """Remembers when a job's status was written."""
        self._written_at[uid] = now

    def written_at(self, uid: str) -> datetime | None:
        """When a job's status was written."""
        return self._written_at.get(uid)

    def clear(self) -> None:
        """Forgets all: reports of an earlier term are no news."""
        self._reports.clear()
        self._written_at.clear()

    def forget(self, uid: str) -> None:
        """Forgets a job."""
        self._reports.pop(uid, None)
        self._written_at.pop(uid, None)
