"""Several ranks as one: real processes, real sockets, torch's own collectives, a real S3; faults at drawn moments."""

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine_api.exit_codes import ExitCode
from olivine_api.reasons import Reason
from olivine_api.status import Overrides, Snapshot, TerminationMessage
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.evaluation.loss import dealt
from olivine_trainer.loop.claim import open_run
from olivine_trainer.storage.head import take_attempt
from olivine_trainer.storage.store import Store
from olivine_trainer.world.place import Place
from olivine_trainer.world.world import World
from tests.unit.trainer.faulty import (
    FarApart,
    LingerAfterPublishing,
    NoRoomFor,
    NoRoomToMove,
    NoteEvaluatedRows,
    SignalIn,
    SlowSteps,
)
from tests.unit.trainer.ranks import Rank, Ranks
from tests.unit.trainer.support import make_job, tone_rows, write_rows

pytestmark = pytest.mark.timeout(300)

STEPS = 8
PLAIN: dict[str, Any] = {"method__lora__dropout": 0.0, "training__evalBatchSize": 2}


@dataclass(frozen=True)
class Bench:
    """Where the runs of this module live."""

    s3: Any
    model: Path
    rows: Path
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        return {
            "OLIVINE_STORAGE_AWS_ACCESS_KEY_ID": self.s3.key,
            "OLIVINE_STORAGE_AWS_SECRET_ACCESS_KEY": self.s3.secret,
            "OLIVINE_STORAGE_AWS_ENDPOINT_URL": self.s3.endpoint,
        }

    def job(self, name: str, **changes: Any) -> Any:
        """Two ranks make its effective batch of 8: 2 rows x 2 micro-batches x 2."""
        return make_job(self.model, self.rows, f"s3://bucket/world/{name}", **changes)

    def adapter(self, end: TerminationMessage) -> bytes:
        assert end.snapshot is not None
        weights = Store(self.s3.access(end.snapshot.artifacts[0].uri)).get("adapter_model.safetensors")
        assert weights is not None
        return weights.data


