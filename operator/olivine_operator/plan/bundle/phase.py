"""A bundle's phase: derived from its conditions and its newest build, never decided on its own."""

from olivine_api.adapterbundle import AdapterBundleStatus, BundlePhase
from olivine_api.adapterbundle import BundleConditionType as Type
from olivine_api.bundle_build import BuildStage
from olivine_api.reasons import Reason
from olivine_operator.plan.conditions import find, holds

# A build that is written down, and does not go on.
_AT_REST = (Reason.SUSPENDED_BY_USER, Reason.WAITING_FOR_JOBS, Reason.NO_ADAPTERS)
_LATE_STAGES = (BuildStage.VERIFYING, BuildStage.PUBLISHING)


def phase_of(status: AdapterBundleStatus) -> BundlePhase:
    """The summary for people."""
    built, build = find(status.conditions, Type.BUILT), status.build
    if holds(status.conditions, Type.STALLED):
        return BundlePhase.FAILED
    if build is not None and build.finished_at is None and built is not None and built.reason not in _AT_REST:
        if build.stage in _LATE_STAGES:
            return BundlePhase.VERIFYING
        return BundlePhase.BUILDING if build.started_at is not None else BundlePhase.PENDING
    # What is served stays so while others are waited for.
    if holds(status.conditions, Type.READY):
        return BundlePhase.READY
    if built is not None and built.reason in (Reason.WAITING_FOR_JOBS, Reason.NO_ADAPTERS):
        return BundlePhase.WAITING
    return BundlePhase.PENDING
