"""What trainers told last: termination messages, and reports that no status write has taken over yet."""

from datetime import datetime

from olivine_api.reasons import Reason
from olivine_api.status import ConditionType
from olivine_operator.plan import failures
from olivine_operator.plan.conditions import is_terminal
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.snapshots import bounded


def hear_last_words(draft: Draft, *, complete: bool) -> datetime | None:
    """Termination messages carry the last snapshot: what an operator that was away has missed.

    Returns the end of the last pod that told of a new checkpoint.
    """
    checkpoint_since: datetime | None = None
    # Only the pod with index 0 knows how the training goes.
    for pod in sorted((p for p in draft.observed.pods if p.index == 0), key=lambda p: p.created):
        if pod.phase == "Succeeded" and not complete:
            continue  # the Job completes in a moment: one write for both
        told = failures.termination_message(pod)
        if told is not None and told.snapshot is not None and pod.termination is not None:
            heard_at, known = pod.termination.at or draft.now, draft.checkpoint_step
            final = pod.phase == "Succeeded" or told.reason == Reason.GATE_UNMET
            draft.merge(bounded(told.snapshot, heard_at), final=final)
            if draft.checkpoint_step > known:
                checkpoint_since = heard_at
    return checkpoint_since


def hear_out(draft: Draft) -> None:
    """Of a job that came to a bad end, what its pods still tell: the checkpoint that is told of before may be pruned by then.

    They save one more when they are asked to go. A good end has waited for its last words.
    """
    if draft.holds(ConditionType.COMPLETE):
        return
    # A report that comes after the end is nobody's news: only termination messages are final.
    if draft.observed.report is not None and not is_terminal(draft.before.conditions):
        draft.merge(draft.observed.report.snapshot)
    hear_last_words(draft, complete=True)
