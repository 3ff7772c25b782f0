"""One look at an AdapterBundle."""

import json
from dataclasses import replace
from typing import Any

import pytest

from olivine_api import names
from olivine_api.adapterbundle import AdapterBundleStatus, AdapterStatus, BaseStatus, BundlePhase, BundleStatus
from olivine_api.bundle_build import BuildResult, BuildSnapshot, BuildStage, BundleBuild
from olivine_api.status import Artifact, Condition, FineTuneJobStatus, Phase, Resolved, ResolvedModel
from olivine_operator.plan.bundle.observed import BundlePlan, ObservedBundle
from olivine_operator.plan.bundle.reconcile import plan_bundle
from olivine_operator.plan.conditions import find
from olivine_operator.plan.observed import BuildReport, BundleView, ChildCondition, ChildView, JobView, Obstacle
from olivine_operator.plan.outcome import CreateChild, DeleteChild, SuspendChild
from olivine_operator.plan.settings import Policy
from tests.unit.operator.builders import SETTINGS, T0, after, ended, pod

NAMESPACE, NAME, UID = "team-a", "voices", "0123456789ab-cdef"
BASE = "b" * 64


def bundle(status: AdapterBundleStatus | None = None, *, generation: int = 1, update: str | None = None, **spec: Any) -> BundleView:
    return BundleView(
        namespace=NAMESPACE,
        name=NAME,
        uid=UID,
        resource_version="1",
        generation=generation,
        labels={},
        deleting=False,
        spec={"storage": {"uri": "s3://olivine/runs", "secretRef": {"name": "s3"}}, **spec},
        status=status.to_json_dict() if status is not None else {},
        update=update,
    )


def named(*jobs: str) -> dict[str, Any]:
    return {"adapters": [{"name": name, "jobRef": {"name": name}} for name in jobs]}


def job(
    name: str, phase: Phase = Phase.SUCCEEDED, *, base: str = BASE, digest: str | None = None, kind: Any = "Adapter", **members: Any
) -> JobView:
    artifact = Artifact(kind=kind, uri=f"s3://olivine/runs/team-a/{name}/u/artifacts/d", digest=digest or f"d-{name}", bytes=1)
    failed = Condition(type="Failed", status="True", reason="GateUnmet", message="accuracy 0.2 < 0.9", last_transition_time=T0)
    status = FineTuneJobStatus(
        phase=phase,
        artifacts=[artifact] if phase is Phase.SUCCEEDED else [],
        resolved=Resolved(model=ResolvedModel(uri="hf://org/base", digest=base, revision="c0ffee")),
        conditions=[failed] if phase is Phase.FAILED else [],
    )
    spec = {
        "model": {"uri": "hf://org/base", "secretRef": {"name": "hub"}},
        "storage": {"uri": "s3://olivine/runs", "secretRef": {"name": f"keys-{name}"}, "endpoint": "http://store:9"},
    }
    return JobView(
        namespace=NAMESPACE,
        name=name,
        uid=f"uid-{name}",
        resource_version="1",
        generation=1,
        labels=members.pop("labels", {}),
        deleting=False,
        spec=spec,
        status=status.to_json_dict(),
    )


def child(name: str = "voices-012345-1", *held: str, **members: Any) -> ChildView:
    conditions = tuple(ChildCondition(type=kind, reason=members.get("reason", ""), message="", since=T0) for kind in held)
    blank = ChildView(
        key=(NAMESPACE, f"bundle.{NAME}"),
        name=name,
        uid=f"uid-{name}",
        owner_uid=UID,
        resource_version="1",
        suspended=False,
        deleting=False,
        conditions=conditions,
        pods_since=T0,
    )
    return replace(blank, **{key: value for key, value in members.items() if key != "reason"})


def look(seen: BundleView, *jobs: JobView, at: float = 0, settings: Any = SETTINGS, **members: Any) -> BundlePlan:
    return plan_bundle(ObservedBundle(bundle=seen, jobs={one.name: one for one in jobs}, **members), after(at), settings)


def status_of(planned: BundlePlan) -> AdapterBundleStatus:
    assert planned.status is not None
    return planned.status


def created(planned: BundlePlan) -> CreateChild:
    (found,) = [action for action in planned.actions if isinstance(action, CreateChild)]
    return found


def task(planned: BundlePlan) -> BundleBuild:
    return BundleBuild.model_validate_json(created(planned).config_map["data"][names.CONFIG_SPEC])


def says(status: AdapterBundleStatus, kind: str) -> tuple[str, str, str]:
    found = find(status.conditions, kind)
    return (found.status, found.reason, found.message) if found else ("", "", "")


