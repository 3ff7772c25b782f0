"""Names and labels of children."""

from olivine_api import names
from olivine_operator.plan.observed import CHILD_SUFFIX, KUEUE_PREFIX, BundleView, JobView

# Others' labels stay where they are: a GitOps controller would prune a child that carries its own.
_COPIED_PREFIXES = (KUEUE_PREFIX, f"{names.GROUP}/")


def child_name(job: JobView) -> str:
    """Deterministic, so that making a child twice makes one; with the uid, so that a namesake's is another."""
    return f"{job.name}-{job.uid.replace('-', '')[: CHILD_SUFFIX - 1]}"


def own_labels(job: JobView) -> dict[str, str]:
    """By these the children are found."""
    labels = {names.LABEL_JOB: job.label, names.LABEL_JOB_UID: job.uid, names.LABEL_MANAGED_BY: names.MANAGED_BY}
    return labels | ({names.LABEL_BUNDLE: job.name} if isinstance(job, BundleView) else {})


def child_labels(job: JobView) -> dict[str, str]:
    """The user's labels that concern Kueue or Olivine, and our own, which win."""
    copied = {key: value for key, value in job.labels.items() if key.startswith(_COPIED_PREFIXES)}
    return copied | own_labels(job)


def owner_reference(job: JobView) -> dict[str, object]:
    """Makes the garbage collector delete the children with the job."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": job.kind,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
