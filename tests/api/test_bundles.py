"""AdapterBundles on a real API server; the tests play the kubelet and the builder."""

import json
from typing import Any

import pytest

from olivine_api import names
from olivine_api.adapterbundle import AdapterBundleStatus, BundlePhase
from olivine_api.status import Phase
from tests.api.jobs import ARTIFACT, FINAL, Namespace
from tests.api.kube import BUNDLES, CONFIG_MAPS, EVENTS, JOBS, PODS, Json
from tests.api.operator_process import OperatorProcess, pod_token
from tests.support.wait import wait_for

_LABELS = {"team": "voices"}


class Bundle:
    """One AdapterBundle, and what its builder would do."""

    def __init__(self, ns: Namespace, operator: OperatorProcess, name: str = "voices") -> None:
        self.ns = ns
        self.operator = operator
        self.name = name

    def apply(self, **spec: Any) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.ADAPTERBUNDLE_KIND,
            "metadata": {"name": self.name, "namespace": self.ns.name},
            "spec": {"storage": {"uri": "s3://olivine/bundles"}, **spec},
        }
        answer = self.ns.kube.apply(self.ns.path(BUNDLES), body)
        assert answer.ok, answer.message

    def status(self) -> AdapterBundleStatus:
        raw = self.ns.kube.must("GET", self.ns.path(BUNDLES, self.name))
        return AdapterBundleStatus.model_validate(raw.get("status", {}))

    def wait_phase(self, phase: BundlePhase) -> AdapterBundleStatus:
        def there() -> AdapterBundleStatus | None:
            status = self.status()
            return status if status.phase is phase else None

        try:
            return wait_for(f"the bundle is {phase}", there, seconds=15, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.status().model_dump_json(indent=1, exclude_none=True)}") from None

    def objects(self, template: str) -> list[Json]:
        path = f"{self.ns.path(template)}?labelSelector={names.LABEL_BUNDLE}%3D{self.name}"
        return self.ns.kube.must("GET", path)["items"]

    def wait_pod(self, sequence: int) -> Json:
        """The pod of a build, made by the Job controller."""

        def there() -> Json | None:
            job = f"-{sequence}"
            return next(
                (pod for pod in self.objects(PODS) if pod["metadata"]["labels"]["batch.kubernetes.io/job-name"].endswith(job)), None
            )

        try:
            return wait_for(f"the pod of build {sequence}", there, seconds=20, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.status().model_dump_json(indent=1, exclude_none=True)}") from None

    def config(self, sequence: int) -> Json:
        (found,) = [one for one in self.objects(CONFIG_MAPS) if one["metadata"]["name"].endswith(f"-{sequence}")]
        return found["data"]

    def task(self, sequence: int) -> Json:
        return json.loads(self.config(sequence)[names.CONFIG_SPEC])

    def post(self, pod: Json, body: Json, sequence: int) -> tuple[int, str]:
        """A builder's report, within the rate."""
        token, ca = pod_token(self.ns.kube, pod), self.config(sequence)[names.CONFIG_CA]

        def answer() -> tuple[int, str] | None:
            path = names.BUNDLE_STATUS_PATH
            found = self.operator.post(self.ns.name, self.name, body, token=token, ca=ca, path=path)
            return found if found[0] != 429 else None

        return wait_for("an answer within the rate", answer, seconds=10, every=0.3)

    def build(self, sequence: int, version: int, rejected: dict[str, str] | None = None) -> None:
        """Plays a whole build."""
        pod = self.wait_pod(sequence)
        self.ns.pod_runs(pod)
        self.wait_phase(BundlePhase.BUILDING)
        assert self.post(pod, snapshot(sequence, "Verifying"), sequence)[0] == 204
        self.wait_phase(BundlePhase.VERIFYING)
        final = snapshot(sequence, "Publishing", result(self.task(sequence), version, rejected or {}))
        assert self.post(pod, final, sequence)[0] == 204
        self.ns.pod_ends(pod, 0, {"reason": "Published", "message": "", "build": snapshot(sequence, "Publishing")})

    def events(self) -> list[str]:
        fields = f"involvedObject.kind%3DAdapterBundle,involvedObject.name%3D{self.name}"
        return [event["reason"] for event in self.ns.kube.must("GET", f"{self.ns.path(EVENTS)}?fieldSelector={fields}")["items"]]


def snapshot(sequence: int, stage: str, built: Json | None = None) -> Json:
    return {"sequence": sequence, "stage": stage} | ({"result": built} if built is not None else {})


def result(task: Json, version: int, rejected: dict[str, str]) -> Json:
    adapters = [
        {"name": one["name"], "source": one["uri"], "digest": one["digest"], "state": "Rejected", "reason": rejected[one["name"]]}
        if one["name"] in rejected
        else {"name": one["name"], "source": one["uri"], "digest": one["digest"], "state": "Ready", "maxLogitDifference": 0.0001}
        for one in task["adapters"]
    ]
    base = {
        "digest": "b",
        "bytes": 9_000_000,
        "precision": "int8",
        "modelDigest": task.get("modelDigest"),
        "modelUri": "s3://models/tiny",
    }
    bundle = {
        "uri": f"s3://olivine/{version}",
        "digest": f"v{version}",
        "version": version,
        "totalBytes": 9_100_000,
        "mergedEquivalentBytes": 1,
    }
    return {"base": base, "bundle": bundle, "adapters": adapters}


