"""What every plan in the making has: a copy of the status that steps change one after another, and the actions they ask for."""

from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from olivine_api.adapterbundle import AdapterBundleStatus
from olivine_api.status import Condition, FineTuneJobStatus
from olivine_operator.plan.conditions import Change, Truth, find, holds, with_condition
from olivine_operator.plan.outcome import Action
from olivine_operator.plan.settings import OperatorSettings

S = TypeVar("S", FineTuneJobStatus, AdapterBundleStatus)


class Drafting(Generic[S]):
    """Lives for one call of the plan."""

    def __init__(self, before: S, generation: int, now: datetime, settings: OperatorSettings) -> None:
        # Kubernetes' times are whole seconds.
        self.now = now.replace(microsecond=0)
        self.settings = settings
        self.before = before
        self.status = before
        self._generation = generation
        self._actions: list[Action] = []
        self._requeue_after: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the status says anything new so far."""
        return self.status != self.before

    def condition(self, kind: str) -> Condition | None:
        """The condition of a type."""
        return find(self.status.conditions, kind)

    def holds(self, kind: str) -> bool:
        """Whether a condition is True."""
        return holds(self.status.conditions, kind)

    def set(self, kind: str, truth: Truth, reason: str, message: str) -> None:
        """Sets a condition."""
        change = Change(type=kind, status=truth, reason=reason, message=message)
        self.update(conditions=with_condition(self.status.conditions, change, generation=self._generation, now=self.now))

    def update(self, **fields: Any) -> None:
        """Sets members of the status."""
        self.status = self.status.model_copy(update=fields)

    def act(self, action: Action) -> None:
        """Asks for a change to a child."""
        self._actions.append(action)

    def look_again_in(self, seconds: float) -> None:
        """Asks for another look, at the earliest time that anybody asks for."""
        self._requeue_after = seconds if self._requeue_after is None else min(seconds, self._requeue_after)

    def look_again_at(self, time: datetime) -> None:
        """The same by the clock; a little later, since times are whole seconds."""
        self.look_again_in(max(0.0, (time + timedelta(seconds=1) - self.now).total_seconds()))
