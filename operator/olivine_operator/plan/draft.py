"""The plan of a FineTuneJob while it is being made."""

from datetime import datetime

from olivine_api.reasons import Reason
from olivine_api.status import ConditionType, FineTuneJobStatus, Snapshot
from olivine_operator.plan.conditions import is_terminal, phase_of
from olivine_operator.plan.diagnosis import diagnose
from olivine_operator.plan.drafting import Drafting
from olivine_operator.plan.events import events_between
from olivine_operator.plan.observed import Observed
from olivine_operator.plan.outcome import Plan
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.plan.snapshots import evaluated, merge
from olivine_operator.plan.usage import metered
from olivine_operator.plan.wishes import Wishes


class Draft(Drafting[FineTuneJobStatus]):
    """Status and actions in the making; lives for one call of the plan."""

    def __init__(self, observed: Observed, now: datetime, settings: OperatorSettings) -> None:
        super().__init__(FineTuneJobStatus.model_validate(observed.job.status), observed.job.generation, now, settings)
        self.observed = observed
        self.wishes = Wishes.read(observed.job.spec)

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return is_terminal(self.status.conditions)

    @property
    def checkpoint_step(self) -> int:
        """The newest checkpoint's step; -1 before there is one."""
        return self.status.checkpoint.step if self.status.checkpoint is not None else -1

    def merge(self, snapshot: Snapshot, *, final: bool = False) -> None:
        """Takes over a snapshot, and what it says of the evaluation."""
        known = self.checkpoint_step
        self.status = merge(self.status, snapshot, final=final)
        if self.checkpoint_step > known:
            self.update(crashes=0)
        found = evaluated(self.status)
        if found is None:
            return
        sentence, done = found
        if done:
            self.set(ConditionType.EVALUATED, "True", Reason.EVALUATED, sentence)
        elif not self.holds(ConditionType.EVALUATED):
            self.set(ConditionType.EVALUATED, "False", Reason.BASE_EVALUATED, f"{sentence}; the tuned model is measured at the end")

    def finish(self) -> Plan:
        """The plan: with the phase, kstatus' conditions and the Events that follow from what was decided."""
        self._summarise()
        self.update(diagnosis=diagnose(self.status))
        before, after = _normal(self.before), _normal(self.status)
        if after == before:
            return Plan(actions=tuple(self._actions), requeue_after=self._requeue_after)
        return Plan(
            status=_normal(metered(before, after, self.observed.pods, self.now)),
            events=events_between(self.before, after),
            actions=tuple(self._actions),
            requeue_after=self._requeue_after,
        )

    def _summarise(self) -> None:
        if self.terminal:
            self.set(ConditionType.RECONCILING, "False", Reason.FINISHED, "the job has ended")
        elif self.holds(ConditionType.SUSPENDED):
            self.set(ConditionType.RECONCILING, "False", Reason.SUSPENDED_BY_USER, "the job is suspended")
        elif self.status.start_time is not None:
            self.set(ConditionType.RECONCILING, "False", Reason.POD_RUNNING, "the trainer has started")
        else:
            self.set(ConditionType.RECONCILING, "True", Reason.IN_PROGRESS, "the first trainer pod is to come")
        self.update(phase=phase_of(self.status.conditions), observed_generation=self.observed.job.generation)


def _normal(status: FineTuneJobStatus) -> FineTuneJobStatus:
    """The status as it reads when it comes back from the API server: equal statuses compare equal."""
    return FineTuneJobStatus.model_validate(status.to_json_dict())
