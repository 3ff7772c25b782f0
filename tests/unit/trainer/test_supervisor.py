"""PID 1: real processes where it matters, and the judgement over a worker's death as a function of what is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from olivine_trainer.cli.cgroup import MemoryCgroup, find_memory_cgroup

from olivine_api.exit_codes import Category, ExitCode
from olivine_api.names import ENV_CPU_LIMIT, ENV_STATUS_URL
from olivine_api.reasons import Reason
from olivine_api.status import Progress, Snapshot, Stage, TerminationMessage
from olivine_trainer.cli.environment import threads, worker_environment
from olivine_trainer.cli.manifest import read_manifest, read_mounted_job
from olivine_trainer.cli.supervisor import _Forwarder, judge
from olivine_trainer.early_signals import EarlySignals
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.reporting.board import WorkerFiles, write_atomically
from tests.unit.trainer.support import make_job, tone_rows, write_rows

# A termination log of the test's own: /dev/termination-log is the pod's.
_MAIN = """
import sys
from pathlib import Path
from olivine_trainer.cli.manifest import read_manifest
from olivine_trainer.cli.supervisor import supervise
sys.exit(supervise(read_manifest(Path(sys.argv[1]), namespace=None, name=None, uid="u1"), Path(sys.argv[2])))
"""


class Trainer:
    """`olivine-train --spec` as a process of its own."""

    def __init__(self, tmp_path: Path, job: Any, **environ: str) -> None:
        self.log = tmp_path / "log"
        self.termination = tmp_path / "termination-log"
        self.termination.touch()
        manifest = tmp_path / "job.yaml"
        manifest.write_text(
            json.dumps(
                {
                    "apiVersion": "olivine.dev/v1alpha1",
                    "kind": "FineTuneJob",
                    "metadata": {"name": "tone", "namespace": "team"},
                    "spec": job.spec.to_json_dict(),
                }
            )
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(manifest), str(self.termination)],
                stderr=log,
                stdout=log,
                env={**os.environ, "OLIVINE_CPU_LIMIT": "1", "TMPDIR": str(tmp_path), **environ},
            )

    def wait_for(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def worker(self) -> int:
        """The pid of its child."""
        deadline = time.monotonic() + 20
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (found := children.read_text().split()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return int(found[0])

    def end(self, seconds: float = 60) -> tuple[int, TerminationMessage]:
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        return code, TerminationMessage.model_validate_json(self.termination.read_bytes())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def test_a_users_mistake_is_one_line_and_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(6))
    template = {"prompt": "{phrse}", "completion": "{tone}"}
    trainer = Trainer(tmp_path, make_job(tmp_path / "no-model", rows, f"file://{tmp_path}/runs", data__template=template))
    code, message = trainer.end()
    assert code == ExitCode.DATA
    assert (message.category, message.reason) == (Category.USER, Reason.COLUMN_MISSING)
    assert message.message.endswith("which the rows of data.train do not have; they have: phrase, tone")
    assert message.snapshot is not None
    assert message.snapshot.attempt == 1
    errors = [line for line in trainer.lines() if line["level"] == "error"]
    assert [line["message"] for line in errors] == [message.message]
    assert (errors[0]["namespace"], errors[0]["name"], errors[0]["uid"]) == ("team", "tone", "u1")
    assert "Traceback" not in trainer.log.read_text()
    assert "imports took" not in trainer.log.read_text()
    assert not list(tmp_path.glob("olivine-*"))  # its scratch folder is gone


def test_a_killed_worker_still_has_a_last_word(tmp_path: Path, tiny_model: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    trainer = Trainer(tmp_path, make_job(tiny_model, rows, f"file://{tmp_path}/runs"))
    trainer.wait_for("attempt 1 of")
    os.kill(trainer.worker(), signal.SIGKILL)
    code, message = trainer.end(20)
    assert code == 1  # neither 137, which would blame the container, nor 20: nothing was killed for memory
    assert (message.category, message.reason) == (Category.INFRASTRUCTURE, Reason.POD_FAILED)
    assert "SIGKILL" in message.message
    assert message.snapshot is not None
    assert message.snapshot.attempt == 1


def test_sigterm_saves_a_checkpoint_within_seconds(tmp_path: Path, tiny_model: Path) -> None:
    """An eviction, with a status endpoint that is out of reach: training does not mind."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    job = make_job(
        tiny_model,
        rows,
        f"file://{tmp_path}/runs",
        training__maxSteps=2000,
        checkpoint__everySteps=100_000,
        tracking__tensorboard=True,
        data__validationFraction=None,
        data__stratifyBy=None,
    )
    trainer = Trainer(tmp_path, job, **{ENV_STATUS_URL: "http://127.0.0.1:9"})
    trainer.wait_for("step 5/2000", 120)
    asked = time.monotonic()
    trainer.process.send_signal(signal.SIGTERM)
    code, message = trainer.end(20)
    assert code == ExitCode.INTERRUPTED
    assert time.monotonic() - asked < 10
    assert message.reason == Reason.INTERRUPTED
    assert message.snapshot is not None
    assert message.snapshot.checkpoint is not None
    assert message.snapshot.checkpoint.step == message.step
    assert message.snapshot.checkpoint.step >= 5
    run = tmp_path / "runs" / "team" / "tone" / "u1"
    assert (run / "checkpoints" / f"step-{message.step:08d}-a0001" / "manifest.json").exists()
    assert list((run / "attempts" / "0001" / "tensorboard").iterdir())
    warnings = [line["message"] for line in trainer.lines() if line["level"] == "warning"]
    assert sum("status endpoint is out of reach" in line for line in warnings) == 1
    assert "Traceback" not in trainer.log.read_text()


