"""Which adapters a bundle has, where each lies, and which base they share: a function of the spec, the jobs, and what was built before."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError

from olivine_api.adapterbundle import ADAPTER_LIMIT, Adapter, AdapterBundleSpec, AdapterBundleStatus, AdapterStatus, BundleModel
from olivine_api.bundle_build import BuildAdapter
from olivine_api.pods import LabelSelector
from olivine_api.sources import LocalObjectReference, Storage
from olivine_api.status import Condition, ConditionType, FineTuneJobStatus, Phase
from olivine_operator.plan.conditions import find
from olivine_operator.plan.live_config import canonical, digest_of
from olivine_operator.plan.observed import JobView
from olivine_operator.plan.policy import allows_secret, selects
from olivine_operator.plan.settings import LabelRequirement, Policy

State = Literal["Ready", "Rejected", "Orphaned", "Waiting"]
_BASE_NAME = "base"  # its file takes a generator back to the base
_SHOWN = 12  # characters of a digest in a sentence


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One adapter as things stand. Ready: it can be built in, whatever the build will find."""

    name: str
    state: State
    reason: str = ""
    adapter: BuildAdapter | None = None
    """What is built in; also of one that waits or was rejected, where an earlier version stays meanwhile."""
    secret: LocalObjectReference | None = None
    model: BundleModel | None = None
    """The base that its job trained on, and how that is reached."""
    named: bool = True
    """Whether spec.adapters names it, rather than the selector."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """All candidates in the order of the bundle, and their base."""

    candidates: tuple[Candidate, ...]
    model: BundleModel | None
    model_digest: str | None = None
    excess: int = 0
    """How many the selector finds beyond the limit."""

    @property
    def built_in(self) -> list[Candidate]:
        """Those that a build takes."""
        return [one for one in self.candidates if one.adapter is not None]


def gather(spec: AdapterBundleSpec, jobs: Mapping[str, JobView], status: AdapterBundleStatus) -> Gathered:
    """The adapters, and the base that they share."""
    # Whatever is said of it now: a job that fails where one had succeeded costs nothing either.
    earlier = {one.name: one for one in status.adapters if one.digest is not None and one.version is not None}
    found = [_named(adapter, jobs, earlier.get(adapter.name)) for adapter in spec.adapters or ()]
    if spec.selector is not None:
        taken = {one.name for one in found}
        same = selector_digest(spec.selector) == status.selector_digest
        # What spec.adapters named, and names no more, is not the selector's to keep.
        kept = {name: one for name, one in earlier.items() if same and one.selected}
        found += [one for one in _selected(spec.selector, jobs, kept) if one.name not in taken]
    excess = max(0, len(found) - ADAPTER_LIMIT)
    if excess:
        # One that is served makes no room for one that comes later.
        found.sort(key=lambda one: not one.named and one.name not in earlier)
    return _on_one_base(spec, found[:ADAPTER_LIMIT], status, earlier, excess)


def within(gathered: Gathered, policy: Policy) -> Gathered:
    """Without Secrets that the policy does not allow: a job may have been made when more was. Then spec.storage's have to do."""

    def allowed(secret: LocalObjectReference | None) -> bool:
        return secret is None or allows_secret(secret.name, policy)

    model = gathered.model
    if model is not None and not allowed(model.secret_ref):
        model = model.model_copy(update={"secret_ref": None})
    candidates = tuple(one if allowed(one.secret) else replace(one, secret=None) for one in gathered.candidates)
    return replace(gathered, candidates=candidates, model=model)


def selector_digest(selector: LabelSelector | None) -> str | None:
    """Tells one selector from another."""
    return digest_of({"selector": canonical(selector.to_json_dict())}) if selector is not None else None


def is_interested(spec: Mapping[str, Any], job: JobView) -> bool:
    """Whether a bundle's stored spec may take an adapter from a job."""
    adapters = spec.get("adapters") or ()
    return "selector" in spec or any((one.get("jobRef") or {}).get("name") == job.name for one in adapters)


