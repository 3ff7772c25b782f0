"""training.dataLoaderWorkers: rows are made by other processes, ahead of the step that needs them, and not one byte is another."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine_api.data import Data
from olivine_api.reasons import Reason
from olivine_trainer.data.ahead import AHEAD, RowsAhead
from olivine_trainer.data.batches import TrainingRows
from olivine_trainer.data.grouping import GroupedRows
from olivine_trainer.data.prepare import Prepared, load_rows, prepare_examples
from olivine_trainer.data.rows import RowFiles
from olivine_trainer.data.workers import Workers
from olivine_trainer.errors import ConfigurationError, DataError
from olivine_trainer.modeling.example import Example
from olivine_trainer.storage.ranges import LocalRange
from tests.support.models import make_tokenizer
from tests.support.wait import wait_for
from tests.unit.trainer.faulty import Held
from tests.unit.trainer.ranks import Ranks
from tests.unit.trainer.support import adapter_bytes, kill_in_step, make_job, run_job, tone_rows, write_rows

TEMPLATE = {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"}
NOISE = [{"name": "word_dropout", "probability": 0.5, "parameters": {"share": 0.4}}, {"name": "case_noise", "probability": 0.5}]
KINDS: dict[str, dict[str, Any]] = {
    "in memory": {},
    "augmented": {"augmentation": NOISE},
    "streamed": {"streaming": True},
    "streamed and augmented": {"streaming": True, "augmentation": NOISE},
}


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    workers = Workers(2)
    yield workers
    workers.close()


def prepared(rows: Path, tokenizer: Any, workers: Workers, **changes: Any) -> Prepared:
    data = Data.model_validate({"train": {"uri": "file:///rows.jsonl"}, "template": TEMPLATE} | changes)
    loaded = load_rows(data, [LocalRange(rows)] if data.streaming else RowFiles.of(rows), None, seed=0)
    return prepare_examples(data, loaded, tokenizer, stop_ids=frozenset({1}), workers=workers)


def same(some: Sequence[Example], others: Sequence[Example]) -> bool:
    return [one.number for one in some] == [one.number for one in others] and all(
        np.array_equal(one.ids, other.ids) and np.array_equal(one.learned, other.learned)
        for one, other in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_with_any_number_of_workers(two: Workers, tokenizer: Any, tmp_path: Path, kind: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(200))
    alone = prepared(rows, tokenizer, Workers(), **KINDS[kind])
    by_workers = prepared(rows, tokenizer, two, **KINDS[kind])
    assert by_workers.resolved == alone.resolved
    assert same(by_workers.some, alone.some)
    ahead = RowsAhead(GroupedRows(by_workers.train, total_steps=40), total_steps=40)
    plain = GroupedRows(alone.train, total_steps=40)
    # In turn, one step again (memory ran out), and from another place (as a resumed run does).
    for step in (0, 1, 2, 2, 3, 17, 18, 39):
        assert same(ahead.batch(5, step, 7), plain.batch(5, step, 7)), step
    ahead.close()


def test_a_row_that_is_too_long_is_told_the_same(two: Workers, tokenizer: Any, tmp_path: Path) -> None:
    """The first of two such rows, as without workers."""
    rows = tone_rows(300)
    rows[150]["phrase"] = rows[280]["phrase"] = "ha " * 200
    path = write_rows(tmp_path / "rows.jsonl", rows)
    told: list[str] = []
    for workers in (Workers(), two):
        with pytest.raises(DataError, match=r"row 151 of data\.train has") as caught:
            prepared(path, tokenizer, workers, maxLength=64)
        told.append(caught.value.message)
    assert told[0] == told[1]


def test_a_worker_that_is_gone_costs_no_row(tokenizer: Any, tmp_path: Path) -> None:
    """Killed by the kernel for memory, say: the training process makes the rows itself."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(200))
    alone = prepared(rows, tokenizer, Workers(), streaming=True)
    others = row_workers()
    workers = Workers(1)
    by_workers = prepared(rows, tokenizer, workers, streaming=True)
    (pid,) = row_workers() - others
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    for step in range(3):
        assert same(by_workers.train.batch(5, step, 7), alone.train.batch(5, step, 7))
    workers.close()


def test_a_tokenizer_that_cannot_leave_its_process_is_told(two: Workers, tmp_path: Path) -> None:
    own = make_tokenizer()
    own.of_this_process = threading.Lock()
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(4))
    with pytest.raises(ConfigurationError, match=r"training\.dataLoaderWorkers is 2, but this model's tokenizer .*lock.*: write 0"):
        prepared(rows, own, two)