def finish_job(ns: Namespace, name: str, *, digest: str = "sha256:abc") -> None:
    """A FineTuneJob from start to end."""
    ns.kube.apply(ns.path("/apis/olivine.dev/v1alpha1/namespaces/{ns}/finetunejobs"), _labelled(ns, name))
    pod = ns.wait_pod(name)
    ns.pod_runs(pod)
    resolved = {"model": {"uri": "s3://models/tiny", "digest": "model-digest"}}
    final = FINAL | {"artifacts": [ARTIFACT | {"uri": f"s3://olivine/runs/{name}", "digest": digest}], "resolved": resolved}
    ns.pod_ends(pod, 0, {"reason": "Published", "message": "", "snapshot": final})
    ns.wait_phase(name, Phase.SUCCEEDED)


def _labelled(ns: Namespace, name: str) -> Json:
    manifest = ns.manifest(name)
    manifest["metadata"]["labels"] = _LABELS
    return manifest


@pytest.fixture
def bundle(ns: Namespace, operator: OperatorProcess) -> Bundle:
    return Bundle(ns, operator)


def test_a_bundle_gathers_jobs_as_they_finish_and_takes_each_version_over(ns: Namespace, bundle: Bundle) -> None:
    bundle.apply(selector={"matchLabels": _LABELS})
    bundle.wait_phase(BundlePhase.WAITING)
    finish_job(ns, "tone")
    bundle.build(1, 1)
    first = bundle.wait_phase(BundlePhase.READY)
    assert first.summary is not None
    assert (first.summary.adapters, first.summary.size) == ("1/1", "9.1 MB")
    assert bundle.task(1)["modelDigest"] == "model-digest"

    finish_job(ns, "topic")
    bundle.build(2, 2, {"topic": "it is truncated"})
    second = bundle.wait_phase(BundlePhase.READY)
    assert [(one.name, one.state) for one in second.adapters] == [("tone", "Ready"), ("topic", "Rejected")]
    assert second.bundle is not None
    assert second.bundle.version == 2
    # The Job of the build before is gone; the newest stays for its logs.
    wait_for("one Job", lambda: [one["metadata"]["name"][-2:] for one in bundle.objects(JOBS)] == ["-2"], seconds=10)
    assert [one["metadata"]["name"][-2:] for one in bundle.objects(CONFIG_MAPS)] == ["-2"]

    # Rest costs nothing, and a restarted operator does nothing again.
    version = ns.kube.must("GET", ns.path(BUNDLES, "voices"))["metadata"]["resourceVersion"]
    bundle.operator.stop()
    bundle.operator.start()
    ns.apply("other")  # a look at another resource shows that the operator is at work
    ns.wait_job("other")
    assert ns.kube.must("GET", ns.path(BUNDLES, "voices"))["metadata"]["resourceVersion"] == version
    # No node is here: what the scheduler says of it is told, too.
    told = [reason for reason in bundle.events() if reason != "Unschedulable"]
    assert sorted(told) == ["AdapterRejected", "BuildStarted", "BuildStarted", "Published", "Published"]


def test_a_table_tells_how_it_stands(ns: Namespace, bundle: Bundle) -> None:
    finish_job(ns, "tone")
    bundle.apply(adapters=[{"name": "voice", "jobRef": {"name": "tone"}}])
    bundle.build(1, 1)
    bundle.wait_phase(BundlePhase.READY)
    shown = ns.kube.table(ns.path(BUNDLES, "voices"))
    assert (shown["Phase"], shown["Adapters"], shown["Size"], shown["Parity"]) == ("Ready", "1/1", "9.1 MB", 0.0001)


def test_a_builder_speaks_for_its_own_bundle_and_build_only(ns: Namespace, bundle: Bundle, pod: Json) -> None:
    finish_job(ns, "tone")
    bundle.apply(adapters=[{"name": "tone", "jobRef": {"name": "tone"}}])
    builder = bundle.wait_pod(1)
    ns.pod_runs(builder)
    bundle.wait_phase(BundlePhase.BUILDING)
    code, text = bundle.post(builder, snapshot(7, "Verifying"), 1)
    assert (code, "build 7 is over: the bundle is at build 1" in text) == (409, True)
    # A trainer's token opens no bundle, and a builder's no job.
    assert bundle.post(pod, snapshot(1, "Verifying"), 1)[0] == 403
    token, ca = pod_token(ns.kube, builder), bundle.config(1)[names.CONFIG_CA]
    assert bundle.operator.post(ns.name, "tone", FINAL, token=token, ca=ca)[0] == 403
    assert bundle.post(builder, {"sequence": 1, "stage": "Dancing"}, 1)[0] == 422
    assert bundle.status().phase is BundlePhase.BUILDING


def test_a_failed_build_ends_with_its_sentence_and_the_correction_builds_again(ns: Namespace, bundle: Bundle) -> None:
    finish_job(ns, "tone")
    bundle.apply(adapters=[{"name": "tone", "jobRef": {"name": "tone"}}])
    pod = bundle.wait_pod(1)
    ns.pod_runs(pod)
    ns.pod_ends(pod, 12, {"category": "User", "reason": "ModelUnsupported", "message": "take another model"})
    failed = bundle.wait_phase(BundlePhase.FAILED)
    assert failed.last_failure is not None
    assert (failed.last_failure.reason, failed.last_failure.message) == ("ModelUnsupported", "take another model")
    ns.kube.merge(ns.path(BUNDLES, "voices"), {"spec": {"model": {"uri": "s3://models/other"}}})
    bundle.build(2, 1)
    bundle.wait_phase(BundlePhase.READY)


def test_a_deleted_bundle_takes_its_builds_with_it(ns: Namespace, bundle: Bundle) -> None:
    finish_job(ns, "tone")
    bundle.apply(adapters=[{"name": "tone", "jobRef": {"name": "tone"}}])
    bundle.wait_pod(1)
    ns.kube.must("DELETE", ns.path(BUNDLES, "voices"))
    wait_for("its Job is gone", lambda: not bundle.objects(JOBS) and not bundle.objects(CONFIG_MAPS), seconds=30)