def _leave(folder: Path, *, end: TerminationMessage | None = None, step: int | None = None) -> WorkerFiles:
    files = WorkerFiles(folder, 0)
    if step is not None:
        snapshot = Snapshot(attempt=1, progress=Progress(stage=Stage.TRAINING, step=step))
        write_atomically(files.snapshot, snapshot.model_dump_json(by_alias=True, exclude_none=True))
    if end is not None:
        files.write_end(end)
    return files


def _cgroup(folder: Path, kills: int) -> MemoryCgroup:
    (folder / "events").write_text(f"low 0\noom 3\noom_kill {kills}\n")
    (folder / "limit").write_text("1073741824\n")
    (folder / "peak").write_text("1073741000\n")
    return MemoryCgroup(events=folder / "events", limit=folder / "limit", peak=folder / "peak")


@pytest.mark.parametrize(
    ("code", "kills", "asked", "exit_code", "reason"),
    [
        (-9, 1, False, 20, Reason.OUT_OF_MEMORY),
        (-9, 0, False, 1, Reason.POD_FAILED),
        (-9, 1, True, 20, Reason.OUT_OF_MEMORY),
        (-11, 1, False, 1, Reason.POD_FAILED),
        (-15, 0, True, 40, Reason.INTERRUPTED),
        (-15, 0, False, 1, Reason.POD_FAILED),
        (3, 0, False, 3, Reason.POD_FAILED),
        (0, 0, False, 1, Reason.POD_FAILED),
    ],
    ids=[
        "killed for memory",
        "killed otherwise",
        "killed for memory while asked to go",
        "segfault",
        "asked to go before its handler stood",
        "somebody else's SIGTERM",
        "unknown code",
        "done without a word",
    ],
)
def test_a_death_is_judged_by_what_is_left(  # noqa: PLR0917  (a table)
    tmp_path: Path, code: int, kills: int, asked: bool, exit_code: int, reason: Reason
) -> None:
    files = _leave(tmp_path, step=12)
    end = judge(code, files, _cgroup(tmp_path, kills), kills_before=0, asked_to_go=asked)
    assert (end.code, end.message.reason, end.message.category) == (exit_code, reason, Category.INFRASTRUCTURE)
    assert end.message.step == 12
    assert end.message.snapshot is not None
    if reason is Reason.OUT_OF_MEMORY:
        assert "peak 1023 MiB, limit 1024 MiB" in end.message.message


def test_kills_before_this_pod_do_not_count(tmp_path: Path) -> None:
    end = judge(-9, _leave(tmp_path), _cgroup(tmp_path, 5), kills_before=5, asked_to_go=False)
    assert end.code == 1


def test_a_worker_that_could_speak_is_believed(tmp_path: Path) -> None:
    said = TerminationMessage(category=Category.USER, reason=Reason.DATA_EMPTY, message="no rows")
    end = judge(11, _leave(tmp_path, end=said), None, kills_before=0, asked_to_go=False)
    assert (end.code, end.message) == (11, said)


