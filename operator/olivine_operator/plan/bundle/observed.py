"""What the plan sees of an AdapterBundle."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from olivine_api.adapterbundle import AdapterBundleStatus
from olivine_operator.plan.observed import BuildReport, BundleView, ChildView, JobView, Obstacle, PodView
from olivine_operator.plan.outcome import Action, EventDraft


@dataclass(frozen=True, kw_only=True)
class ObservedBundle:
    """All that a plan is made from, beside the clock and the settings."""

    bundle: BundleView
    jobs: Mapping[str, JobView] = field(default_factory=dict[str, JobView])
    """FineTuneJobs of the namespace by name: at least those that the spec names, selects, or once took an adapter from."""
    children: tuple[ChildView, ...] = ()
    """The Jobs of its builds."""
    pods: tuple[PodView, ...] = ()
    report: BuildReport | None = None
    obstacle: Obstacle | None = None
    ca_certificate: str = ""


@dataclass(frozen=True, kw_only=True)
class BundlePlan:
    """As a FineTuneJob's: status, Events, actions, in this order."""

    status: AdapterBundleStatus | None = None
    events: tuple[EventDraft, ...] = ()
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