def result(*adapters: str, version: int = 1, rejected: dict[str, str] | None = None) -> BuildResult:
    ready = [
        AdapterStatus(
            name=name,
            source=f"s3://olivine/runs/team-a/{name}/u/artifacts/d",
            digest=f"d-{name}",
            max_logit_difference=1e-4,
            state="Ready",
        )
        for name in adapters
    ]
    bad = [
        AdapterStatus(name=name, source=f"s3://olivine/runs/team-a/{name}/u/artifacts/d", state="Rejected", reason=why)
        for name, why in (rejected or {}).items()
    ]
    return BuildResult(
        base=BaseStatus(digest="base", bytes=90_000_000, precision="int8", model_digest=BASE, model_uri="hf://org/base"),
        bundle=BundleStatus(
            uri=f"s3://b/{version}", digest=f"v{version}", version=version, total_bytes=91_200_000, merged_equivalent_bytes=1
        ),
        adapters=ready + bad,
    )


def report(sequence: int, built: BuildResult | None, stage: BuildStage = BuildStage.PUBLISHING) -> BuildReport:
    return BuildReport(snapshot=BuildSnapshot(sequence=sequence, stage=stage, result=built), received_at=T0)


def served(*jobs: str, spec: dict[str, Any] | None = None, rejected: dict[str, str] | None = None) -> AdapterBundleStatus:
    """The status of a bundle whose first version is there."""
    begun = status_of(look(bundle(**(spec or named(*jobs))), *(job(name) for name in jobs)))
    good = [name for name in jobs if name not in (rejected or {})]
    told = report(1, result(*good, rejected=rejected))
    done = look(
        bundle(begun, **(spec or named(*jobs))),
        *(job(name) for name in jobs),
        children=(child("voices-012345-1", "Complete"),),
        report=told,
    )
    return status_of(done)


def test_the_first_version_waits_for_the_jobs_that_are_named() -> None:
    planned = look(bundle(**named("tone", "topic")), job("tone"), job("topic", Phase.RUNNING))
    status = status_of(planned)
    assert (status.phase, planned.actions) == (BundlePhase.WAITING, ())
    assert says(status, "Built") == ("False", "WaitingForJobs", "the first version waits for the FineTuneJobs of topic")
    assert [(one.name, one.state, one.reason) for one in status.adapters][1] == (
        "topic",
        "Waiting",
        "the FineTuneJob topic is Running",
    )
    missing = status_of(look(bundle(**named("tone"))))
    assert missing.adapters[0].reason == "there is no FineTuneJob tone: create it, or take the adapter out"


def test_a_build_begins_with_all_that_its_pod_needs() -> None:
    planned = look(bundle(**named("tone", "topic")), job("tone"), job("topic"), ca_certificate="CA")
    status, built = status_of(planned), task(planned)
    assert status.phase is BundlePhase.PENDING
    assert status.build is not None
    assert (status.build.job, status.build.sequence) == ("voices-012345-1", 1)
    assert (built.model.uri, built.model.revision, built.model_digest) == ("hf://org/base", "c0ffee", BASE)
    assert [(one.name, one.digest, one.credentials, one.endpoint) for one in built.adapters] == [
        ("tone", "d-tone", 0, "http://store:9"),
        ("topic", "d-topic", 1, "http://store:9"),
    ]
    spec = created(planned).job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert container["args"] == ["bundle", "pod"]
    sources = {one["prefix"]: one["secretRef"] for one in container["envFrom"]}
    assert sources == {
        "OLIVINE_STORAGE_": {"name": "s3"},
        "OLIVINE_MODEL_": {"name": "hub"},
        # Without it only its adapter is lost.
        "OLIVINE_ADAPTER_0_": {"name": "keys-tone", "optional": True},
        "OLIVINE_ADAPTER_1_": {"name": "keys-topic", "optional": True},
    }
    labels = created(planned).job["metadata"]["labels"]
    assert (labels[names.LABEL_JOB], labels[names.LABEL_BUNDLE]) == ("bundle.voices", "voices")


def test_a_finished_build_is_told_and_the_next_look_has_nothing_to_do() -> None:
    status = served("tone", "topic", rejected={"topic": "it is truncated"})
    assert status.phase is BundlePhase.READY
    assert says(status, "Ready")[2].startswith("version 1 with 1 adapters, 1 rejected (91.2 MB) at s3://b/1")
    assert says(status, "Verified")[0] == "True"
    assert status.summary is not None
    assert (status.summary.adapters, status.summary.size, status.summary.worst_parity) == ("1/2", "91.2 MB", 1e-4)
    assert [(one.name, one.state, one.reason) for one in status.adapters] == [
        ("tone", "Ready", None),
        ("topic", "Rejected", "it is truncated"),
    ]
    again = look(
        bundle(status, **named("tone", "topic")), job("tone"), job("topic"), children=(child("voices-012345-1", "Complete"),), at=60
    )
    assert again == BundlePlan()


