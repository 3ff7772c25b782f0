"""PID 1: real processes where it matters, and the judgement over a worker's death as a function of what is left."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from olivine_api.exit_codes import Category, ExitCode
from olivine_api.names import ENV_CPU_LIMIT, ENV_LEADER_HOST, ENV_STATUS_URL, RENDEZVOUS_PORT
from olivine_api.reasons import Reason
from olivine_api.status import Progress, Snapshot, Stage, TerminationMessage, World
from olivine_trainer.cgroup import MemoryCgroup, find_memory_cgroup
from olivine_trainer.cli.environment import threads, worker_environment
from olivine_trainer.cli.manifest import read_manifest, read_mounted_job
from olivine_trainer.cli.placement import Placement
from olivine_trainer.cli.restarts import Restarts
from olivine_trainer.cli.team import Death, Team
from olivine_trainer.cli.verdict import decide
from olivine_trainer.errors import ConfigurationError, PeerLostError
from olivine_trainer.reporting.board import WorkerFiles, write_atomically
from tests.unit.trainer.pid1 import Trainer
from tests.unit.trainer.support import make_job, tone_rows, write_rows


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
    os.kill(trainer.workers()[0], signal.SIGKILL)
    code, message = trainer.end(20)
    assert code == 1  # neither 137, which would blame the container, nor 20: nothing was killed for memory
    assert (message.category, message.reason) == (Category.INFRASTRUCTURE, Reason.POD_FAILED)
    assert "SIGKILL" in message.message
    assert message.snapshot is not None
    assert message.snapshot.attempt == 1


def test_sigterm_saves_a_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
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
    trainer.process.send_signal(signal.SIGTERM)
    code, message = trainer.end(20)
    assert code == ExitCode.INTERRUPTED
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


def _decide(files: WorkerFiles, code: int, *, for_memory: bool = False, asked: bool = False) -> tuple[int, TerminationMessage]:
    """The end of a pod with one worker."""
    death = Death(0, code, for_memory=for_memory)
    end = decide([death], {0: files}, leads=True, memory="peak 1023 MiB, limit 1024 MiB", asked_to_go=asked)
    return end.code, end.message


@pytest.mark.parametrize(
    ("code", "for_memory", "asked", "exit_code", "reason"),
    [
        (-9, True, False, 20, Reason.OUT_OF_MEMORY),
        (-9, False, False, 1, Reason.POD_FAILED),
        (-9, True, True, 20, Reason.OUT_OF_MEMORY),
        (-11, False, False, 1, Reason.POD_FAILED),
        (-15, False, True, 40, Reason.INTERRUPTED),
        (-15, False, False, 1, Reason.POD_FAILED),
        (3, False, False, 3, Reason.POD_FAILED),
        (0, False, False, 1, Reason.POD_FAILED),
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
    tmp_path: Path, code: int, for_memory: bool, asked: bool, exit_code: int, reason: Reason
) -> None:
    found, message = _decide(_leave(tmp_path, step=12), code, for_memory=for_memory, asked=asked)
    assert (found, message.reason, message.category) == (exit_code, reason, Category.INFRASTRUCTURE)
    assert (message.step, message.attempt) == (12, 1)
    assert message.snapshot is not None
    if reason is Reason.OUT_OF_MEMORY:
        assert "peak 1023 MiB, limit 1024 MiB" in message.message


def test_a_worker_that_could_speak_is_believed(tmp_path: Path) -> None:
    said = TerminationMessage(category=Category.USER, reason=Reason.DATA_EMPTY, message="no rows")
    assert _decide(_leave(tmp_path, end=said), 11) == (11, said)


_LOST = (31, Reason.PEER_LOST)
_ASKED = (40, Reason.INTERRUPTED)
_OWN = (11, Reason.DATA_EMPTY)
_DONE = (0, Reason.PUBLISHED)


@pytest.mark.parametrize(
    ("deaths", "asked", "expected"),
    [
        ([_LOST, _LOST], False, _LOST),
        ([_LOST, _OWN], False, _OWN),
        ([_OWN, (30, Reason.SUPERSEDED)], False, _OWN),
        ([_LOST, "killed for memory"], False, (20, Reason.OUT_OF_MEMORY)),
        ([_LOST, "killed"], False, (1, Reason.POD_FAILED)),
        ([_LOST, "killed by us"], False, _LOST),
        ([_ASKED, _LOST], False, _ASKED),
        ([_LOST, _LOST], True, _ASKED),
        ([_ASKED, _OWN], True, _OWN),
        (["killed", _DONE], False, _DONE),
    ],
    ids=[
        "both lost a peer in another pod",
        "one had a reason of its own",
        "the first reason counts",
        "memory",
        "a crash",
        "one hung and was ended",
        "one was asked to go, the other only saw it leave",
        "a pod that was asked to go loses its peers",
        "an error while the pod was asked to go",
        "the run was published all the same",
    ],
)
def test_the_first_worker_with_a_reason_of_its_own_speaks_for_the_pod(
    tmp_path: Path, deaths: list[Any], asked: bool, expected: tuple[int, Reason]
) -> None:
    files = {rank: WorkerFiles(tmp_path, rank) for rank in (0, 1)}
    seen: list[Death] = []
    for rank, death in enumerate(deaths):
        if isinstance(death, str):
            seen.append(Death(rank, -9, for_memory="memory" in death, by_us="us" in death))
            continue
        code, reason = death
        snapshot = Snapshot(attempt=4, pod=f"rank {rank}", progress=Progress(stage=Stage.TRAINING))
        said = TerminationMessage(category=None, reason=reason, message="so it is", attempt=4, snapshot=snapshot)
        files[rank].write_end(said)
        seen.append(Death(rank, code))
    end = decide(seen, files, leads=True, memory="", asked_to_go=asked)
    assert (end.code, end.message.reason, end.message.attempt) == (*expected, 4)
    if expected != _DONE and deaths[0] not in ("killed", "killed by us"):
        assert end.message.snapshot is not None
        assert end.message.snapshot.pod == "rank 0"  # it alone has the whole story
    other = decide(seen, files, leads=False, memory="", asked_to_go=asked)
    assert (other.code, other.message.attempt, other.message.snapshot) == (end.code, 4, None)


def _team(*codes: str, cgroup: MemoryCgroup | None = None, **waits: float) -> Team:
    """Workers that run these lines of Python."""
    ready = "import os, signal, sys, time\n"
    return Team({rank: subprocess.Popen([sys.executable, "-c", ready + code]) for rank, code in enumerate(codes)}, cgroup, **waits)


def test_a_worker_that_outlives_the_others_is_asked_and_then_killed() -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    hearing = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(40)); time.sleep(60)"
    # The first ends only after the others have set their handlers.
    team = _team("time.sleep(1); sys.exit(11)", hearing, deaf, ask_after=0.5, kill_after=0.5)
    assert team.wait() == [Death(0, 11), Death(1, 40), Death(2, -9, by_us=True)]


def test_a_kill_for_memory_is_told_from_other_kills(tmp_path: Path) -> None:
    """The counter may have risen before, for a process of a life that is over."""
    cgroup = _cgroup(tmp_path, 5)
    assert _team("os.kill(os.getpid(), 9)", cgroup=cgroup).wait() == [Death(0, -9)]
    team = _team("os.kill(os.getpid(), 9)", "time.sleep(1); os.kill(os.getpid(), 9)", cgroup=cgroup)
    _cgroup(tmp_path, 6)
    assert team.wait() == [Death(0, -9, for_memory=True), Death(1, -9)]


def test_workers_start_again_three_times_without_a_new_checkpoint() -> None:
    restarts = Restarts()
    assert [restarts.allow(31, None) for _ in range(4)] == [True, True, True, False]
    restarts = Restarts()
    assert [restarts.allow(31, step) for step in (None, 3, 3, 3, 6, 6, 6, 6)] == [True] * 7 + [False]
    assert not restarts.allow(1, 9)
    assert not restarts.allow(40, 9)


def test_ranks_follow_the_pods_index() -> None:
    world = World(pods=3, processes_per_pod=2)
    placement = Placement.find(world, {"JOB_COMPLETION_INDEX": "2", ENV_LEADER_HOST: "tone-1-0.tone-1"})
    assert (placement.size, list(placement.ranks), placement.leads) == (6, [4, 5], False)
    port = placement.meeting_port()
    assert port == RENDEZVOUS_PORT
    environ = worker_environment({}, Path("/scratch"), placement, rank=5, port=port)
    assert {name: environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")} == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "6",
        "MASTER_ADDR": "tone-1-0.tone-1",
        "MASTER_PORT": "29500",
    }
    assert Placement.find(World(), {}).leader_host == "127.0.0.1"
    with pytest.raises(ConfigurationError, match="counts 3 pods, but OLIVINE_LEADER_HOST is not set"):
        Placement.find(world, {})
    with pytest.raises(PeerLostError, match=r"index 3, but world\.json counts 3 pods"):
        Placement.find(world, {"JOB_COMPLETION_INDEX": "3", ENV_LEADER_HOST: "x"})


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


def test_threads_follow_the_pods_limit_and_are_shared() -> None:
    usable = len(os.sched_getaffinity(0))
    assert threads({ENV_CPU_LIMIT: "1"}, 1) == 1
    assert threads({}, 1) == usable
    assert threads({ENV_CPU_LIMIT: "0"}, 1) == usable  # no limit
    assert threads({ENV_CPU_LIMIT: "64"}, 1) == usable  # the kubelet gives the node's CPUs where no limit is set
    assert threads({}, 64) == 1
    placement = Placement.find(World(), {})
    environ = worker_environment({"HOME": "/x"}, Path("/scratch/run"), placement, rank=0, port=1)
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


def test_each_worker_copies_a_models_code_to_a_place_of_its_own() -> None:
    """transformers copies it file by file: a sibling imported half of it."""
    placement = Placement.find(World(pods=1, processes_per_pod=2), {})
    places = {
        worker_environment({}, Path("/scratch/run"), placement, rank=rank, port=1)["HF_MODULES_CACHE"] for rank in placement.ranks
    }
    assert len(places) == 2


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:80", "-1", "70000", "x"])
def test_a_port_that_is_none_is_told(value: str) -> None:
    """Kubernetes sets MASTER_PORT to a URL where a Service is called `master`; a user's Secret may hold anything."""
    with pytest.raises(ConfigurationError, match=r"MASTER_PORT is '.*', it must be a number: .* pods\.envFrom"):
        Placement.find(World(), {"MASTER_PORT": value})