def test_both_versions_of_cgroups_are_read(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    v1 = tmp_path / "v1"
    (v1 / "memory" / "pod").mkdir(parents=True)
    (v1 / "memory" / "pod" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    own.write_text("9:name=systemd:/x\n4:memory:/pod\n0::/\n")
    found = find_memory_cgroup(v1, own)
    assert found is not None
    assert found.oom_kills() == 2
    v2 = tmp_path / "v2"  # in a container: its own cgroup is the root of the mount
    v2.mkdir()
    (v2 / "memory.events").write_text("oom_kill 4\n")
    own.write_text("0::/kubepods/pod\n")
    found = find_memory_cgroup(v2, own)
    assert found is not None
    assert found.oom_kills() == 4
    assert find_memory_cgroup(tmp_path / "none", own) is None


def test_a_signal_before_the_supervisor_stood_reaches_the_worker() -> None:
    """PID 1 has no default handler: a SIGTERM while it imported was lost, and the pod killed after its grace."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    sent: list[int] = []

    class Worker:
        def send_signal(self, number: int) -> None:
            sent.append(number)

    try:
        early = EarlySignals()
        early.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert early.asked
        forwarder = _Forwarder(early)
        forwarder.attach(Worker())  # pyright: ignore[reportArgumentType]
        assert (forwarder.asked, sent) == (True, [signal.SIGTERM])
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_threads_follow_the_pods_limit_and_are_shared() -> None:
    usable = len(os.sched_getaffinity(0))
    assert threads({ENV_CPU_LIMIT: "1"}, 1) == 1
    assert threads({}, 1) == usable
    assert threads({ENV_CPU_LIMIT: "0"}, 1) == usable  # no limit
    assert threads({ENV_CPU_LIMIT: "64"}, 1) == usable  # the kubelet gives the node's CPUs where no limit is set
    assert threads({}, 64) == 1
    environ = worker_environment({"HOME": "/x"}, Path("/scratch/run"), local_rank=0, processes=1)
    assert (environ["RANK"], environ["LOCAL_RANK"], environ["WORLD_SIZE"], environ["OMP_WAIT_POLICY"]) == ("0", "0", "1", "PASSIVE")
    assert environ["HF_HOME"].startswith("/scratch/run/")


def test_manifests_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    manifest = tmp_path / "phrase-tone.yaml"
    spec = """
  task: Generation
  model: {uri: s3://models/m}
  data: {train: {uri: s3://data/rows.jsonl}, template: {prompt: "{a}", completion: "yes"}}
  method: {type: LoRA}
  training: {maxSteps: 3, learningRate: 1e-4}
  storage: {uri: s3://runs/x}
"""
    manifest.write_text(
        f"apiVersion: olivine.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {{name: tone, namespace: team-a}}\nspec:{spec}"
    )
    job = read_manifest(manifest, namespace=None, name="other", uid=None)
    assert job.spec.training.learning_rate == 1e-4  # YAML 1.1 reads a string
    assert (job.identity.namespace, job.identity.name) == ("team-a", "other")
    assert job.identity.uid.startswith("local-")
    manifest.write_text("\n".join(line[2:] for line in spec.splitlines()))
    bare = read_manifest(manifest, namespace=None, name=None, uid="u")
    assert (bare.identity.namespace, bare.identity.name, bare.identity.uid) == ("default", "phrase-tone", "u")
    assert bare.spec == job.spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: Pod\napiVersion: v1\n", "is a v1 Pod"),
        ("a: [", "is not valid YAML"),
        ("- 1\n", "holds no FineTuneJob"),
        ("a: 1\n---\nb: 1\n", "holds 2 documents"),
        ("task: Generation\ntraning: {}\n", "traning: there is no such field; model: Field required"),
    ],
)
def test_a_manifest_that_is_wrong_is_told_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        read_manifest(tmp_path / "job.yaml", namespace=None, name=None, uid=None)


def test_nothing_mounted_points_at_the_other_way(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="outside a pod write olivine-train --spec FILE"):
        read_mounted_job(tmp_path)


def test_pid_1_stays_light() -> None:
    """It lives beside the training in the same memory limit; importing torch in it would cost 300 MB and 5 seconds."""
    code = (
        "import sys, olivine_trainer.cli.manifest, olivine_trainer.cli.supervisor; heavy = {'torch', 'transformers', 'peft', 'numpy', 'pyarrow', 'obstore'};"
        " print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