def test_a_further_job_makes_the_next_version_and_the_old_one_is_served_meanwhile() -> None:
    spec: dict[str, Any] = {"selector": {"matchLabels": {"team": "voices"}}}
    labels = {"team": "voices"}
    before = look(bundle(**spec), job("tone", labels=labels), job("other"))
    begun = status_of(before)
    assert [one.name for one in task(before).adapters] == ["tone"]
    first = status_of(
        look(
            bundle(begun, **spec),
            job("tone", labels=labels),
            children=(child("voices-012345-1", "Complete"),),
            report=report(1, result("tone")),
        )
    )
    jobs = (job("tone", labels=labels), job("topic", labels=labels))
    planned = look(bundle(first, **spec), *jobs, children=(child("voices-012345-1", "Complete"),), report=report(1, result("tone")))
    status = status_of(planned)
    assert [one.name for one in planned.actions if isinstance(one, DeleteChild)] == ["voices-012345-1"]
    assert (task(planned).sequence, says(status, "Ready")[0], says(status, "Reconciling")[0]) == (2, "True", "True")
    assert [(one.name, one.state) for one in status.adapters] == [("tone", "Ready"), ("topic", "Waiting")]
    running = look(
        bundle(status, **spec), *jobs, children=(child("voices-012345-2"),), pods=(pod(phase="Running"),), report=report(2, None)
    )
    assert status_of(running).phase is BundlePhase.VERIFYING


def test_jobs_that_end_one_after_another_do_not_keep_a_version_from_being_made() -> None:
    labels = {"team": "voices"}
    spec: dict[str, Any] = {"selector": {"matchLabels": labels}}
    tone, topic = job("tone", labels=labels), job("topic", labels=labels)
    running: dict[str, Any] = {"children": (child(),), "pods": (pod(phase="Running", running=True),)}
    begun = status_of(look(bundle(status_of(look(bundle(**spec), tone)), **spec), tone, **running))
    more = look(bundle(begun, **spec), tone, topic, **running)
    assert (more.actions, [one.state for one in status_of(more).adapters]) == ((), ["Waiting", "Waiting"])
    # A change of the spec is no job's end.
    assert task(look(bundle(begun, generation=2, onnx={"precision": "fp32"}, **spec), tone, topic, **running)).sequence == 2
    ended_by: dict[str, Any] = {"children": (child("voices-012345-1", "Complete"),), "report": report(1, result("tone"))}
    done = look(bundle(status_of(more), **spec), tone, topic, **ended_by)
    assert (status_of(done).phase, done.requeue_after) == (BundlePhase.READY, 0)
    assert [one.name for one in task(look(bundle(status_of(done), **spec), tone, topic, **ended_by)).adapters] == ["tone", "topic"]


def test_more_jobs_than_a_bundle_takes_push_none_out_and_are_told() -> None:
    labels = {"team": "voices"}
    spec: dict[str, Any] = {"selector": {"matchLabels": labels}}
    jobs = [job(f"many-{number:02d}", labels=labels) for number in range(64)]
    begun = status_of(look(bundle(**spec), *jobs))
    done: dict[str, Any] = {
        "children": (child("voices-012345-1", "Complete"),),
        "report": report(1, result(*(one.name for one in jobs))),
    }
    first = status_of(look(bundle(begun, **spec), *jobs, **done))
    more = look(bundle(first, **spec), *jobs, job("aaa", labels=labels), **done)
    assert not more.actions
    assert "1 more are left out: a bundle has at most 64" in says(status_of(more), "Reconciling")[2]


def test_a_job_that_runs_is_no_reason_to_build_and_no_jobs_are_waited_for() -> None:
    spec: dict[str, Any] = {"selector": {"matchLabels": {"team": "voices"}}}
    status = status_of(look(bundle(**spec), job("tone", Phase.RUNNING, labels={"team": "voices"})))
    assert (status.phase, says(status, "Built")[1]) == (BundlePhase.WAITING, "NoAdapters")


def test_a_version_that_is_served_stays_when_no_job_matches_any_more_and_nothing_is_under_way() -> None:
    spec: dict[str, Any] = {"selector": {"matchLabels": {"team": "voices"}}}
    begun = status_of(look(bundle(**spec), job("tone", labels={"team": "voices"})))
    ended_by: dict[str, Any] = {"children": (child("voices-012345-1", "Complete"),), "report": report(1, result("tone"))}
    first = status_of(look(bundle(begun, **spec), job("tone", labels={"team": "voices"}), **ended_by))
    left = status_of(look(bundle(first, **spec), job("tone"), **ended_by))
    assert (left.phase, left.bundle, says(left, "Reconciling")[:2]) == (BundlePhase.READY, first.bundle, ("False", "NoAdapters"))
    assert look(bundle(left, **spec), job("tone"), **ended_by, at=60) == BundlePlan()