def row_workers(parent: int | None = None) -> set[int]:
    """The processes that make rows for `parent`, default: for this one."""
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, fields = (folder / "cmdline").read_bytes(), (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"olivine_trainer.data.row_worker" in command and int(fields[1]) == (parent or os.getpid()) and fields[0] != "Z":
            found.add(int(folder.name))
    return found


class Counted:
    """Rows that say which batches were made; the one of step `bad` cannot be."""

    def __init__(self, bad: int | None = None) -> None:
        self.made: list[int] = []
        self.bad = bad
        self.changed = threading.Condition()

    def __len__(self) -> int:
        return 100

    def batch(self, seed: int, step: int, size: int) -> list[Example]:
        del seed, size
        with self.changed:
            self.made.append(step)
            self.changed.notify_all()
        if step == self.bad:
            raise DataError(Reason.ROW_TOO_LONG, f"of step {step}")
        return []

    def wait_for(self, step: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: step in self.made, timeout=30), self.made


def test_coming_batches_are_made_while_a_step_trains_but_none_beyond_the_last() -> None:
    rows = Counted()
    ahead = RowsAhead(rows, total_steps=AHEAD + 3)
    ahead.batch(0, 0, 8)
    rows.wait_for(AHEAD)  # nobody has asked for it yet
    for step in range(1, AHEAD + 3):
        ahead.batch(0, step, 8)
    ahead.close()
    assert rows.made == list(range(AHEAD + 3)), "each once, in turn"


def test_what_goes_wrong_ahead_is_told_by_its_own_step() -> None:
    rows: TrainingRows = Counted(bad=3)
    ahead = RowsAhead(rows, total_steps=10)
    for step in range(3):
        ahead.batch(0, step, 8)
    with pytest.raises(DataError, match="of step 3"):
        ahead.batch(0, 3, 8)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def changes(**more: Any) -> dict[str, Any]:
    streamed = {"data__validationFraction": None, "data__stratifyBy": None, "data__streaming": True}
    labels = {"data__labels": {"field": "tone", "names": ["joy", "anger", "fear"]}, "data__augmentation": NOISE}
    return streamed | labels | {"training__groupByLength": True} | more


def test_a_run_with_workers_ends_in_the_same_bytes_resumed_too(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    calm = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/a", **changes()), tmp_path / "1")
    before, others = set(threading.enumerate()), row_workers()
    job = make_job(tiny_model, rows, f"file://{tmp_path}/b", **changes(training__dataLoaderWorkers=2))
    kill_in_step(job, 5, tmp_path / "2")
    resumed = run_job(job, tmp_path / "3")
    assert resumed.snapshot.resumed_from_step == 3
    assert adapter_bytes(resumed) == adapter_bytes(calm)
    assert resumed.snapshot.curve == calm.snapshot.curve
    assert set(threading.enumerate()) <= before, "what was begun for the run has ended with it"
    assert row_workers() == others


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path / "ranks", {})
    yield ranks
    ranks.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.full)])
def test_no_worker_outlives_its_process(ranks: Ranks, tiny_model: Path, tmp_path: Path, number: signal.Signals) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", **changes(training__dataLoaderWorkers=2))
    held = Held(4, tmp_path / "go")
    asked = ranks.start(job, 1, faults={0: held})[0]
    wait_for("step 4", held.reached.exists, seconds=90)
    assert asked.process.pid is not None
    workers = row_workers(asked.process.pid)
    assert len(workers) == 2
    asked.kill(number)
    held.go.touch()
    assert asked.code() == (40 if number is signal.SIGTERM else -number), asked.log
    wait_for("the workers are gone", lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=30)
    resumed = ranks.run(job, 1)[0].end().snapshot
    assert resumed is not None
    assert number is signal.SIGKILL or resumed.resumed_from_step == 4


def test_a_wrong_row_that_a_worker_meets_while_training_is_the_datas_fault(ranks: Ranks, tiny_model: Path, tmp_path: Path) -> None:
    # The first 64 rows are looked at before training.
    rows = write_rows(tmp_path / "rows.jsonl", [*tone_rows(96), {"phrase": "ha " * 99, "tone": "joy"}])
    ends: list[tuple[int, str, int | None]] = []
    for workers in (0, 2):
        more = changes(training__dataLoaderWorkers=workers, training__maxSteps=40, training__groupByLength=None)
        job = make_job(tiny_model, rows, f"file://{tmp_path}/{workers}", **more)
        rank = ranks.start(job, 1)[0]
        ends.append((rank.code(), rank.end().message, rank.end().step))
    assert ends[0] == ends[1]
    code, message, step = ends[0]
    assert (code, message) == (
        11,
        "row 97 of data.train has 107 tokens, data.maxLength is 64: raise data.maxLength, shorten the row, or set data.onOverflow to"
        " Truncate or Drop",
    )
    assert step, "the seed puts the row behind the first step"
