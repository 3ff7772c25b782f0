"""Whole pods: real PID 1s with real workers, two pods of one process and one pod of two."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from olivine_api.exit_codes import ExitCode
from olivine_api.names import CONFIG_OVERRIDES, CONFIG_WORLD, ENV_LEADER_HOST
from olivine_api.reasons import Reason
from olivine_api.status import Overrides, TerminationMessage, World
from tests.unit.trainer.pid1 import Trainer
from tests.unit.trainer.ranks import free_port
from tests.unit.trainer.support import make_job, tone_rows, write_rows

pytestmark = pytest.mark.timeout(400)

SLOW = {"training__maxSteps": 100, "checkpoint__everySteps": 10}


def _pod(folder: Path, job: Any, index: int, port: int, *, overrides: str | None = None) -> Trainer:
    """A pod of two."""
    folder.mkdir(parents=True)
    if overrides is not None:
        (folder / CONFIG_OVERRIDES).write_text(overrides)
    (folder / CONFIG_WORLD).write_text(World(pods=2, processes_per_pod=1).model_dump_json(by_alias=True))
    environ = {"JOB_COMPLETION_INDEX": str(index), ENV_LEADER_HOST: "127.0.0.1", "MASTER_PORT": str(port)}
    return Trainer(folder, job, **environ)


def _adapter(message: TerminationMessage) -> bytes:
    assert message.snapshot is not None
    folder = Path(message.snapshot.artifacts[0].uri.removeprefix("file://"))
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_pod_that_lost_its_peer_starts_its_workers_again_in_place(tmp_path: Path, tiny_model: Path) -> None:
    """Rank 1's process is killed; its pod ends and is replaced; pod 0 stays, and both go on from the checkpoint."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", **SLOW)
    port = free_port()
    zero, one = (_pod(tmp_path / f"pod-{index}", job, index, port) for index in (0, 1))
    zero.wait_for("checkpoint saved", 120)
    os.kill(one.workers()[0], signal.SIGKILL)
    code, message = one.end(20)
    assert (code, message.reason, message.attempt) == (1, Reason.POD_FAILED, 1)
    assert message.snapshot is None  # pod 0 tells the story
    zero.wait_for("the workers of this pod start again", 20)
    # Meanwhile the operator has halved the micro-batch; the new pod sees it first.
    smaller = Overrides(batch_size=1, gradient_accumulation_steps=4).model_dump_json(by_alias=True)
    again = _pod(tmp_path / "pod-1-again", job, 1, port, overrides=smaller)
    (code, final), (other_code, other) = zero.end(120), again.end(30)
    assert (code, other_code) == (0, 0), zero.log.read_text() + again.log.read_text()
    assert (final.reason, final.attempt, other.reason, other.snapshot) == (Reason.PUBLISHED, 2, Reason.PUBLISHED, None)
    assert final.snapshot is not None
    assert final.snapshot.resumed_from_step is not None
    assert final.snapshot.resumed_from_step >= 10
    assert "the micro-batch is smaller than specified" in zero.log.read_text()
    assert final.snapshot.resolved.effective_batch_size == 8
    resumed = [line for line in zero.lines() if line["message"].startswith("attempt ")]
    assert [line["attempt"] for line in resumed] == [1, 2]  # in the same container


def test_one_pod_runs_two_processes_and_saves_when_it_is_asked_to_go(tmp_path: Path, tiny_model: Path) -> None:
    """The second pod of this test goes on, and ends in the bytes of a run that nobody interrupted."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    world = World(pods=1, processes_per_pod=2).model_dump_json(by_alias=True)

    def pod(name: str, runs: str) -> Trainer:
        job = make_job(tiny_model, rows, f"file://{tmp_path}/{runs}", **(SLOW | {"checkpoint__everySteps": 1000}))
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG_WORLD).write_text(world)
        return Trainer(tmp_path / name, job)

    first = pod("first", "runs")
    first.wait_for("step 3/100", 120)
    first.process.send_signal(signal.SIGTERM)
    code, message = first.end(30)
    assert (code, message.reason, message.attempt) == (ExitCode.INTERRUPTED, Reason.INTERRUPTED, 1)
    assert message.snapshot is not None
    assert message.snapshot.checkpoint is not None
    assert message.snapshot.checkpoint.step == message.step
    again = pod("again", "runs")
    calm = _bare(tmp_path / "calm", first.manifest, f"file://{tmp_path}/calm-runs")
    (code, final) = again.end(200)
    assert code == 0, again.log.read_text()
    assert final.snapshot is not None
    assert (final.snapshot.resumed_from_step, final.snapshot.lost_steps) == (message.step, 0)
    assert final.snapshot.resolved.world_size == 2
    assert calm.wait(200) == 0, (tmp_path / "calm.log").read_text()
    (undisturbed,) = (tmp_path / "calm-runs").glob("team/tone/u1/artifacts/*/adapter_model.safetensors")
    assert _adapter(final) == undisturbed.read_bytes()


def _bare(folder: Path, manifest: Path, storage: str) -> "subprocess.Popen[bytes]":
    """The same on a machine without a cluster, by the command line."""
    raw = json.loads(manifest.read_text())
    raw["spec"]["storage"] = {"uri": storage}
    raw["spec"]["pods"] = {"processesPerPod": 2}
    folder.with_suffix(".json").write_text(json.dumps(raw))
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "olivine_trainer", "--spec", str(folder.with_suffix(".json")), "--uid", "u1"],
            stdout=log,
            stderr=log,
            env={**os.environ, "OLIVINE_CPU_LIMIT": "1"},
        )
