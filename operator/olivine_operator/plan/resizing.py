"""Another number of pods or other resources, while the job is suspended."""

from olivine_api.reasons import Reason
from olivine_api.status import ConditionType
from olivine_operator.plan.child import size_annotations
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.observed import ANNOTATION_RESOURCES, ChildView
from olivine_operator.plan.outcome import DeleteChild, ResizeChild


def keep_size(draft: Draft, child: ChildView) -> bool:
    """Whether the child has the size that the spec asks for; if not, asks for it once its pods are gone.

    Compared with what was asked for before, not with the child's parallelism: Kueue may have admitted fewer pods.
    """
    wishes = draft.wishes
    if child.asked_pods is None:
        return True  # made by an earlier release, which had no sizes
    asked = size_annotations(wishes)
    other_resources = child.resources_digest != asked[ANNOTATION_RESOURCES]
    if child.asked_pods == wishes.pods and not other_resources:
        return True
    if not child.suspended or child.condition("Suspended") is None or any(p.active or p.leaving for p in draft.observed.pods):
        return False
    message = f"the {child.kind} {child.name} gets another size: {wishes.pods} pods"
    # Told before: one that has to be made anew was not lost.
    draft.set(ConditionType.RUNNING, "False", Reason.RESIZING, message)
    # One pod needs no name, several do: their templates differ. Nor may a JobSet be changed.
    if child.kind == "JobSet" or (child.asked_pods == 1) != (wishes.pods == 1):
        draft.act(DeleteChild(name=child.name, uid=child.uid, kind=child.kind))
        return False
    resources = wishes.resources if wishes.resources is not None else draft.settings.trainer.pod_defaults.resources
    draft.act(
        ResizeChild(
            name=child.name,
            uid=child.uid,
            pods=wishes.pods,
            resources=dict(resources) if other_resources else None,
            annotations=asked,
        )
    )
    return False