def test_adapters_of_another_base_or_a_failed_job_are_rejected_and_the_others_are_built() -> None:
    jobs = (job("tone"), job("other", base="c" * 64), job("failed", Phase.FAILED), job("whole", kind="Model"))
    planned = look(bundle(**named("tone", "other", "failed", "whole")), *jobs)
    assert [one.name for one in task(planned).adapters] == ["tone"]
    reasons = {one.name: (one.state, one.reason) for one in status_of(planned).adapters}
    assert reasons["other"][0] == "Rejected"
    assert "it was trained on the base cccccccccccc, and the bundle's is bbbbbbbbbbbb (of tone)" in str(reasons["other"][1])
    assert reasons["failed"] == ("Rejected", "the FineTuneJob failed failed: GateUnmet, accuracy 0.2 < 0.9")
    assert "published no adapter" in str(reasons["whole"][1])


def test_a_job_whose_final_report_was_lost_is_not_blamed() -> None:
    lost = job("tone")
    silent = replace(lost, status={**lost.status, "artifacts": [], "storageUri": "s3://olivine/runs/team-a/tone/u"})
    status = status_of(look(bundle(**named("tone")), silent))
    assert "was lost: name its adapter by its address, below s3://olivine/runs/team-a/tone/u/artifacts" in str(
        status.adapters[0].reason
    )


def test_a_job_named_base_does_not_take_the_place_of_the_model_without_adapters() -> None:
    labels = {"team": "voices"}
    planned = look(bundle(selector={"matchLabels": labels}), job("base", labels=labels), job("tone", labels=labels))
    assert [one.name for one in task(planned).adapters] == ["tone"]
    assert "cannot be named base" in str(status_of(planned).adapters[0].reason)


def test_the_base_that_is_served_stays_the_base() -> None:
    status = served("tone")
    planned = look(
        bundle(status, generation=2, **named("anew", "tone")), job("anew", base="c" * 64), job("tone"), children=(child(),)
    )
    assert not [one for one in planned.actions if isinstance(one, CreateChild)]
    assert [(one.name, one.state) for one in status_of(planned).adapters] == [("anew", "Rejected"), ("tone", "Ready")]


def test_the_adapter_of_a_job_that_is_gone_stays_and_is_not_built_again() -> None:
    status = served("tone", "topic")
    planned = look(bundle(status, **named("tone", "topic")), job("tone"), children=(child("voices-012345-1", "Complete"),))
    orphaned = status_of(planned)
    assert not planned.actions
    assert [(one.name, one.state) for one in orphaned.adapters] == [("tone", "Ready"), ("topic", "Orphaned")]
    assert orphaned.adapters[1].max_logit_difference == 1e-4
    # It goes when it leaves the spec.
    left = look(bundle(orphaned, generation=2, **named("tone")), job("tone"), children=(child("voices-012345-1", "Complete"),))
    assert [one.name for one in task(left).adapters] == ["tone"]


def test_a_job_that_is_trained_again_or_fails_costs_nothing_that_was_good() -> None:
    status = served("tone", "topic")
    for phase, state in ((Phase.RUNNING, "Waiting"), (Phase.FAILED, "Rejected")):
        planned = look(
            bundle(status, **named("tone", "topic")),
            job("tone"),
            job("topic", phase),
            children=(child("voices-012345-1", "Complete"),),
        )
        (topic,) = [one for one in status_of(planned).adapters if one.name == "topic"]
        assert not planned.actions
        assert (topic.state, topic.digest) == (state, "d-topic")
        assert "what version 1 has under this name stays" in str(topic.reason)
    newer = look(
        bundle(status, **named("tone", "topic")),
        job("tone"),
        job("topic", digest="newer"),
        children=(child("voices-012345-1", "Complete"),),
    )
    assert [one.digest for one in task(newer).adapters] == ["d-tone", "newer"]


@pytest.mark.parametrize("now", [job("topic", Phase.RUNNING), job("topic", Phase.FAILED), job("topic", base="c" * 64, digest="n")])
def test_an_adapter_of_a_version_stays_at_every_look_and_is_ready_when_its_job_is_back_with_the_same(now: JobView) -> None:
    spec, tone, done = named("tone", "topic"), job("tone"), (child("voices-012345-1", "Complete"),)
    first = served("tone", "topic")
    first = first.model_copy(update={"adapters": [one.model_copy(update={"model_digest": BASE}) for one in first.adapters]})
    status = status_of(look(bundle(first, **spec), tone, now, children=done))
    assert look(bundle(status, **spec), tone, now, children=done) == BundlePlan()
    gone = status_of(look(bundle(status, **spec), tone, children=done))
    assert [(one.name, one.state) for one in gone.adapters] == [("tone", "Ready"), ("topic", "Orphaned")]
    for before in (status, gone):
        back = look(bundle(before, **spec), tone, job("topic"), children=done)
        assert not back.actions
        assert [(one.state, one.reason) for one in status_of(back).adapters] == [("Ready", None)] * 2


def test_while_a_newer_one_is_built_its_job_may_go_and_the_earlier_one_stays() -> None:
    spec, tone, done = named("tone", "topic"), job("tone"), (child("voices-012345-1", "Complete"),)
    retrained = status_of(look(bundle(served("tone", "topic"), **spec), tone, job("topic", Phase.RUNNING), children=done))
    building = status_of(look(bundle(retrained, **spec), tone, job("topic", digest="newer"), children=done))
    gone = look(bundle(building, **spec), tone, children=(child("voices-012345-2"),))
    assert [one.digest for one in task(gone).adapters] == ["d-tone", "d-topic"]