@pytest.fixture(scope="module")
def bench(s3: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("world")
    return Bench(s3, tiny_model, write_rows(folder / "rows.jsonl", tone_rows(24)), folder)


@pytest.fixture
def ranks(bench: Bench, tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path / "ranks", bench.environ)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def calm(bench: Bench) -> Iterator[TerminationMessage]:
    """Two ranks that nothing disturbs."""
    ranks = Ranks(bench.folder / "calm", bench.environ)
    yield ranks.run(bench.job("calm"))[0].end()
    ranks.close()


@pytest.fixture(scope="module")
def plain(bench: Bench) -> Iterator[Snapshot]:
    """Two calm ranks without dropout: what other divisions of the batch must come to."""
    ranks = Ranks(bench.folder / "plain", bench.environ)
    yield _snapshot(ranks.run(bench.job("plain", **PLAIN))[0])
    ranks.close()


def _snapshot(rank: Rank) -> Snapshot:
    snapshot = rank.end().snapshot
    assert snapshot is not None
    return snapshot


def _losses(snapshot: Snapshot) -> list[float]:
    assert [point.step for point in snapshot.curve] == list(range(1, STEPS + 1))
    return [point.train_loss or 0.0 for point in snapshot.curve]


def _same_training(one: Snapshot, other: Snapshot) -> None:
    """Rounding alone tells them apart: the same rows a step, each counted once."""
    # The first step's gradient sees the same weights; AdamW then amplifies rounding where a gradient is nearly zero.
    np.testing.assert_allclose(_losses(one)[:1], _losses(other)[:1], rtol=5e-6)
    np.testing.assert_allclose(_losses(one), _losses(other), rtol=1e-4)
    assert one.resolved.effective_batch_size == other.resolved.effective_batch_size == 8
    assert one.progress.trained_tokens == other.progress.trained_tokens


def test_two_ranks_are_one(bench: Bench, ranks: Ranks, plain: Snapshot) -> None:
    changes = {"training__gradientAccumulationSteps": 4}
    one = _snapshot(ranks.run(bench.job("one", **(PLAIN | changes)), 1)[0])
    _same_training(one, plain)
    assert (one.resolved.world_size, plain.resolved.world_size) == (1, 2)
    # Three batches of two rows for two ranks: one of them has none left in the second round.
    assert plain.baseline["evalLoss"] == pytest.approx(one.baseline["evalLoss"], rel=1e-6)
    assert plain.metrics["evalLoss"] == pytest.approx(one.metrics["evalLoss"], rel=1e-4)
    assert plain.metrics["accuracy"] == one.metrics["accuracy"]


@pytest.mark.parametrize("batches", range(8))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_batch_of_an_evaluation_is_one_ranks_and_all_have_as_many_rounds(batches: int, size: int) -> None:
    starts = range(0, 4 * batches, 4)
    dealt_out = [list(dealt(starts, World(Place(rank, rank, size, "127.0.0.1", 0)))) for rank in range(size)]
    assert sorted(start for rounds in dealt_out for _, start in rounds if start is not None) == list(starts)
    assert len({len(rounds) for rounds in dealt_out}) == 1
    assert all(rounds[-1][0] == batches for rounds in dealt_out if rounds)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other_and_both_end_in_the_same_bytes(
    bench: Bench, ranks: Ranks, calm: TerminationMessage, victim: int
) -> None:
    step = random.randrange(1, STEPS)
    where = f"rank {victim} killed in step {step}"
    job = bench.job(f"killed-{victim}")
    first = ranks.start(job, faults={victim: SignalIn(step)})
    assert first[victim].code() == -signal.SIGKILL, where
    other = first[1 - victim]
    assert other.code(30) == ExitCode.PEER_LOST, other.log  # its grace is 5 s, a collective waits 5 min
    assert (other.end().reason, other.end().attempt) == (Reason.PEER_LOST, 1)
    assert f"rank {victim}" in other.end().message
    second = ranks.run(job)
    snapshot = _snapshot(second[0])
    # A checkpoint that rank 0's death found on its way is none; where it lives, it arrives.
    newest = 3 * (step // 3)
    assert snapshot.resumed_from_step in ({newest or None, newest - 3 or None} if victim == 0 and newest else {newest or None}), (
        where
    )
    assert bench.adapter(second[0].end()) == bench.adapter(calm), where
    assert calm.snapshot is not None
    assert snapshot.metrics == calm.snapshot.metrics, where
    assert snapshot.curve == calm.snapshot.curve, where
    assert [rank.end().attempt for rank in second] == [2, 2]  # one incident, one attempt


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_of_either_rank_in_any_step_changes_no_byte(
    bench: Bench, ranks: Ranks, calm: TerminationMessage, victim: int
) -> None:
    for step in range(STEPS):
        job = bench.job(f"any-{victim}-{step}")
        for rank in ranks.start(job, faults={victim: SignalIn(step)}):
            rank.code()
        assert bench.adapter(ranks.run(job)[0].end()) == bench.adapter(calm), f"rank {victim} killed in step {step}"


@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_to_one_rank_is_a_checkpoint_of_all(bench: Bench, ranks: Ranks, calm: TerminationMessage, asked: int) -> None:
    job = bench.job(f"asked-{asked}")
    first = ranks.start(job, faults={asked: SignalIn(4, signal.SIGTERM)})
    assert [rank.code() for rank in first] == [ExitCode.INTERRUPTED] * 2, "\n".join(rank.log for rank in first)
    assert [(rank.end().reason, rank.end().step) for rank in first] == [(Reason.INTERRUPTED, 4)] * 2
    assert "Traceback" not in first[0].log + first[1].log
    second = ranks.run(job)
    snapshot = _snapshot(second[0])
    assert (snapshot.resumed_from_step, snapshot.lost_steps) == (4, 0)
    assert bench.adapter(second[0].end()) == bench.adapter(calm)


@pytest.mark.parametrize(("rank", "says"), [(0, "waiting for the other ranks"), (1, "calling rank 0")])
def test_a_rank_that_waits_for_the_others_goes_at_once_when_it_is_asked(bench: Bench, ranks: Ranks, rank: int, says: str) -> None:
    (waiting,) = ranks.start(bench.job("waiting"), only=[rank])
    waiting.wait_for(says)
    waiting.kill(signal.SIGTERM)
    assert waiting.code(20) == ExitCode.INTERRUPTED, waiting.log
    assert waiting.end().attempt is None  # nothing was begun


def test_a_rank_that_dies_after_the_publish_is_not_missed(bench: Bench, ranks: Ranks, tmp_path: Path) -> None:
    """Its pod is replaced, to wait for nobody: it finds the end in the run's record."""
    linger = LingerAfterPublishing(tmp_path)
    job = bench.job("late-death", training__maxSteps=2, checkpoint__everySteps=10)
    first = ranks.start(job, faults={0: linger})
    deadline = time.monotonic() + 60
    while not linger.published.exists():
        assert time.monotonic() < deadline, first[0].log
        time.sleep(0.02)
    first[1].kill()
    assert first[1].code() == -signal.SIGKILL
    linger.go.touch()
    assert first[0].code() == 0, first[0].log
    (again,) = ranks.start(job, only=[1])
    assert again.code(30) == 0, again.log
    assert (again.end().reason, again.end().attempt) == (Reason.PUBLISHED, 1)
    assert bench.adapter(again.end()) == bench.adapter(first[0].end())
    assert "imports took" not in again.log


def test_rank_0_that_dies_after_the_publish_leaves_the_end_to_the_other(bench: Bench, ranks: Ranks, tmp_path: Path) -> None:
    linger = LingerAfterPublishing(tmp_path)
    first = ranks.start(bench.job("leader-death", training__maxSteps=2, checkpoint__everySteps=10), faults={0: linger})
    deadline = time.monotonic() + 60
    while not linger.published.exists():
        assert time.monotonic() < deadline, first[0].log
        time.sleep(0.02)
    first[0].kill()
    assert first[1].code() == 0, first[1].log
    assert first[1].end().reason == Reason.PUBLISHED


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_ranks_keeps_the_effective_batch(bench: Bench, ranks: Ranks, plain: Snapshot, size: int) -> None:
    """Kueue admitted fewer pods, or somebody changed pods.count: 8 rows a step are divided among those that are there."""
    job = bench.job(f"resized-{size}", **PLAIN)
    for rank in ranks.start(job, faults={1: SignalIn(4)}):
        rank.code()
    snapshot = _snapshot(ranks.run(job, size)[0])
    assert (snapshot.resumed_from_step, snapshot.resolved.world_size) == (3, size)
    _same_training(snapshot, plain)


@pytest.mark.parametrize("on_host", [False, True], ids=["of the device", "of the host"])
def test_memory_that_runs_out_on_one_rank_halves_the_micro_batch_on_all(
    bench: Bench, ranks: Ranks, plain: Snapshot, on_host: bool
) -> None:
    """In the second micro-batch of the second step: the step is repeated from its start, no row is counted twice."""
    done = ranks.run(bench.job(f"memory-{on_host}", **PLAIN), faults={1: NoRoomFor(2, calls=3, on_host=on_host)})
    _same_training(_snapshot(done[0]), plain)
    for rank in done:
        (told,) = [line for line in rank.lines() if "smaller micro-batches" in line["message"]]
        assert (told["microBatch"], "step 2 is repeated" in told["message"]) == (1, True)


def test_an_evaluation_computes_fewer_rows_at_once_too_after_memory_ran_out(bench: Bench, ranks: Ranks, tmp_path: Path) -> None:
    seen = tmp_path / "rows"
    job = bench.job("evaluated", training__evalBatchSize=4, training__maxSteps=2, training__gradientAccumulationSteps=4)
    ranks.run(job, 1, faults={0: NoteEvaluatedRows(seen, NoRoomFor(2))})
    assert seen.read_text().split() == ["4", "2"]  # of the base model before, of the tuned one after


def test_memory_too_small_for_one_row_ends_the_run_with_peak_and_limit(bench: Bench, ranks: Ranks) -> None:
    started = ranks.start(bench.job("too-small", **PLAIN), faults={1: NoRoomFor(1)})
    assert [rank.code() for rank in started] == [ExitCode.OUT_OF_MEMORY] * 2, started[0].log
    message = started[1].end().message
    assert message.startswith("CUDA out of memory. Tried to allocate")
    assert "with one row at a time" in message
    assert "batchSize" not in message  # it cannot be lowered any more


def test_memory_that_runs_out_elsewhere_ends_the_run_as_such(bench: Bench, ranks: Ranks) -> None:
    started = ranks.start(bench.job("no-room"), faults={1: NoRoomToMove()})
    assert [rank.code() for rank in started] == [ExitCode.PEER_LOST, ExitCode.OUT_OF_MEMORY], started[1].log
    assert "can't allocate memory" in started[1].end().message
    assert "rank 1 (tone-1) ended: OutOfMemory: " in started[0].end().message


def test_the_smallest_override_holds_for_all_ranks(bench: Bench, ranks: Ranks, plain: Snapshot) -> None:
    """The kubelet brings the new overrides.json to one pod before the other."""
    smaller = Overrides(batch_size=1, gradient_accumulation_steps=4)
    done = ranks.run(bench.job("overridden", **PLAIN), overrides={1: smaller})
    _same_training(_snapshot(done[0]), plain)
    assert all("the micro-batch is smaller than specified" in rank.log for rank in done)


def test_a_users_mistake_is_told_by_the_rank_that_found_it(bench: Bench, ranks: Ranks) -> None:
    job = bench.job("mistake", data__template={"prompt": "{phrse}", "completion": "{tone}"})
    started = ranks.start(job, one_pod=True)
    assert [rank.code() for rank in started] == [ExitCode.DATA, ExitCode.PEER_LOST]
    assert "rank 0 (127.0.0.1) ended: ColumnMissing: " in started[1].end().message


def test_a_run_superseded_by_a_zombies_successor_writes_nothing_more(bench: Bench, ranks: Ranks) -> None:
    """Another attempt takes the head while both ranks train: both stop, and it costs the job no second attempt."""
    job = bench.job("superseded", training__maxSteps=400, checkpoint__everySteps=20)
    started = ranks.start(job, faults={rank: SlowSteps(0.02) for rank in (0, 1)})
    started[0].wait_for("step 3/400")
    run = open_run(job, bench.environ).run
    take_attempt(run)
    assert started[0].code() == ExitCode.STORAGE, started[0].log
    assert started[0].end().reason == Reason.SUPERSEDED
    assert started[1].code() == ExitCode.PEER_LOST, started[1].log
    assert not [item.key for item in run.list("artifacts")]


def test_ranks_that_are_further_apart_than_a_collective_waits_lose_one_another_only_in_a_step(bench: Bench, ranks: Ranks) -> None:
    """A slow disk under one pod, long answers on one rank, a store that is away while rank 0 notes the baseline."""
    apart = {0: FarApart(4, recording=6), 1: FarApart(4, loading=6, answering=6)}
    ranks.run(bench.job("apart", training__maxSteps=2), faults=apart)


def test_more_processes_than_devices_are_told_before_nccl_chokes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    channel: Any = object()  # never reached
    with pytest.raises(
        ConfigurationError, match=r"process 2 of this pod, which has 1 CUDA device: one process a device, so write 1"
    ):
        World(Place(1, 1, 2, "127.0.0.1", 0), channel).start_group()
