"""FineTuneJobs in one namespace, and a hand that plays the kubelet: pods never run here, their status is written by tests."""

import copy
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from olivine_api import names
from olivine_api.status import FineTuneJobStatus, Phase
from tests.api.kube import CONFIG_MAPS, EVENTS, FTJ, JOBS, PODS, Json, Kube
from tests.support.wait import wait_for

SPEC: Json = {
    "task": "Classification",
    "model": {"uri": "s3://models/tiny"},
    "data": {
        "train": {"uri": "s3://data/rows.jsonl"},
        "validationFraction": 0.1,
        "template": {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"},
    },
    "method": {"type": "LoRA", "lora": {"rank": 8}},
    "training": {"maxSteps": 10},
    "storage": {"uri": "s3://olivine/runs"},
}


def manifest(name: str, namespace: str, **spec: Any) -> Json:
    """A right one, with members of its spec replaced."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.FINETUNEJOB_KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": copy.deepcopy(SPEC) | spec,
    }


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Namespace:
    """A namespace with what tests do in it."""

    kube: Kube
    name: str

    def path(self, template: str, name: str = "", sub: str = "") -> str:
        return template.format(ns=self.name) + (f"/{name}" if name else "") + (f"/{sub}" if sub else "")

    def manifest(self, name: str, **spec: Any) -> Json:
        return manifest(name, self.name, **spec)

    def apply(self, name: str, **spec: Any) -> Json:
        answer = self.kube.apply(self.path(FTJ), manifest(name, self.name, **spec))
        assert answer.ok, answer.message
        return answer.body

    def change(self, name: str, **spec: Any) -> Json:
        return self.kube.merge(self.path(FTJ, name), {"spec": spec})

    def raw(self, name: str) -> Json:
        return self.kube.must("GET", self.path(FTJ, name))

    def status(self, name: str) -> FineTuneJobStatus:
        return FineTuneJobStatus.model_validate(self.raw(name).get("status", {}))

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """Status, reason and message; empty where the condition is absent."""
        found = next((c for c in self.status(name).conditions if c.type == kind), None)
        return (found.status, found.reason, found.message) if found else ("", "", "")

    def wait_reason(self, name: str, kind: str, reason: str, *, seconds: float = 15) -> str:
        """The message of a condition once it has a reason."""

        def there() -> str | None:
            _, found, message = self.condition(name, kind)
            return message if found == reason else None

        try:
            return wait_for(f"{name}: {kind} {reason}", there, seconds=seconds, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; status: {json.dumps(self.raw(name).get('status'), indent=1)}") from None

    def wait_phase(self, name: str, phase: Phase, *, seconds: float = 15) -> FineTuneJobStatus:
        def there() -> FineTuneJobStatus | None:
            status = self.status(name)
            return status if status.phase is phase else None

        try:
            return wait_for(f"{name} is {phase}", there, seconds=seconds, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; status: {json.dumps(self.raw(name).get('status'), indent=1)}") from None

    def children(self, template: str, name: str) -> list[Json]:
        """The children of a job, oldest first."""
        items = self.kube.must("GET", f"{self.path(template)}?labelSelector={names.LABEL_JOB}%3D{name}")["items"]
        return sorted(items, key=lambda item: item["metadata"]["creationTimestamp"])

    def wait_job(self, name: str) -> Json:
        return wait_for(f"the Job of {name}", lambda: next(iter(self.children(JOBS, name)), None), seconds=15, every=0.1)

    def pods(self, name: str) -> list[Json]:
        return self.children(PODS, name)

    def wait_pod(self, name: str, *, without: tuple[str, ...] = (), seconds: float = 20) -> Json:
        """A pod of a job, made by the Job controller."""

        def there() -> Json | None:
            return next((pod for pod in self.pods(name) if pod["metadata"]["name"] not in without), None)

        return wait_for(f"a pod of {name}", there, seconds=seconds, every=0.1)

    def wait_pods(self, name: str, count: int, *, without: tuple[str, ...] = (), seconds: float = 20) -> list[Json]:
        """So many pods of a job, in the order of their indexes."""

        def there() -> list[Json] | None:
            found = [pod for pod in self.pods(name) if pod["metadata"]["name"] not in without]
            return sorted(found, key=index_of) if len(found) == count else None

        return wait_for(f"{count} pods of {name}", there, seconds=seconds, every=0.1)

    def make_node(self, name: str) -> None:
        """A node that takes pods of this namespace only; nothing runs there."""
        taint = {"key": "test", "value": self.name, "effect": "NoSchedule"}
        body = {"metadata": {"name": name, "labels": {"test": self.name}}, "spec": {"taints": [taint]}}
        self.kube.must("POST", "/api/v1/nodes", body)
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        amounts = {"cpu": "4", "memory": "8Gi", "pods": "10"}
        status = {"conditions": [ready], "capacity": amounts, "allocatable": amounts}
        self.kube.merge(f"/api/v1/nodes/{name}/status", {"status": status})
        # New nodes are not ready until the node controller has seen them.
        wait_for(
            "the node takes pods",
            lambda: self.kube.must("GET", f"/api/v1/nodes/{name}")["spec"].get("taints") == [taint],
            seconds=20,
        )

    @property
    def on_node(self) -> Json:
        """What of spec.pods leads to that node."""
        return {"nodeSelector": {"test": self.name}, "tolerations": [{"key": "test", "operator": "Exists"}]}

    def ca(self, name: str) -> str:
        """The certificates that a job's trainers trust."""
        return self.config_maps(name)[0]["data"][names.CONFIG_CA]

    def config_maps(self, name: str) -> list[Json]:
        return self.children(CONFIG_MAPS, name)

    def events(self, name: str) -> list[Json]:
        uid = self.raw(name)["metadata"]["uid"]
        return self.kube.must("GET", f"{self.path(EVENTS)}?fieldSelector=involvedObject.uid%3D{uid}")["items"]

    # The kubelet's part.

    def pod_waits(self, pod: Json, reason: str, message: str) -> None:
        self._pod_status(pod, "Pending", {"waiting": {"reason": reason, "message": message}})

    def pod_runs(self, pod: Json) -> None:
        self._pod_status(pod, "Running", {"running": {"startedAt": now()}}, ready=True)

    def pod_ends(
        self, pod: Json, code: int, message: Json | str = "", *, reason: str = "", conditions: tuple[Json, ...] = ()
    ) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        ended = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": text,
            "finishedAt": now(),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        self._pod_status(pod, phase, {"terminated": {**ended, "startedAt": now()}}, conditions=conditions)

    def _pod_status(self, pod: Json, phase: str, state: Json, *, ready: bool = False, conditions: tuple[Json, ...] = ()) -> None:
        container = {"name": "trainer", "image": "trainer", "imageID": "", "ready": ready, "restartCount": 0, "state": state}
        status: Json = {"phase": phase, "containerStatuses": [container], "conditions": list(conditions)}
        path = self.path(PODS, pod["metadata"]["name"], "status")
        self.kube.must("PATCH", path, {"status": status}, "application/strategic-merge-patch+json")


def index_of(pod: Json) -> int:
    return int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def words(reason: str, message: str = "it ended", **members: Any) -> Json:
    """What PID 1 leaves where the platform is to blame."""
    return {"category": "Infrastructure", "reason": reason, "message": message, **members}


def snapshot(stage: str = "Training", step: int = 0, **members: Any) -> Json:
    """What a trainer reports."""
    progress = {"stage": stage, "step": step, "totalSteps": 10, "percent": step * 10}
    return {"attempt": 1, "progress": progress, **members}


ARTIFACT = {"kind": "Adapter", "uri": "s3://olivine/runs/x/artifacts/abc", "digest": "sha256:abc", "bytes": 1}
FINAL = snapshot(
    "Publishing",
    10,
    metrics={"accuracy": 0.94, "evalLoss": 0.1},
    baseline={"accuracy": 0.02, "evalLoss": 3.0},
    artifacts=[ARTIFACT],
)
