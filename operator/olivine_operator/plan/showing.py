"""What the condition Running says of a job's pods: that all run, or why one does not."""

from collections.abc import Sequence
from datetime import timedelta

from olivine_api.reasons import Reason
from olivine_api.status import Condition, ConditionType
from olivine_operator.plan import failures
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.failures import PodFailure
from olivine_operator.plan.lost_pods import show_leaving, show_lost
from olivine_operator.plan.observed import ChildView, PodView
from olivine_operator.plan.outcome import ExplainNoPod, ExplainSlowPod
from olivine_operator.plan.waiting import EXPLAIN_AFTER, SETUP_TROUBLES, SLOW_START, Waiting, is_worth_asking, slow_at, waiting_of

# The Job controller makes a pod within a second; what keeps it from that, it tells in Events about the Job only.
_POD_CREATION = timedelta(seconds=20)
_EXPLAIN_AGAIN_SECONDS = 60


def show_pods(draft: Draft, child: ChildView, failed: tuple[PodFailure, ...], *, news: bool) -> None:
    """Sets Running from what the pods of a child that is not suspended do; `news` is whether the last failure was not told yet."""
    if draft.holds(ConditionType.SUSPENDED):
        draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED, "resumed")
    pods = draft.observed.pods
    if any(pod.phase == "Succeeded" and pod.index == 0 for pod in pods):
        return  # the child will say so in a moment
    active = _newest_by_index([pod for pod in pods if pod.active])
    leaving = [pod for pod in pods if pod.leaving]
    done = {pod.index for pod in pods if pod.phase == "Succeeded"}
    missing = [index for index in range(child.parallelism) if index not in done and all(p.index != index for p in active)]
    running = draft.condition(ConditionType.RUNNING)
    # A failure that a pod or a suspension came after is history.
    restarting = news or (running is not None and running.reason == Reason.RESTARTING)
    if active and not missing:
        _show_active(draft, active)
    elif leaving:
        show_leaving(draft, max(leaving, key=lambda pod: (pod.created, pod.name)))
    elif _no_pod_comes(draft, child, failed):
        _tell_no_pod(draft, child)
    elif failed and restarting:
        _tell_restarting(draft, failed, missing)
    elif not (active and running is not None and running.reason == Reason.RESTARTING):
        wait_for_pod(draft)


def _newest_by_index(pods: Sequence[PodView]) -> list[PodView]:
    newest: dict[int, PodView] = {}
    for pod in sorted(pods, key=lambda p: (p.created, p.name)):
        newest[pod.index] = pod
    return [newest[index] for index in sorted(newest)]


def show_resuming(draft: Draft, *, sized: bool) -> None:
    """What is told of a child that is suspended though its user wants it to run; `sized` is whether it has its size."""
    if draft.holds(ConditionType.SUSPENDED):
        draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED, "resumed")
    draft.update(next_retry_time=None)
    if sized or not _is_resizing(draft):
        wait_for_pod(draft)


def _is_resizing(draft: Draft) -> bool:
    running = draft.condition(ConditionType.RUNNING)
    return running is not None and running.reason == Reason.RESIZING


def show_queued(draft: Draft) -> None:
    """What is told of a child that Kueue keeps suspended."""
    if draft.holds(ConditionType.SUSPENDED):
        draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED, "resumed")
    draft.update(next_retry_time=None)
    draft.set(ConditionType.RUNNING, "False", Reason.WAITING_FOR_CHILD, "waits until Kueue admits it")


def show_suspended(draft: Draft, *, sized: bool) -> None:
    """What is told of a child that is suspended because its user wants it so."""
    draft.update(next_retry_time=None)
    left = [pod for pod in draft.observed.pods if pod.phase not in ("Succeeded", "Failed")]
    if any(show_lost(draft, pod) for pod in left if pod.leaving):
        message = "spec.suspend is true: a pod does not go, since its node does not answer"
    elif left:
        message = f"spec.suspend is true: pod {left[0].name} saves a checkpoint and goes"
    else:
        message = "spec.suspend is true: no pod runs; false resumes from the last checkpoint"
        if sized or not _is_resizing(draft):
            draft.set(ConditionType.RUNNING, "False", Reason.SUSPENDED_BY_USER, "the job is suspended")
    draft.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED_BY_USER, message)


