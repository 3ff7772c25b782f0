"""The plan of an AdapterBundle while it is being made."""

from datetime import datetime
from typing import Any

from olivine_api.adapterbundle import AdapterBundleStatus, BuildStatus
from olivine_api.adapterbundle import BundleConditionType as Type
from olivine_api.exit_codes import Category
from olivine_api.reasons import Reason
from olivine_api.status import Failure
from olivine_operator.plan.bundle.events import events_between
from olivine_operator.plan.bundle.observed import BundlePlan, ObservedBundle
from olivine_operator.plan.bundle.phase import phase_of
from olivine_operator.plan.conditions import truncate
from olivine_operator.plan.drafting import Drafting
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.plan.wishes import Wishes


class BundleDraft(Drafting[AdapterBundleStatus]):
    """Status and actions in the making; lives for one call of the plan."""

    def __init__(self, observed: ObservedBundle, now: datetime, settings: OperatorSettings) -> None:
        bundle = observed.bundle
        super().__init__(AdapterBundleStatus.model_validate(bundle.status), bundle.generation, now, settings)
        self.observed = observed
        self.wishes = Wishes.read(bundle.spec)

    @property
    def build(self) -> BuildStatus | None:
        """The newest build."""
        return self.status.build

    @property
    def is_building(self) -> bool:
        """Whether the newest build has not come to an end."""
        return self.build is not None and self.build.finished_at is None

    @property
    def ended_now(self) -> bool:
        """Whether the newest build has come to an end at this look."""
        before, build = self.before.build, self.build
        was_building = before is not None and before.finished_at is None
        return was_building and build is not None and build.finished_at is not None

    def update_build(self, **fields: Any) -> None:
        """Sets members of the newest build."""
        if self.build is not None:
            self.update(build=self.build.model_copy(update=fields))

    def go_on(self, reason: str, message: str) -> None:
        """Says what a build is at, or waits for."""
        self.set(Type.BUILT, "False", reason, message)
        self.set(Type.RECONCILING, "True", reason, message)
        if self.condition(Type.STALLED) is not None:
            self.set(Type.STALLED, "False", Reason.IN_PROGRESS, "it goes on")

    def rest(self, reason: str, message: str) -> None:
        """Says why nothing is done until something changes."""
        self.set(Type.RECONCILING, "False", reason, message)

    def stall(self, reason: str, message: str) -> None:
        """Says what only somebody else can mend; a version that is served stays so."""
        self.set(Type.BUILT, "False", reason, message)
        self.set(Type.RECONCILING, "False", reason, message)
        self.set(Type.STALLED, "True", reason, message)

    def fail_build(self, failure: Failure, *, reason: str | None = None, message: str | None = None) -> None:
        """Ends the newest build without a version."""
        self.update(last_failure=failure.model_copy(update={"message": truncate(failure.message)}), next_retry_time=None)
        self.update_build(finished_at=self.now, failed=True)
        self.stall(reason or failure.reason, message or failure.message)

    def fail_build_by_user(self, reason: str, message: str) -> None:
        """The same for something that the user has to change."""
        self.fail_build(Failure(category=Category.USER, reason=reason, message=truncate(message), at=self.now))

    def finish(self) -> BundlePlan:
        """The plan: with the phase and the Events that follow from what was decided."""
        if self.condition(Type.READY) is None:
            self.set(Type.READY, "False", Reason.IN_PROGRESS, "there is no version yet")
        self.update(phase=phase_of(self.status), observed_generation=self.observed.bundle.generation)
        before, after = _normal(self.before), _normal(self.status)
        if after == before:
            return BundlePlan(actions=tuple(self._actions), requeue_after=self._requeue_after)
        return BundlePlan(
            status=after,
            events=events_between(before, after),
            actions=tuple(self._actions),
            requeue_after=self._requeue_after,
        )


def _normal(status: AdapterBundleStatus) -> AdapterBundleStatus:
    """The status as it reads when it comes back from the API server: equal statuses compare equal."""
    return AdapterBundleStatus.model_validate(status.to_json_dict())
