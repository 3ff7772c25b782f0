"""What status says of each adapter: the build's numbers where they are of what is wanted, else what is waited for."""

from collections.abc import Mapping, Sequence

from olivine_api.adapterbundle import AdapterBundleSpec, AdapterStatus, BundleSummary
from olivine_operator.plan.bundle.draft import BundleDraft
from olivine_operator.plan.bundle.gathering import Candidate, Gathered, selector_digest
from olivine_operator.plan.conditions import truncate

# An object stays far below what etcd takes, whatever 64 adapters have to say.
_BUDGET = 40 * 1024
_REASON, _SHORT_REASON = 480, 120
_BACK = {"state": "Ready", "reason": None}
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def tell_adapters(draft: BundleDraft, spec: AdapterBundleSpec, gathered: Gathered, inputs: str) -> None:
    """Sets status.adapters and the summary; `inputs` is the digest of what is wanted now."""
    known = {one.name: one for one in draft.status.adapters}
    build = draft.build
    settled = build is not None and build.finished_at is not None and build.digest == inputs
    built = settled and build is not None and not build.failed
    entries = [
        _entry(one, known.get(one.name), settled=settled, built=built).model_copy(update={"selected": None if one.named else True})
        for one in gathered.candidates
    ]
    draft.update(adapters=_bounded(entries), selector_digest=selector_digest(spec.selector))
    ready = sum(one.state in ("Ready", "Orphaned") and one.max_logit_difference is not None for one in entries)
    worst = [one.max_logit_difference for one in entries if one.max_logit_difference is not None and one.state != "Rejected"]
    bundle = draft.status.bundle
    draft.update(
        summary=BundleSummary(
            adapters=f"{ready}/{len(entries)}",
            size=in_bytes(bundle.total_bytes) if bundle is not None else None,
            worst_parity=float(f"{max(worst):.3g}") if worst else None,
        )
    )


def in_bytes(count: int) -> str:
    """For people: 86.2 MB."""
    unit, name = next(((unit, name) for unit, name in _UNITS if count >= unit), (1.0, "B"))
    return f"{count / unit:.4g} {name}"


def _entry(one: Candidate, known: AdapterStatus | None, *, settled: bool, built: bool) -> AdapterStatus:
    """`settled`: the newest build was of exactly these inputs, and has ended; `built`: with a version."""
    adapter = one.adapter
    if adapter is None:
        return AdapterStatus(
            name=one.name, source=known.source if known else "", state=one.state, reason=truncate(one.reason, _REASON)
        )
    same = known is not None and known.source == adapter.uri and (adapter.digest is None or known.digest in (None, adapter.digest))
    if known is not None and same and one.state != "Ready":
        return known.model_copy(update={"state": one.state, "reason": truncate(one.reason, _REASON)})
    # Of a newer source that it rejected, a build tells under the one that stays.
    if known is not None and (settled or (same and known.state != "Waiting")):
        # Its job is back with the same: the numbers are as good as they were.
        source = {"source": adapter.uri} if adapter.digest in (None, known.digest) else {}
        back = known.state == "Orphaned" or (built and known.state != "Ready" and known.version is not None and source)
        return known.model_copy(update=_BACK | source) if back else known
    if known is not None and known.version is not None and known.digest is not None:
        reason = f"a newer one is built into the next version; what version {known.version} has under this name stays till then"
        return known.model_copy(update={"state": "Waiting", "reason": reason})
    return AdapterStatus(
        name=one.name,
        source=adapter.uri,
        state="Waiting" if one.state == "Ready" else one.state,
        reason=truncate(one.reason, _REASON) if one.reason else "it is built into the next version",
    )


def merged(result: Sequence[AdapterStatus], built_in: Mapping[str, Candidate], version: int) -> list[AdapterStatus]:
    """A build's adapters, with what the operator knows better."""
    found: list[AdapterStatus] = []
    for one in result:
        candidate = built_in.get(one.name)
        adapter = candidate.adapter if candidate is not None else None
        model_digest = adapter.model_digest if adapter is not None else None
        # A short report leaves digests out; one that stands in for a newer one lies elsewhere.
        digest = one.digest or (adapter.digest if adapter is not None and one.source == adapter.uri else None)
        known = {
            "model_digest": one.model_digest or model_digest,
            "version": (one.version or version) if one.state == "Ready" else None,
            "digest": digest if one.state == "Ready" else one.digest,
        }
        reason = truncate(one.reason, _REASON) if one.reason else None
        found.append(one.model_copy(update={**known, "reason": reason}))
    return found


_LESSER_NUMBERS = (
    "top1_agreement", "greedy_agreement", "shipped_top1_agreement", "shipped_greedy_agreement", "load_milliseconds", "overhead_percent",
)  # fmt: skip


def _bounded(entries: list[AdapterStatus]) -> list[AdapterStatus]:
    """All adapters, with fewer words where there are many."""
    if _size(entries) <= _BUDGET:
        return entries
    shorter = [
        one.model_copy(update={"targets": [], "reason": truncate(one.reason, _SHORT_REASON) if one.reason else None})
        for one in entries
    ]
    if _size(shorter) <= _BUDGET:
        return shorter
    return [one.model_copy(update=dict.fromkeys(_LESSER_NUMBERS)) for one in shorter]


def _size(entries: list[AdapterStatus]) -> int:
    return sum(len(one.model_dump_json(by_alias=True, exclude_none=True)) for one in entries)