def test_an_adapter_that_spec_adapters_names_no_more_leaves_though_there_is_a_selector() -> None:
    selector: dict[str, Any] = {"selector": {"matchLabels": {"team": "voices"}}}
    both: dict[str, Any] = {"adapters": [{"name": "topic", "jobRef": {"name": "topic"}}], **selector}
    jobs = (job("tone", labels={"team": "voices"}), job("topic"))
    begun = status_of(look(bundle(**both), *jobs))
    done: dict[str, Any] = {"children": (child("voices-012345-1", "Complete"),), "report": report(1, result("tone", "topic"))}
    first = status_of(look(bundle(begun, **both), *jobs, **done))
    assert [(one.name, one.selected) for one in first.adapters] == [("topic", None), ("tone", True)]
    left = look(bundle(first, generation=2, **selector), *jobs, children=done["children"])
    assert [one.name for one in task(left).adapters] == ["tone"]
    # What the selector had found stays when its job is deleted.
    assert [one.state for one in status_of(look(bundle(first, **both), jobs[1], children=done["children"])).adapters] == [
        "Ready",
        "Orphaned",
    ]


def test_a_build_that_rejects_all_costs_no_orphan_of_the_version_that_is_served() -> None:
    spec, done = named("tone"), (child("voices-012345-1", "Complete"),)
    orphaned = status_of(look(bundle(served("tone"), **spec), children=done))
    wrong: dict[str, Any] = spec | {"model": {"uri": "hf://org/other"}}
    begun = status_of(look(bundle(orphaned, generation=2, **wrong), children=done))
    none = result(rejected={"tone": "of another base"}).model_copy(update={"bundle": None})
    pods = (failing(12, build=json.loads(report(2, none).snapshot.model_dump_json(by_alias=True))),)
    failed = status_of(look(bundle(begun, generation=2, **wrong), children=(child("voices-012345-2"),), pods=pods))
    assert failed.phase is BundlePhase.FAILED
    righted = look(bundle(failed, generation=3, **spec), children=(child("voices-012345-2", "Failed"),), pods=pods)
    assert [(one.name, one.digest) for one in task(righted).adapters] == [("tone", "d-tone")]


def test_a_newer_source_that_was_rejected_is_told_under_the_one_that_stays() -> None:
    first = served("tone")
    newer, done = job("tone", digest="newer"), (child("voices-012345-1", "Complete"),)
    begun = status_of(look(bundle(first, **named("tone")), newer, children=done))
    assert begun.adapters[0].state == "Waiting"
    kept = result("tone", version=1)
    stays = kept.adapters[0].model_copy(update={"reason": "the newer one is rejected, version 1's stays", "source": "s3://earlier"})
    told = report(2, kept.model_copy(update={"adapters": [stays]}))
    after_it = status_of(look(bundle(begun, **named("tone")), newer, children=(child("voices-012345-2", "Complete"),), report=told))
    for status in (after_it, status_of(look(bundle(after_it, generation=2, **named("tone")), newer))):
        assert (status.adapters[0].state, status.adapters[0].reason) == ("Ready", "the newer one is rejected, version 1's stays")


def failing(code: int, reason: str = "AdaptersRejected", **build: Any) -> Any:
    message = {"category": "User" if code < 20 else "Infrastructure", "reason": reason, "message": "why", **build}
    return pod("voices-0", phase="Failed", termination=ended(code, message))


def test_a_users_failure_ends_the_build_and_not_what_is_served() -> None:
    first = served("tone")
    jobs = (job("tone"), job("bad"))
    begun = status_of(
        look(bundle(first, generation=2, **named("tone", "bad")), *jobs, children=(child("voices-012345-1", "Complete"),))
    )
    snapshot = BuildSnapshot(
        sequence=2, stage=BuildStage.VERIFYING, result=result("tone", rejected={"bad": "NaN"}).model_copy(update={"bundle": None})
    )
    pods = (failing(12, build=json.loads(snapshot.model_dump_json(by_alias=True))),)
    seen = bundle(begun, generation=2, **named("tone", "bad"))
    failed = status_of(look(seen, *jobs, children=(child("voices-012345-2"),), pods=pods))
    assert (failed.phase, says(failed, "Ready")[0], says(failed, "Stalled")[:2]) == (
        BundlePhase.FAILED,
        "True",
        ("True", "AdaptersRejected"),
    )
    assert failed.bundle == first.bundle
    assert [(one.name, one.state, one.reason) for one in failed.adapters][1] == ("bad", "Rejected", "NaN")
    # Not tried again by itself; asked to, it is.
    still = look(
        bundle(failed, generation=2, **named("tone", "bad")), *jobs, children=(child("voices-012345-2", "Failed"),), pods=pods
    )
    assert not still.actions
    asked = look(
        bundle(failed, generation=2, update="now", **named("tone", "bad")),
        *jobs,
        children=(child("voices-012345-2", "Failed"),),
        pods=pods,
    )
    assert task(asked).sequence == 3


