"""What the condition Running says of a job's pods: that one runs, or why none does."""

from datetime import timedelta

from olivine_api.reasons import Reason
from olivine_api.status import Condition, ConditionType
from olivine_operator.plan import failures
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.failures import PodFailure
from olivine_operator.plan.observed import ChildView, PodView
from olivine_operator.plan.waiting import Waiting, slow_at, waiting_of

# The Job controller makes a pod within a second; what keeps it from that, it tells in Events about the Job only.
_POD_CREATION = timedelta(seconds=30)


def show_pods(draft: Draft, child: ChildView, failed: tuple[PodFailure, ...], *, news: bool) -> None:
    """Sets Running from what the pods of a Job that is not suspended do; `news` is whether the last failure was not told yet."""
    if draft.holds(ConditionType.SUSPENDED):
        draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED, "resumed")
    active = [pod for pod in draft.observed.pods if pod.active]
    leaving = [pod for pod in draft.observed.pods if pod.leaving]
    running = draft.condition(ConditionType.RUNNING)
    # A failure that a pod or a suspension came after is history.
    restarting = news or (running is not None and running.reason == Reason.RESTARTING)
    if active:
        _show_pod(draft, max(active, key=lambda pod: (pod.created, pod.name)))
    elif any(pod.phase == "Succeeded" for pod in draft.observed.pods):
        return  # the Job will say so in a moment
    elif leaving:
        _show_leaving(draft, max(leaving, key=lambda pod: (pod.created, pod.name)))
    elif _no_pod_comes(draft, child, failed):
        _tell_no_pod(draft, child)
    elif failed and restarting:
        again = failures.next_retry(failed)
        when = f"; the next try comes about {again:%H:%M:%S} UTC" if again is not None else ""
        draft.update(next_retry_time=again)
        draft.set(ConditionType.RUNNING, "False", Reason.RESTARTING, failed[-1].message + when)
    else:
        _wait_for_pod(draft)


def show_resuming(draft: Draft) -> None:
    """What is told of a Job that is suspended though its user wants it to run."""
    if draft.holds(ConditionType.SUSPENDED):
        draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED, "resumed")
    draft.update(next_retry_time=None)
    _wait_for_pod(draft)


def _show_pod(draft: Draft, pod: PodView) -> None:
    draft.update(next_retry_time=None)
    if pod.running:
        where = f" on node {pod.node}" if pod.node else ""
        draft.update(start_time=draft.status.start_time or draft.now)
        draft.set(ConditionType.RUNNING, "True", Reason.POD_RUNNING, f"pod {pod.name} runs{where}")
        return
    if pod.termination is not None:
        return  # its phase will say how it ended in a moment
    trouble = waiting_of(pod, draft.now)
    running = draft.condition(ConditionType.RUNNING)
    if trouble is None:
        if running is None or running.reason != Reason.RESTARTING:
            _wait_for_pod(draft)
        slow = slow_at(pod, draft.now)
        if slow is not None:
            draft.look_again_in(slow + 1)
    elif running is None or running.status != "False" or running.reason != trouble.reason or _names_another(running, trouble, pod):
        # The first message of a reason stays: kubelet and scheduler word the same trouble anew again and again.
        draft.set(ConditionType.RUNNING, "False", trouble.reason, trouble.message)


def _names_another(told: Condition, trouble: Waiting, pod: PodView) -> bool:
    """Whether a message that names its pod was told of another one."""
    return pod.name in trouble.message and pod.name not in told.message


def _show_leaving(draft: Draft, pod: PodView) -> None:
    where = f" from node {pod.node} (a lost node keeps it: kubectl get node {pod.node})" if pod.node else ""
    message = f"pod {pod.name} is going away{where}; the next one comes when it is gone"
    draft.update(next_retry_time=None)
    draft.set(ConditionType.RUNNING, "False", Reason.POD_LEAVING, message)


def _no_pod_comes(draft: Draft, child: ChildView, failed: tuple[PodFailure, ...]) -> bool:
    """Whether there should have been a pod for a while; if not yet, asks for a look when there should."""
    if child.condition("Suspended") is not None:
        return False  # the Job controller has not resumed it yet
    running, suspended = draft.condition(ConditionType.RUNNING), draft.condition(ConditionType.SUSPENDED)
    since = [running.last_transition_time if running is not None and running.status == "False" else draft.now]
    if child.pods_since is not None:
        since.append(child.pods_since)
    if suspended is not None:
        since.append(suspended.last_transition_time)
    if failed:
        # Never told too early: failed pods that were deleted count in the Job controller's delay, too.
        since.append(failed[-1].at + timedelta(seconds=failures.LONGEST_DELAY))
    late = max(since) + _POD_CREATION
    if draft.now > late:
        return True
    draft.look_again_at(late)
    return False


def _tell_no_pod(draft: Draft, child: ChildView) -> None:
    account = (draft.observed.job.spec.get("pods") or {}).get("serviceAccountName")
    named = (
        f"the ServiceAccount {account} of spec.pods.serviceAccountName is missing" if account else "its ServiceAccount is missing"
    )
    message = (
        f"the Job {child.name} has no pod yet: {named}, or a ResourceQuota, Pod Security or an admission webhook refuses it; "
        f"kubectl describe job {child.name} -n {child.key[0]} tells which"
    )
    draft.update(next_retry_time=None)
    draft.set(ConditionType.RUNNING, "False", Reason.POD_NOT_CREATED, message)


def _wait_for_pod(draft: Draft) -> None:
    draft.set(ConditionType.RUNNING, "False", Reason.WAITING_FOR_POD, "the trainer pod is being started")
