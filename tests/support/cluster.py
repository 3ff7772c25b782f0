"""The embedded cluster as tests use it: kubectl, its S3 server, FineTuneJobs."""

import copy
import json
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from obstore.store import S3Store
from ruamel.yaml import YAML

from olivine_api.status import FineTuneJobStatus, Phase
from tests.api.kube import FTJ, PODS, Kube
from tests.support.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".olivine"
ENDED = (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class Cluster:
    """A running cluster and one namespace in it."""

    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output; raises AssertionError with kubectl's message where it fails."""
        process = self.popen(*arguments)
        output, errors = process.communicate(stdin)
        assert process.returncode == 0, f"kubectl {' '.join(arguments)}: {errors}"
        return output

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """A running kubectl."""
        return subprocess.Popen(
            [str(STATE / "bin" / "kubectl"), "-n", self.namespace, *arguments],
            env=os.environ | {"KUBECONFIG": str(STATE / "kubeconfig")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def get(self, kind: str, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, as JSON."""
        return json.loads(self.kubectl("get", kind, *arguments, "-o", "json"))

    def apply(self, manifest: dict[str, Any]) -> None:
        """kubectl apply of one object."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    @cached_property
    def api(self) -> Kube:
        """The API server without kubectl, whose start costs more CPU than what it asks: for what is asked again and again."""
        return Kube(STATE / "kubeconfig")

    def status(self, name: str) -> FineTuneJobStatus:
        """The status of a FineTuneJob."""
        job = self.api.must("GET", f"{FTJ.format(ns=self.namespace)}/{name}")
        return FineTuneJobStatus.model_validate(job.get("status", {}))

    def wait_ended(self, name: str, seconds: float) -> FineTuneJobStatus:
        """The status of a FineTuneJob once it has ended."""

        def ended() -> FineTuneJobStatus | None:
            status = self.status(name)
            return status if status.phase in ENDED else None

        try:
            return wait_for(f"{name} has ended", ended, seconds=seconds, every=1)
        except AssertionError:
            print(self.kubectl("describe", "ftj,job,pod", "-l", f"olivine.dev/job={name}"))
            print(self.kubectl("describe", "ftj", name))
            raise

    def pods(self, name: str) -> list[dict[str, Any]]:
        """The trainer pods of a FineTuneJob, oldest first."""
        items = self.api.must("GET", f"{PODS.format(ns=self.namespace)}?labelSelector=olivine.dev/job%3D{name}")["items"]
        return sorted(items, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """The Events about a FineTuneJob, oldest first."""
        uid = self.get("ftj", name)["metadata"]["uid"]
        items = self.get("events", "--field-selector", f"involvedObject.uid={uid}")["items"]
        return sorted(items, key=lambda event: event["metadata"]["creationTimestamp"])


def s3(bucket: str) -> S3Store:
    """A bucket of the cluster's S3 server, as the host reaches it."""
    env = dict(line.split("=", 1) for line in (STATE / "s3.env").read_text().split())
    return S3Store(
        bucket,
        endpoint=env["AWS_ENDPOINT_URL"],
        access_key_id=env["AWS_ACCESS_KEY_ID"],
        secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region=env["AWS_REGION"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def example(name: str) -> dict[str, Any]:
    """An example manifest."""
    return YAML(typ="safe", pure=True).load((ROOT / "examples" / name).read_text())


def renamed(manifest: dict[str, Any], name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """A copy of a manifest under another name, with members of its spec replaced."""
    changed = copy.deepcopy(manifest)
    changed["metadata"] |= {"name": name, "namespace": namespace}
    changed["spec"] |= spec
    return changed