def test_failures_of_the_platform_are_counted_and_end_the_build_on_overrun() -> None:
    spec: dict[str, Any] = named("tone") | {"retries": {"maxRestarts": 1}}
    begun = status_of(look(bundle(**spec), job("tone")))
    one = replace(failing(30, "StorageUnavailable"), uid="1")
    status = status_of(look(bundle(begun, **spec), job("tone"), children=(child(),), pods=(one,), at=2))
    assert (status.restarts, says(status, "Built")[1], status.next_retry_time) == (1, "Restarting", after(10))
    two = replace(failing(30, "StorageUnavailable"), name="voices-1", uid="2", termination=ended(30, "", at=after(20)))
    planned = look(bundle(status, **spec), job("tone"), children=(child(),), pods=(one, two), at=21)
    assert (status_of(planned).phase, says(status_of(planned), "Stalled")[1]) == (BundlePhase.FAILED, "TooManyRestarts")
    assert planned.actions == (SuspendChild(name="voices-012345-1", suspend=True),)


def test_a_failed_build_is_tried_again_when_the_spec_gives_its_pod_what_it_lacked() -> None:
    begun = status_of(look(bundle(**named("tone")), job("tone")))
    small: dict[str, Any] = {"resources": {"limits": {"memory": "2Gi"}}}
    refused = Obstacle(reason="InvalidSpec", message="spec.pods.resources", permanent=True)
    failed = status_of(look(bundle(begun, **named("tone")), job("tone"), obstacle=refused))
    assert (failed.phase, look(bundle(failed, **named("tone")), job("tone"))) == (BundlePhase.FAILED, BundlePlan())
    righted = look(bundle(failed, generation=2, pods=small, **named("tone")), job("tone"))
    assert (task(righted).sequence, status_of(righted).phase) == (2, BundlePhase.PENDING)


def test_a_pod_that_cannot_start_is_made_again_when_the_spec_gives_it_something_else_and_no_other_is() -> None:
    begun = look(bundle(**named("tone")), job("tone"))
    made = created(begun).job["metadata"]["annotations"]["olivine.dev/resources-digest"]
    there: dict[str, Any] = {"children": (child(resources_digest=made),), "pods": (pod("voices-0"),)}
    status = status_of(begun)
    kept = look(bundle(status, generation=2, retention={"versions": 9}, **named("tone")), job("tone"), **there)
    assert not kept.actions
    spec: dict[str, Any] = {"pods": {"image": "mended"}, **named("tone")}
    planned = look(bundle(status, generation=2, **spec), job("tone"), **there)
    assert planned.actions == (DeleteChild(name="voices-012345-1", uid="uid-voices-012345-1"),)
    again = look(bundle(status_of(planned), generation=2, **spec), job("tone"))
    assert (task(again).sequence, created(again).job["spec"]["template"]["spec"]["containers"][0]["image"]) == (1, "mended")
    assert says(status_of(again), "Built")[1] == "WaitingForPod"
    there = {"children": (child(resources_digest=made),), "pods": (pod("voices-0"),)}
    assert not look(bundle(status_of(again), generation=2, **spec), job("tone"), **there).actions  # by the generation alone


def test_a_failed_builds_job_is_ended_at_each_look_until_it_is() -> None:
    spec: dict[str, Any] = named("tone") | {"retries": {"maxRestarts": 0}}
    begun = status_of(look(bundle(**spec), job("tone")))
    crash = failing(30, "StorageUnavailable")
    failed = status_of(look(bundle(begun, **spec), job("tone"), children=(child(),), pods=(crash,), at=2))
    # The operator died between the status and the Job.
    changed: list[dict[str, Any]] = [{}, {"suspend": True}, {"pods": {"count": 2}}]
    for changes in changed:
        still = look(bundle(failed, **spec, **changes), job("tone"), children=(child(),), pods=(crash,), at=3)
        assert still.actions == (SuspendChild(name="voices-012345-1", suspend=True),)
    # A user's exit code ends the Job by itself, and leaves the logs.
    by_user = look(bundle(begun, **spec), job("tone"), children=(child(),), pods=(failing(12),), at=2)
    assert by_user.actions == ()
    soon = look(bundle(status_of(by_user), **spec), job("tone"), children=(child(),), pods=(failing(12),), at=2)
    assert (soon.actions, soon.requeue_after) == ((), 31)


