"""Full fine-tuning by several processes, the model divided among them (FSDP2, gloo): one process's training, whoever computes it."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine_api.exit_codes import ExitCode
from olivine_api.status import Snapshot
from tests.unit.trainer.faulty import SignalIn
from tests.unit.trainer.ranks import Rank, Ranks
from tests.unit.trainer.support import make_job, tone_rows, write_rows

pytestmark = pytest.mark.timeout(600)

FULL: dict[str, Any] = {"method": {"type": "Full"}, "training__learningRate": 1e-3}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path / "ranks", {})
    yield ranks
    ranks.close()


def _snapshot(rank: Rank) -> Snapshot:
    snapshot = rank.end().snapshot
    assert snapshot is not None
    return snapshot


def _losses(snapshot: Snapshot) -> list[float]:
    return [point.train_loss or 0.0 for point in snapshot.curve]


def _weights_here(rank: Rank) -> int:
    (loaded,) = [line["weightsHere"] for line in rank.lines() if line["message"] == "the model is loaded"]
    return loaded


def test_two_ranks_with_half_a_model_each_are_one(ranks: Ranks, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Three rows a step, in micro-batches of one: in the second round rank 1 has none, and computes along in vain."""
    changes = FULL | {"training__batchSize": 1, "training__maxSteps": 6}
    one = ranks.run(make_job(tiny_model, rows, f"file://{tmp_path}/one", **changes, training__gradientAccumulationSteps=3), 1)[0]
    job = make_job(tiny_model, rows, f"file://{tmp_path}/two", **changes, training__gradientAccumulationSteps=3)
    first = ranks.start(job, 1, faults={0: SignalIn(2, signal.SIGTERM)})[
        0
    ]  # a checkpoint of one process, with its three rows a step
    assert first.code() == ExitCode.INTERRUPTED, first.log
    two = ranks.run(job)
    assert _snapshot(two[0]).resumed_from_step == 2
    # Rounding alone tells them apart; AdamW amplifies it where a gradient is nearly zero.
    np.testing.assert_allclose(_losses(_snapshot(two[0]))[:3], _losses(_snapshot(one))[:3], rtol=1e-6)
    np.testing.assert_allclose(_losses(_snapshot(two[0])), _losses(_snapshot(one)), rtol=1e-4)
    assert _snapshot(two[0]).metrics["evalLoss"] == pytest.approx(_snapshot(one).metrics["evalLoss"], rel=1e-4)
    whole = _weights_here(one)
    assert [_weights_here(rank) for rank in two] == [whole // 2, whole // 2]


def test_what_two_ranks_saved_one_goes_on_with(ranks: Ranks, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """A checkpoint does not know how many ranks wrote it: weights and both moments of every parameter."""
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", **FULL)
    calm = _snapshot(ranks.run(make_job(tiny_model, rows, f"file://{tmp_path}/calm", **FULL))[0])
    for rank in ranks.start(job, faults={0: SignalIn(4, signal.SIGTERM)}):
        assert rank.code() == ExitCode.INTERRUPTED, rank.log
    alone = _snapshot(ranks.run(job, 1)[0])
    assert alone.resumed_from_step == 4
    np.testing.assert_allclose(_losses(alone)[:5], _losses(calm)[:5], rtol=1e-6)
    np.testing.assert_allclose(_losses(alone), _losses(calm), rtol=1e-4)


def test_the_published_model_is_whole(ranks: Ranks, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    snapshot = _snapshot(ranks.run(make_job(tiny_model, rows, f"file://{tmp_path}/runs", **FULL, training__maxSteps=2))[0])
    (artifact,) = snapshot.artifacts
    assert artifact.kind == "Model"
    base, tuned = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (tiny_model, artifact.uri.removeprefix("file://"))
    )
    assert base.keys() == tuned.keys()
    assert all(0 < (tuned[name] - base[name]).abs().max() < 0.01 for name in base)  # every tensor moved, by two steps of 1e-3


def test_a_lost_rank_ends_the_other_in_the_middle_of_a_layer(ranks: Ranks, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Its part of the weights is gone: the collective fails, and the end names who is missing."""
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", **FULL)
    zero, one = ranks.start(job, faults={1: SignalIn(3)})
    assert one.code() == -signal.SIGKILL
    start = time.monotonic()
    assert zero.code() == ExitCode.PEER_LOST, zero.log
    assert time.monotonic() - start < 15
    assert "rank 1" in zero.end().message
    assert "Traceback" not in zero.log


def test_the_best_weights_of_a_divided_model_are_published(ranks: Ranks, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Early stopping puts an earlier step's weights back into every rank's part."""
    changes = FULL | {
        "training__learningRate": 0.3,
        "training__scheduler": "constant",
        "training__warmupSteps": 0,
        "training__maxSteps": 30,
        "training__earlyStopping": {"patience": 2},
        "evaluation__everySteps": 1,
        "evaluation__samples": 0,
    }
    snapshot = _snapshot(ranks.run(make_job(tiny_model, rows, f"file://{tmp_path}/runs", **changes))[0])
    assert snapshot.best is not None
    assert snapshot.best.step < snapshot.progress.step
    assert snapshot.metrics["evalLoss"] == snapshot.best.value