def _named(adapter: Adapter, jobs: Mapping[str, JobView], earlier: AdapterStatus | None) -> Candidate:
    if adapter.job_ref is not None:
        return _of_job(adapter.name, adapter.job_ref.name, jobs.get(adapter.job_ref.name), earlier)
    built = BuildAdapter(
        name=adapter.name,
        uri=str(adapter.uri),
        endpoint=adapter.endpoint,
        secret=adapter.secret_ref.name if adapter.secret_ref is not None else None,
    )
    return Candidate(name=adapter.name, state="Ready", adapter=built, secret=adapter.secret_ref)


def _selected(selector: LabelSelector, jobs: Mapping[str, JobView], earlier: Mapping[str, AdapterStatus]) -> Iterator[Candidate]:
    """Every succeeded job that matches, by name; and those that came so before and whose job is gone."""
    for name in sorted({*jobs, *earlier}):
        job, known = jobs.get(name), earlier.get(name)
        if job is not None and not _matches(selector, job):
            continue  # its user took it out by its labels
        if name == _BASE_NAME:
            reason = "an adapter cannot be named base, as its FineTuneJob is: that is the model without adapters; name it in spec.adapters"
            yield Candidate(name=name, state="Rejected", reason=reason, named=False)
        elif job is None or job.status.get("phase") == Phase.SUCCEEDED or known is not None:
            yield replace(_of_job(name, name, job, known), named=False)


def _matches(selector: LabelSelector, job: JobView) -> bool:
    requirements = [
        LabelRequirement.model_validate({"key": one.key, "operator": one.operator, "values": list(one.values or ())})
        for one in selector.match_expressions or ()
    ]
    return selects(selector.match_labels or {}, requirements, job.labels)


def _of_job(name: str, job_name: str, job: JobView | None, earlier: AdapterStatus | None) -> Candidate:
    if job is None:
        if earlier is None:
            return Candidate(
                name=name, state="Waiting", reason=f"there is no FineTuneJob {job_name}: create it, or take the adapter out"
            )
        return _stays(name, "Orphaned", f"the FineTuneJob {job_name} is gone; its adapter stays until it leaves the spec", earlier)
    status = FineTuneJobStatus.model_validate(job.status)
    if status.phase is Phase.FAILED:
        return _stays(name, "Rejected", f"the FineTuneJob {job_name} failed: {_why(status)}", earlier)
    if status.phase is not Phase.SUCCEEDED:
        phase = status.phase.value if status.phase is not None else "Pending"
        return _stays(name, "Waiting", f"the FineTuneJob {job_name} is {phase}", earlier)
    artifact = next((one for one in status.artifacts if one.kind == "Adapter"), None)
    if artifact is None:
        return _stays(name, "Rejected", _without_adapter(status, job_name), earlier)
    storage, model = _addresses(job)
    resolved = status.resolved.model if status.resolved is not None else None
    if model is not None and resolved is not None and resolved.revision is not None:
        model = model.model_copy(update={"revision": resolved.revision})
    built = BuildAdapter(
        name=name,
        uri=artifact.uri,
        endpoint=storage.endpoint if storage is not None else None,
        secret=storage.secret_ref.name if storage is not None and storage.secret_ref is not None else None,
        digest=artifact.digest,
        model_digest=resolved.digest if resolved is not None else None,
    )
    secret = storage.secret_ref if storage is not None else None
    return Candidate(name=name, state="Ready", adapter=built, secret=secret, model=model)


def _stays(name: str, state: State, reason: str, earlier: AdapterStatus | None) -> Candidate:
    """Without its job's word: what an earlier version has under that name stays."""
    if earlier is None:
        return Candidate(name=name, state=state, reason=reason)
    built = BuildAdapter(name=name, uri=earlier.source, digest=earlier.digest, model_digest=earlier.model_digest)
    kept = reason if state == "Orphaned" else f"{reason}; what version {earlier.version} has under this name stays"
    return Candidate(name=name, state=state, reason=kept, adapter=built)