def test_a_build_whose_inputs_are_gone_or_whose_spec_is_refused_does_not_run_on() -> None:
    spec = named("tone", "topic")
    begun = status_of(look(bundle(**spec), job("tone"), job("topic")))
    running: dict[str, Any] = {"children": (child(),), "pods": (pod(phase="Running"),)}
    deletion = (DeleteChild(name="voices-012345-1", uid="uid-voices-012345-1"),)
    waits = look(bundle(begun, **spec), job("tone"), **running)
    assert (waits.actions, status_of(waits).phase) == (deletion, BundlePhase.WAITING)
    back = look(bundle(status_of(waits), **spec), job("tone"), job("topic"))
    assert (task(back).sequence, status_of(back).phase) == (1, BundlePhase.PENDING)
    refused = look(bundle(begun, generation=2, pods={"count": 2}, **spec), job("tone"), job("topic"), **running)
    assert (refused.actions, status_of(refused).phase) == (deletion, BundlePhase.FAILED)
    righted = look(bundle(status_of(refused), generation=3, **spec), job("tone"), job("topic"))
    assert (task(righted).sequence, says(status_of(righted), "Stalled")[0]) == (1, "False")
    suspended = status_of(look(bundle(status_of(refused), generation=3, suspend=True, **spec), job("tone"), job("topic")))
    assert (says(suspended, "Stalled")[0], says(suspended, "Built")[1]) == ("False", "SuspendedByUser")


def test_a_result_that_was_lost_is_fetched_by_another_build() -> None:
    begun = status_of(look(bundle(**named("tone")), job("tone")))
    early = look(bundle(begun, **named("tone")), job("tone"), children=(child("voices-012345-1", "Complete"),), at=3)
    assert (early.actions, early.requeue_after) == ((), 1)
    planned = look(bundle(begun, **named("tone")), job("tone"), children=(child("voices-012345-1", "Complete"),), at=30)
    assert task(planned).sequence == 2
    # The termination message alone is enough.
    message = {
        "reason": "Published",
        "message": "",
        "build": json.loads(report(1, result("tone")).snapshot.model_dump_json(by_alias=True)),
    }
    done = pod("voices-0", phase="Succeeded", termination=ended(0, message, reason="Completed"))
    told = look(bundle(begun, **named("tone")), job("tone"), children=(child("voices-012345-1", "Complete"),), pods=(done,), at=3)
    assert status_of(told).phase is BundlePhase.READY


def test_results_that_are_lost_again_and_again_end_the_bundles_builds() -> None:
    status = status_of(look(bundle(**named("tone")), job("tone")))
    for sequence in (1, 2, 3, 4):
        done = (child(f"voices-012345-{sequence}", "Complete"),)
        status = status_of(look(bundle(status, **named("tone")), job("tone"), children=done, at=30))
    assert (status.phase, says(status, "Stalled")[1]) == (BundlePhase.FAILED, "CrashLoop")
    assert "told of no version" in says(status, "Stalled")[2]
    assert not look(bundle(status, **named("tone")), job("tone"), children=done, at=60).actions


def test_a_termination_message_without_room_for_all_adapters_is_asked_for_again_and_taken_at_last() -> None:
    spec, jobs = named("tone", "topic"), (job("tone"), job("topic"))
    status = status_of(look(bundle(**spec), *jobs))
    for sequence in (1, 2, 3, 4):
        told = {"build": json.loads(report(sequence, result("tone")).snapshot.model_dump_json(by_alias=True))}
        done = pod("voices-0", phase="Succeeded", termination=ended(0, told | {"reason": "", "message": ""}, reason="Completed"))
        done_by = (child(f"voices-012345-{sequence}", "Complete"),)
        planned = look(bundle(status, **spec), *jobs, children=done_by, pods=(done,), at=30)
        status = status_of(planned)
    assert (status.phase, planned.actions) == (BundlePhase.READY, ())


def test_suspended_nothing_is_built_and_what_was_under_way_is_made_again() -> None:
    begun = status_of(look(bundle(**named("tone")), job("tone")))
    planned = look(bundle(begun, generation=2, suspend=True, **named("tone")), job("tone"), children=(child(),))
    assert planned.actions == (DeleteChild(name="voices-012345-1", uid="uid-voices-012345-1"),)
    suspended = status_of(planned)
    assert says(suspended, "Built")[1] == "SuspendedByUser"
    assert says(suspended, "Reconciling")[0] == "False"
    resumed = look(bundle(suspended, generation=3, **named("tone")), job("tone"))
    assert created(resumed).job["metadata"]["name"] == "voices-012345-1"


def test_manual_updates_wait_for_the_spec_or_the_annotation() -> None:
    spec: dict[str, Any] = {"selector": {"matchLabels": {"team": "voices"}}, "updatePolicy": "Manual"}
    labels = {"team": "voices"}
    begun = status_of(look(bundle(**spec), job("tone", labels=labels)))
    jobs, children = (job("tone", labels=labels), job("topic", labels=labels)), (child("voices-012345-1", "Complete"),)
    first = status_of(look(bundle(begun, **spec), jobs[0], children=children, report=report(1, result("tone"))))
    held = look(bundle(first, **spec), *jobs, children=children)
    assert not held.actions
    assert says(status_of(held), "Reconciling")[1] == "UpdatePending"
    assert "kubectl annotate ab voices olivine.dev/update=" in says(status_of(held), "Reconciling")[2]
    assert task(look(bundle(status_of(held), update="1", **spec), *jobs, children=children)).sequence == 2
    assert task(look(bundle(status_of(held), generation=2, **spec), *jobs, children=children)).sequence == 2


