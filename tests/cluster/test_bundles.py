"""AdapterBundles in real pods: examples/voices.yaml, with a tiny model here and with the real one in make test-full."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from olivine_api.adapterbundle import AdapterBundleStatus, BundlePhase
from olivine_api.status import Phase
from tests.support.adapters import make_bottleneck
from tests.support.cluster import ROOT, Cluster, s3
from tests.support.models import WIDE, make_tiny
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

NAMESPACE = "bundle-tests"
BUNDLES = "/apis/olivine.dev/v1alpha1/namespaces/{ns}/adapterbundles"
_LATER = "voice-later"


def documents() -> list[dict[str, Any]]:
    """The example, in the tests' namespace."""
    found = list(YAML(typ="safe", pure=True).load_all((ROOT / "examples" / "voices.yaml").read_text()))
    for document in found:
        document["metadata"]["namespace"] = NAMESPACE
    return found


class Scene:
    """The bundle of the example."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def status(self) -> AdapterBundleStatus:
        raw = self.cluster.api.must("GET", f"{BUNDLES.format(ns=NAMESPACE)}/voices")
        return AdapterBundleStatus.model_validate(raw.get("status", {}))

    def wait_version(self, version: int, seconds: float) -> AdapterBundleStatus:
        """The status once a version is there and nothing is being built."""

        def there() -> AdapterBundleStatus | None:
            status = self.status()
            assert status.phase is not BundlePhase.FAILED, status.last_failure
            settled = status.phase is BundlePhase.READY and status.build is not None and status.build.finished_at is not None
            return status if settled and status.bundle is not None and status.bundle.version >= version else None

        try:
            return wait_for(f"version {version}", there, seconds=seconds, every=1)
        except AssertionError:
            print(self.cluster.kubectl("describe", "ab,job,pod"))
            print(self.cluster.kubectl("logs", "-l", "olivine.dev/bundle=voices", "--tail=-1", "--prefix"))
            raise


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    subprocess.run([sys.executable, "-m", "devcluster", "grant", NAMESPACE], cwd=ROOT, check=True)
    # A bundle that is made anew goes on with its versions.
    s3("olivine").delete(list(tags(f"runs/{NAMESPACE}/bundles")))
    cluster = Cluster(NAMESPACE)
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true")


def put(folder: Path, bucket: str, prefix: str) -> str:
    """A folder's files into the cluster's store; returns the address."""
    for file in folder.iterdir():
        s3(bucket).put(f"{prefix}/{file.name}", file.read_bytes())
    return f"s3://{bucket}/{prefix}"


def tags(prefix: str) -> dict[str, str]:
    """What lies below a prefix, and when it was written."""
    return {item["path"]: str(item["last_modified"]) for page in s3("olivine").list(prefix) for item in page}


def test_four_methods_make_one_bundle_that_grows_by_itself_and_outlives_a_bad_adapter(cluster: Cluster, tmp_path: Path) -> None:
    """In the tiny world the bottleneck adapter is put into the store by hand: one pod less."""
    model = make_tiny("Llama", tmp_path / "model", intermediate_size=96, **WIDE)
    uri = put(model, "models", "tests/wide-llama")
    bottleneck = put(make_bottleneck(model, tmp_path / "bottleneck"), "olivine", "tests/voices/bottleneck")
    *jobs, bundle = documents()
    jobs = [small(job, uri) for job in jobs if job["spec"]["method"]["type"] != "Adapter"]
    bundle["spec"]["model"] = {"uri": uri}
    bundle["spec"]["adapters"][3] = {"name": "bottleneck", "uri": bottleneck}
    bundle["spec"]["verify"]["maxExtraKL"] = 1.0  # random weights in int8
    bundle["spec"]["pods"]["resources"] = {"limits": {"cpu": "2", "memory": "3Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}
    tell_the_story(cluster, [*jobs, bundle], corrupt=tmp_path / "corrupt", waits=300)


@pytest.mark.full
def test_the_example_as_it_stands(cluster: Cluster, tmp_path: Path) -> None:
    cluster.kubectl("delete", "ab", "--all", "--wait=true")
    cluster.kubectl("delete", "ftj", "--all", "--wait=true")
    s3("olivine").delete(list(tags(f"runs/{NAMESPACE}/bundles")))
    tell_the_story(cluster, documents(), corrupt=tmp_path / "corrupt", waits=900)


def small(job: dict[str, Any], model: str) -> dict[str, Any]:
    """A job of the example on the tiny model: a few steps, enough to change what it says."""
    job["spec"]["model"] = {"uri": model}
    job["spec"]["data"]["maxLength"] = 256
    job["spec"]["training"] |= {"maxSteps": 4, "batchSize": 4, "learningRate": 0.01}
    job["spec"]["evaluation"] = {}
    del job["spec"]["data"]["validationFraction"], job["spec"]["data"]["stratifyBy"]
    job["spec"]["pods"]["resources"] = {"limits": {"cpu": "1", "memory": "2Gi"}, "requests": {"cpu": "250m", "memory": "1Gi"}}
    return job


def tell_the_story(cluster: Cluster, manifests: list[dict[str, Any]], *, corrupt: Path, waits: float) -> None:
    scene = Scene(cluster)
    *jobs, bundle = manifests
    for manifest in manifests:
        cluster.apply(manifest)
    first = scene.wait_version(1, waits)
    assert [(one.name, one.state) for one in first.adapters] == [
        (name, "Ready") for name in ("attention", "all-linear", "quantized", "bottleneck")
    ]
    for one in first.adapters:
        assert one.max_logit_difference is not None
        assert one.max_logit_difference <= 1e-3
        assert (one.top1_agreement, one.greedy_agreement) == (1.0, 1.0)
    assert {c.type: c.status for c in first.conditions} == {
        "Built": "True", "Ready": "True", "Verified": "True", "Reconciling": "False",
    } | {c.type: "False" for c in first.conditions if c.type == "Stalled"}  # fmt: skip
    header, row = cluster.kubectl("get", "ab", "voices").splitlines()
    assert header.split() == ["NAME", "PHASE", "ADAPTERS", "VERSION", "SIZE", "PARITY", "AGE"]
    assert row.split()[:4] == ["voices", "Ready", "4/4", "1"]

    # A further job finishes: the bundle takes it in by itself, and the base stays as it lies there.
    bases = f"runs/{NAMESPACE}/bundles/voices/bases"
    before = tags(bases)
    assert before
    later = json.loads(json.dumps(jobs[0]))
    later["metadata"] |= {"name": _LATER, "labels": {"olivine-example": "more-voices"}}
    later["spec"]["training"]["seed"] = 7
    cluster.apply(later)
    second = scene.wait_version(2, waits)
    assert [one.name for one in second.adapters if one.state == "Ready"][-1] == _LATER
    assert len(second.adapters) == 5
    assert second.base == first.base
    assert tags(bases) == before
    # What was proven is not measured again.
    assert second.adapters[:4] == first.adapters

    # A corrupted one is rejected with its reason; the rest stays.
    (artifact,) = cluster.status(_LATER).artifacts
    bad = copied_and_cut(artifact.uri, "olivine", "tests/voices/corrupt")
    adapters = [*bundle["spec"]["adapters"], {"name": "corrupt", "uri": bad}]
    patch = {"spec": {"adapters": adapters, "model": bundle["spec"].get("model") or {"uri": jobs[0]["spec"]["model"]["uri"]}}}
    cluster.kubectl("patch", "ab", "voices", "--type=merge", "-p", json.dumps(patch))

    def rejected() -> AdapterBundleStatus | None:
        status = scene.status()
        return status if any(one.name == "corrupt" and one.state == "Rejected" for one in status.adapters) else None

    third = wait_for("the corrupted adapter is rejected", rejected, seconds=waits, every=1)
    assert third.phase is BundlePhase.READY
    assert [one.state for one in third.adapters if one.name != "corrupt"] == ["Ready"] * 5
    (reason,) = [one.reason for one in third.adapters if one.name == "corrupt"]
    assert reason is not None
    assert "adapter_model.safetensors is damaged" in reason
    assert third.bundle is not None
    assert second.bundle is not None
    assert third.bundle.digest == second.bundle.digest
    assert tags(bases) == before
    assert all(cluster.status(job["metadata"]["name"]).phase is Phase.SUCCEEDED for job in jobs)
    use_it(third.bundle.uri)


def copied_and_cut(source: str, bucket: str, prefix: str) -> str:
    """An adapter's files, the weights without their end."""
    from_bucket, key = source.removeprefix("s3://").split("/", 1)
    for page in s3(from_bucket).list(key):
        for item in page:
            data = bytes(s3(from_bucket).get(item["path"]).bytes())
            name = Path(item["path"]).name
            s3(bucket).put(f"{prefix}/{name}", data[:-100] if name.endswith(".safetensors") else data)
    return f"s3://{bucket}/{prefix}"


def use_it(uri: str) -> None:
    """The two commands that a user has for what is published."""
    from tests.support.cluster import STATE

    env = dict(line.split("=", 1) for line in (STATE / "s3.env").read_text().split())

    def olivine(*arguments: str) -> str:
        command = [sys.executable, "-m", "olivine_trainer", "bundle", *arguments]
        done = subprocess.run(command, env={**_plain(), **env}, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "attention, bottleneck" in olivine("verify", uri).replace("all-linear, ", "")
    prompt = "Phrase: What a lovely surprise!\nTone:"
    said = {
        name: olivine("run", uri, "--adapter", name, "--prompt", prompt, "--max-tokens", "8") for name in ("base", "all-linear")
    }
    assert said["base"] != said["all-linear"]


def _plain() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