def _without_adapter(status: FineTuneJobStatus, job_name: str) -> str:
    """Why a job that succeeded tells of none."""
    if status.artifacts:
        return f"the FineTuneJob {job_name} published no adapter: give it method LoRA, QLoRA or Adapter, and outputs.adapter true"
    where = f"{status.storage_uri}/artifacts" if status.storage_uri is not None else "its storage.uri"
    return f"the final report of the FineTuneJob {job_name} was lost: name its adapter by its address, below {where}"


def _why(status: FineTuneJobStatus) -> str:
    failed: Condition | None = find(status.conditions, ConditionType.FAILED)
    return f"{failed.reason}, {failed.message}" if failed is not None else "it does not say why"


def _addresses(job: JobView) -> tuple[Storage | None, BundleModel | None]:
    """A job's storage, and its base with the means by which the job reaches it; None where another release wrote what cannot be read."""
    try:
        storage = Storage.model_validate(job.spec["storage"])
        raw = job.spec["model"]
        model = BundleModel.model_validate(
            {name: raw[name] for name in ("uri", "revision", "secretRef", "endpoint") if name in raw}
        )
    except (ValidationError, KeyError, TypeError):
        return None, None
    if model.uri.partition("://")[0] == storage.uri.partition("://")[0] and model.secret_ref is None:
        # As the trainer reads it: the keys of a job's storage open the base's store, too.
        lent: dict[str, Any] = {"endpoint": model.endpoint or storage.endpoint}
        if model.endpoint in (None, storage.endpoint):
            lent["secret_ref"] = storage.secret_ref
        model = model.model_copy(update=lent)
    return storage, model


def _on_one_base(
    spec: AdapterBundleSpec,
    found: Sequence[Candidate],
    status: AdapterBundleStatus,
    earlier: Mapping[str, AdapterStatus],
    excess: int,
) -> Gathered:
    """The spec's base; without one, that of the version that is served, else of the first adapter. Others' adapters are rejected."""
    if spec.model is not None:
        return Gathered(candidates=tuple(found), model=spec.model, excess=excess)
    served = status.base.model_digest if status.base is not None else None
    known = [one for one in found if one.adapter is not None and one.adapter.model_digest is not None]
    first = next((one for one in known if one.adapter is not None and one.adapter.model_digest == served), None)
    first = first or next(iter(known), None)
    if first is None or first.adapter is None:
        return Gathered(candidates=tuple(found), model=_known_model(status), model_digest=served, excess=excess)
    digest = first.adapter.model_digest
    model = next((one.model for one in known if one.model is not None and one.adapter and one.adapter.model_digest == digest), None)
    checked = tuple(_checked(one, str(digest), first.name, earlier.get(one.name)) for one in found)
    return Gathered(candidates=checked, model=model or _known_model(status), model_digest=digest, excess=excess)


def _checked(one: Candidate, digest: str, first: str, earlier: AdapterStatus | None) -> Candidate:
    adapter = one.adapter
    if adapter is None or adapter.model_digest in (None, digest):
        return one
    reason = (
        f"it was trained on the base {str(adapter.model_digest)[:_SHOWN]}, and the bundle's is {digest[:_SHOWN]} (of {first}): "
        "put it into a bundle of its own, or name the base that is meant in spec.model"
    )
    stays = earlier if earlier is not None and earlier.model_digest in (None, digest) else None
    return replace(_stays(one.name, "Rejected", reason, stays), named=one.named)


def _known_model(status: AdapterBundleStatus) -> BundleModel | None:
    """Where the base of the version that is served came from: jobs that are gone do not tell any more."""
    base = status.base
    if base is None or base.model_uri is None:
        return None
    return BundleModel(uri=base.model_uri, revision=base.model_revision)