def test_what_is_in_the_way_is_told() -> None:
    begun = status_of(look(bundle(**named("tone")), job("tone")))
    quota = look(bundle(begun, **named("tone")), job("tone"), obstacle=Obstacle(reason="QuotaExceeded", message="no room"))
    assert says(status_of(quota), "Built")[1:] == ("QuotaExceeded", "no room")
    image = pod("voices-0", waiting_reason="ImagePullBackOff", waiting_message="no such image")
    waiting = status_of(look(bundle(begun, **named("tone")), job("tone"), children=(child(),), pods=(image,)))
    assert says(waiting, "Built")[1] == "ImagePullBackOff"


def test_a_build_that_takes_too_long_is_ended() -> None:
    spec: dict[str, Any] = named("tone") | {"activeDeadlineSeconds": 60}
    begun = status_of(look(bundle(**spec), job("tone")))
    slow = pod("voices-0", phase="Running", started_at=T0)
    assert look(bundle(begun, **spec), job("tone"), children=(child(),), pods=(slow,), at=20).requeue_after == 40
    planned = look(bundle(begun, **spec), job("tone"), children=(child(),), pods=(slow,), at=61)
    assert says(status_of(planned), "Stalled")[1] == "DeadlineExceeded"
    assert planned.actions == (SuspendChild(name="voices-012345-1", suspend=True),)


def test_a_finished_builds_job_is_deleted_after_its_time() -> None:
    spec: dict[str, Any] = named("tone") | {"ttlSecondsAfterFinished": 30}
    status = served("tone", spec=spec)
    children = (child("voices-012345-1", "Complete"),)
    assert look(bundle(status, **spec), job("tone"), children=children, at=10).requeue_after == 20
    assert look(bundle(status, **spec), job("tone"), children=children, at=30).actions == (
        DeleteChild(name="voices-012345-1", uid="uid-voices-012345-1"),
    )
    assert look(bundle(status, **spec), job("tone"), at=40) == BundlePlan()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"storage": {"uri": "s3://elsewhere/x"}}, "spec.storage.uri: s3://elsewhere/x is not allowed in this namespace"),
        ({"publish": {"uri": "hf://org/name"}}, "spec.publish.uri: hf://org/name is not allowed"),
        ({"model": {"uri": "file:///models/x"}}, "spec.model.uri: file:///models/x is not allowed"),
        ({"pods": {"count": 2}}, "a bundle is built by one pod with one process"),
    ],
)
def test_what_is_not_allowed_is_told_and_can_be_corrected_in_place(changes: dict[str, Any], sentence: str) -> None:
    settings = SETTINGS.model_copy(update={"policy": Policy(storage_prefixes=["s3://olivine"])})
    refused = status_of(look(bundle(**named("tone"), **changes), job("tone"), settings=settings))
    assert refused.phase is BundlePhase.FAILED
    assert sentence in says(refused, "Stalled")[2]
    corrected = look(bundle(refused, generation=2, **named("tone")), job("tone"), settings=settings)
    assert created(corrected)
    assert says(status_of(corrected), "Stalled")[0] == "False"


def test_a_job_that_was_allowed_more_lends_the_bundle_no_secret_that_is_not_allowed_now() -> None:
    settings = SETTINGS.model_copy(update={"policy": Policy(secret_names=["s3", "keys-topic"])})
    made = created(look(bundle(**named("tone", "topic")), job("tone"), job("topic"), settings=settings)).job
    sources = made["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    assert [one["secretRef"]["name"] for one in sources] == ["s3", "keys-topic"]


def test_each_adapter_that_is_proven_is_not_a_status_write() -> None:
    status, running = status_of(look(bundle(**named("tone")), job("tone"))), (pod("voices-0", phase="Running", running=True),)
    writes = 0
    for verified in range(65):
        told = BuildReport(
            snapshot=BuildSnapshot(sequence=1, stage=BuildStage.VERIFYING, verified=verified, total=64), received_at=T0
        )
        planned = look(bundle(status, **named("tone")), job("tone"), children=(child(),), pods=running, report=told)
        writes, status = writes + (planned.status is not None), planned.status or status
    assert writes == 9


def test_many_adapters_with_much_to_say_stay_within_an_objects_bounds() -> None:
    jobs = [f"adapter-{number:02d}" for number in range(64)]
    rejected = dict.fromkeys(jobs[32:], "x" * 1024)
    status = served(*jobs, rejected=rejected)
    assert len(status.adapters) == 64
    assert len(json.dumps(status.to_json_dict())) < 56 * 1024