def _show_active(draft: Draft, active: Sequence[PodView]) -> None:
    """Every index has a pod."""
    draft.update(next_retry_time=None)
    if all(pod.running for pod in active):
        draft.update(start_time=draft.status.start_time or draft.now)
        draft.set(ConditionType.RUNNING, "True", Reason.POD_RUNNING, _where(active))
        return
    starting = [pod for pod in active if not pod.running and pod.termination is None]
    if not starting:
        return  # their phases will say how they ended in a moment
    _explain_slow(draft, starting)
    troubles = [(pod, trouble) for pod in starting if (trouble := waiting_of(pod, draft.now)) is not None]
    if _is_told_by_kubelet(draft, starting):
        return
    running = draft.condition(ConditionType.RUNNING)
    if troubles:
        pod, trouble = troubles[0]
        known = running is not None and running.status == "False" and running.reason == trouble.reason
        # The first message of a reason stays: kubelet and scheduler word the same trouble anew again and again.
        if not known or running is None or _names_another(running, trouble, pod):
            draft.set(ConditionType.RUNNING, "False", trouble.reason, trouble.message)
    elif running is None or running.reason != Reason.RESTARTING:
        wait_for_pod(draft)


def _explain_slow(draft: Draft, starting: Sequence[PodView]) -> None:
    """Asks what keeps kubelet from setting a pod up; volumes that cannot be mounted show in no condition."""
    for pod in starting:
        for limit in (EXPLAIN_AFTER, SLOW_START):
            slow = slow_at(pod, draft.now, limit)
            if slow:
                draft.look_again_in(slow + 1)
    slow_pods = [pod for pod in starting if is_worth_asking(pod, draft.now)]
    if slow_pods and draft.observed.obstacle is None:
        draft.act(ExplainSlowPod(name=slow_pods[0].name))
        draft.look_again_in(_EXPLAIN_AGAIN_SECONDS)


def _is_told_by_kubelet(draft: Draft, starting: Sequence[PodView]) -> bool:
    """Whether kubelet's own words stand in the condition while its pod is still being set up."""
    running, obstacle = draft.condition(ConditionType.RUNNING), draft.observed.obstacle
    if not any(is_worth_asking(pod, draft.now) for pod in starting):
        return False
    if running is not None and running.reason in SETUP_TROUBLES:
        return True
    if obstacle is None or obstacle.reason not in SETUP_TROUBLES:
        return False
    draft.set(ConditionType.RUNNING, "False", obstacle.reason, obstacle.message)
    return True


def _where(pods: Sequence[PodView]) -> str:
    if len(pods) > 1:
        return f"{len(pods)} pods run, {pods[0].name} first"
    return f"pod {pods[0].name} runs" + (f" on node {pods[0].node}" if pods[0].node else "")


def _names_another(told: Condition, trouble: Waiting, pod: PodView) -> bool:
    """Whether a message that names its pod was told of another one."""
    return pod.name in trouble.message and pod.name not in told.message


def _tell_restarting(draft: Draft, failed: tuple[PodFailure, ...], missing: Sequence[int]) -> None:
    again = failures.next_retry(failed, missing)
    when = f"; the next try comes about {again:%H:%M:%S} UTC" if again is not None else ""
    last = draft.status.last_failure
    draft.update(next_retry_time=again)
    draft.set(ConditionType.RUNNING, "False", Reason.RESTARTING, (last.message if last is not None else failed[-1].message) + when)


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
    """The Job controller knows why; it is asked, and what it says comes back as an obstacle."""
    obstacle = draft.observed.obstacle
    draft.look_again_in(_EXPLAIN_AGAIN_SECONDS)
    if obstacle is not None:
        draft.update(next_retry_time=None)
        running = draft.condition(ConditionType.RUNNING)
        # Quota is worded anew with each try.
        if running is None or running.reason != obstacle.reason:
            draft.set(ConditionType.RUNNING, "False", obstacle.reason, obstacle.message)
        return
    account = (draft.observed.job.spec.get("pods") or {}).get("serviceAccountName")
    named = (
        f"the ServiceAccount {account} of spec.pods.serviceAccountName is missing" if account else "its ServiceAccount is missing"
    )
    likely = (
        f"the {child.kind} {child.name} lacks a pod: {named}, or a ResourceQuota, Pod Security or an admission webhook refuses it; "
        f"kubectl describe job {child.pods_owner} -n {child.key[0]} tells which"
    )
    draft.act(ExplainNoPod(name=child.pods_owner, likely=likely))


def wait_for_pod(draft: Draft) -> None:
    """What is told while nothing is known to be wrong."""
    several = draft.wishes.pods > 1
    message = "the trainer pods are being started" if several else "the trainer pod is being started"
    draft.set(ConditionType.RUNNING, "False", Reason.WAITING_FOR_POD, message)
