"""FineTuneJobs in real pods: what a user types, what the status tells, what survives a kill."""

import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from olivine_api.exit_codes import Category
from olivine_api.status import FineTuneJobStatus, Phase
from tests.support.cluster import ROOT, Cluster, example, renamed, s3
from tests.support.models import likeliest, make_tiny_llama
from tests.support.pods import at_step, hold
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAMESPACE = "finetunejob-tests"
TINY = "tests/tiny-llama"
TOTAL_STEPS, FIRST_CHECKPOINT = 400, 30


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace of its own on the embedded cluster, with a tiny model in the store."""
    subprocess.run([sys.executable, "-m", "devcluster", "grant", NAMESPACE], cwd=ROOT, check=True)
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
    for file in folder.iterdir():
        s3("models").put(f"{TINY}/{file.name}", file.read_bytes())
    cluster = Cluster(NAMESPACE)
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true")


def tiny(name: str, **spec: Any) -> dict[str, Any]:
    """The example's job on the tiny model: long enough to be killed in the middle, with everything random switched on."""
    manifest = renamed(example("phrase-tone.yaml"), name, NAMESPACE, model={"uri": f"s3://models/{TINY}"})
    manifest["spec"]["method"]["lora"] |= {"dropout": 0.1, "targetModules": ["q_proj", "v_proj"]}
    manifest["spec"]["training"] |= {"maxSteps": TOTAL_STEPS, "gradientAccumulationSteps": 2, "batchSize": 4, "loggingSteps": 1}
    manifest["spec"]["data"]["maxLength"] = 256  # its tokenizer has few words: most are spelled out
    manifest["spec"]["evaluation"] |= {"everySteps": 150}
    manifest["spec"]["checkpoint"] = {"everySteps": FIRST_CHECKPOINT, "keep": 2, "keepAfterSuccess": 1}
    manifest["spec"]["pods"]["resources"] = {"limits": {"cpu": "1", "memory": "2Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}
    manifest["spec"] |= spec
    return manifest


@pytest.fixture(scope="module")
def calm(cluster: Cluster) -> FineTuneJobStatus:
    """An undisturbed run."""
    cluster.apply(tiny("calm"))
    return cluster.wait_ended("calm", 180)


def test_a_job_succeeds_and_its_status_tells_the_story(cluster: Cluster, calm: FineTuneJobStatus) -> None:
    assert calm.phase is Phase.SUCCEEDED, calm.last_failure
    assert (calm.restarts, calm.lost_steps, calm.attempt) == (0, 0, 1)
    assert calm.progress is not None
    assert (calm.progress.step, calm.progress.percent) == (TOTAL_STEPS, 100)
    assert calm.baseline.keys() >= {"evalLoss", "accuracy"}
    assert calm.metrics["evalLoss"] < calm.baseline["evalLoss"]
    assert [a.kind for a in calm.artifacts] == ["Adapter"]
    assert calm.resolved is not None
    assert calm.resolved.data is not None
    # 15 % of 70 rows a tone, six tones.
    assert calm.resolved.data.rows + calm.resolved.data.validation_rows == 420
    assert calm.resolved.data.validation_rows == pytest.approx(63, abs=6)
    held = {c.type for c in calm.conditions if c.status == "True"}
    assert held == {"Validated", "Evaluated", "Published", "Complete"}
    assert len(json.dumps(cluster.get("ftj", "calm"))) < 64 * 1024

    reasons = [event["reason"] for event in cluster.events("calm")]
    assert 3 <= len(reasons) <= 6, reasons
    described = cluster.kubectl("describe", "ftj", "calm")
    assert "Events:" in described
    assert all(reason in described for reason in reasons)


def test_columns_show_stage_progress_and_loss(cluster: Cluster, calm: FineTuneJobStatus) -> None:
    header, row = cluster.kubectl("get", "ftj", "calm").splitlines()
    assert header.split() == ["NAME", "PHASE", "STAGE", "PROGRESS", "STEP", "LOSS", "ETA", "RESTARTS", "HEARTBEAT", "AGE"]
    assert row.split()[:2] == ["calm", "Succeeded"]


def test_plain_peft_loads_the_published_adapter(cluster: Cluster, calm: FineTuneJobStatus, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    download("models", TINY, base)
    bucket, prefix = calm.artifacts[0].uri.removeprefix("s3://").split("/", 1)
    download(bucket, prefix, adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    published = json.loads(bytes(s3(bucket).get(f"{storage_prefix(calm)}/run/published.json").bytes()))
    assert published["samples"], "the run kept no samples"
    rows = [json.loads(line) for line in (ROOT / "examples" / "data" / "phrase-tone.jsonl").read_text().splitlines()]
    labels = [f" {tone}" for tone in dict.fromkeys(row["tone"] for row in rows)]
    for sample in published["samples"]:
        assert likeliest(model, tokenizer, sample["prompt"], labels) == sample["tuned"]


def test_killed_and_suspended_a_job_still_ends_with_the_same_bytes(cluster: Cluster, calm: FineTuneJobStatus) -> None:
    """Both faults hit workers that stand still in the middle of their steps.

    Aimed by what the status says, which is seconds old, a kill could come after the publication: the next pod then finds the run
    over, and no second attempt ever comes.
    """
    cluster.apply(tiny("stormy"))
    with hold(cluster, "stormy", at_step(FIRST_CHECKPOINT + 5)) as held:
        assert held.step < TOTAL_STEPS / 2, "the steps are too short to be hit: raise TOTAL_STEPS"
        assert held.first.kill() == 2, "PID 1 and its worker"

    restarted = wait_for("a second attempt", lambda: s if (s := cluster.status("stormy")).attempt == 2 else None, seconds=90)
    assert restarted.restarts == 1
    assert restarted.last_failure is not None
    assert restarted.last_failure.category is Category.INFRASTRUCTURE

    with hold(cluster, "stormy", at_step(held.step + 2 * FIRST_CHECKPOINT)) as held:
        assert held.step < TOTAL_STEPS - 10
        cluster.kubectl("patch", "ftj", "stormy", "--type=merge", "-p", '{"spec":{"suspend":true}}')
        wait_for("Suspended", lambda: cluster.status("stormy").phase is Phase.SUSPENDED, seconds=60)
        wait_for("the pod is asked to go", lambda: "deletionTimestamp" in cluster.pods("stormy")[-1]["metadata"], seconds=60)
    wait_for(
        "no pods while suspended", lambda: not [p for p in cluster.pods("stormy") if p["status"]["phase"] == "Running"], seconds=60
    )
    cluster.kubectl("patch", "ftj", "stormy", "--type=merge", "-p", '{"spec":{"suspend":false}}')

    ended = cluster.wait_ended("stormy", 180)
    assert ended.phase is Phase.SUCCEEDED, ended.last_failure
    # A suspension saves a checkpoint first: it is no incident and loses nothing.
    assert (ended.restarts, ended.attempt) == (1, 3)
    assert ended.artifacts[0].digest == calm.artifacts[0].digest
    assert ended.metrics == calm.metrics


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no-such-column": (
        {
            "data": {
                **example("phrase-tone.yaml")["spec"]["data"],
                "template": {"prompt": "Phrase: {phrse}\nTone:", "completion": " {tone}"},
            }
        },
        r"\{phrse\}.*phrase, tone",
    ),
    "no-such-bucket": (
        {"storage": {"uri": "s3://no-such-bucket/runs", "secretRef": {"name": "olivine-storage"}}},
        r"no-such-bucket",
    ),
    "no-such-model": ({"model": {"uri": "s3://models/no-such-model"}}, r"s3://models/no-such-model"),
}


def test_a_users_mistake_is_one_sentence_and_no_retry(cluster: Cluster) -> None:
    for name, (spec, _) in BAD.items():
        cluster.apply(tiny(name, **spec))
    for name, (_, sentence) in BAD.items():
        status = cluster.wait_ended(name, 120)
        assert status.phase is Phase.FAILED
        failure = status.last_failure
        assert failure is not None
        assert failure.category is Category.USER, failure
        assert re.search(sentence, failure.message), failure.message
        assert "\n" not in failure.message
        failed = next(c for c in status.conditions if c.type == "Failed")
        assert failed.message == failure.message
        assert len(cluster.pods(name)) == 1
        assert "Traceback" not in cluster.kubectl("logs", "-l", f"olivine.dev/job={name}", "--tail=-1")


def test_deleting_a_job_takes_its_children_with_it(cluster: Cluster, calm: FineTuneJobStatus) -> None:
    cluster.kubectl("delete", "ftj", "calm", "--wait=true")
    wait_for(
        "no children",
        lambda: not cluster.get("jobs,pods,configmaps", "-l", "olivine.dev/job=calm")["items"],
        seconds=60,
    )


def test_rows_of_ones_own_are_put_into_the_store(tmp_path: Path) -> None:
    def put(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tools.put", str(path)], cwd=ROOT, capture_output=True, text=True, check=False)

    rows = tmp_path / "own-rows.jsonl"
    rows.write_text('{"phrase": "ha", "tone": "amused"}\n')
    assert put(rows).stdout == "s3://olivine/data/own-rows.jsonl\n"
    assert bytes(s3("olivine").get("data/own-rows.jsonl").bytes()) == rows.read_bytes()
    missing = put(tmp_path / "none.jsonl")
    assert missing.returncode == 2
    assert "there is no such file" in missing.stderr


def test_the_demo_teaches_the_model_the_tone_of_a_phrase_and_never_falls_silent() -> None:
    # The README's first command, but for the cluster, which is up: apply, follow, show.
    demo = subprocess.Popen(
        [sys.executable, "tools/demo.py"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        silences = watch_until(lambda: demo.poll() is not None, Cluster("team-a"))
        output, _ = demo.communicate(timeout=800)
    finally:
        demo.kill()
    print(output)
    assert demo.returncode == 0, output
    accuracy = re.search(r"^accuracy +([\d.]+) +([\d.]+)$", output, re.MULTILINE)
    assert accuracy, output
    assert float(accuracy[1]) < 0.5  # the base model picks among six labels
    assert float(accuracy[2]) >= 0.85
    # What a person sees in `kubectl get ftj -w` moves at least every 10 seconds while the job runs: a POST every 2, a write every 5.
    # With both cores busy one POST may be lost.
    assert len(silences) > 5
    *others, longest = sorted(silences)
    assert max(others) <= 10, silences
    assert longest <= 20, silences


def watch_until(ended: Callable[[], bool], cluster: Cluster) -> list[float]:
    """Seconds between two lines of `kubectl get ftj -w` while the job runs, until `ended`."""
    watch = cluster.popen("get", "ftj", "-w", "--no-headers")
    times: list[float] = []

    def read() -> None:
        assert watch.stdout is not None
        for line in watch.stdout:
            if line.split()[1:2] == ["Running"]:
                times.append(time.monotonic())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        wait_for("the end of the demo", ended, seconds=800, every=1)
    finally:
        watch.terminate()
        watch.wait()
        reader.join()
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def storage_prefix(status: FineTuneJobStatus) -> str:
    """The key under which a run keeps its objects, without scheme and bucket."""
    assert status.storage_uri is not None
    return status.storage_uri.removeprefix("s3://").split("/", 1)[1]


def download(bucket: str, prefix: str, folder: Path) -> None:
    """Every object below a prefix into a folder."""
    store = s3(bucket)
    folder.mkdir(parents=True, exist_ok=True)
    for page in store.list(prefix):
        for entry in page:
            (folder / Path(entry["path"]).name).write_bytes(bytes(store.get(entry["path"]).bytes()))
