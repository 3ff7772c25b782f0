"""Gates: what is asked for, what is not reached, and a run that ends without being published."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivine_api.evaluation import Gate
from olivine_api.exit_codes import Category, ExitCode
from olivine_api.reasons import Reason
from olivine_api.status import Snapshot
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.evaluation.gates import require_measured, unmet_gates
from olivine_trainer.storage.records import Published
from tests.unit.trainer.ranks import Ranks
from tests.unit.trainer.support import make_job, run_job, tone_rows, write_rows

MEASURED = {"evalLoss": True, "accuracy": False, "testAccuracy": False}
BASE = {"evalLoss": 2.0, "accuracy": 0.5}

CASES: dict[str, tuple[dict[str, Any], dict[str, float], list[str]]] = {
    "reached": ({"metric": "accuracy", "min": 0.9}, {"accuracy": 0.9}, []),
    "too low": ({"metric": "accuracy", "min": 0.9}, {"accuracy": 0.82}, ["accuracy is 0.82, not at least 0.9"]),
    "too high": ({"metric": "eval_loss", "max": 1}, {"evalLoss": 1.5}, ["evalLoss is 1.5, not at most 1"]),
    "better than the base": ({"metric": "eval_loss", "improvesOnBase": True}, {"evalLoss": 1.9}, []),
    "as good as the base": (
        {"metric": "eval_loss", "improvesOnBase": True},
        {"evalLoss": 2.0},
        ["evalLoss is 2, not lower than the base model's 2"],
    ),
    "worse than the base": (
        {"metric": "accuracy", "improvesOnBase": True},
        {"accuracy": 0.4},
        ["accuracy is 0.4, not higher than the base model's 0.5"],
    ),
    "a base that gave no number": ({"metric": "test_accuracy", "improvesOnBase": True}, {"testAccuracy": 0.1}, []),
    "no number": ({"metric": "accuracy", "min": 0}, {}, ["accuracy is not a number"]),
    "two bounds": (
        {"metric": "accuracy", "min": 0.9, "improvesOnBase": True},
        {"accuracy": 0.4},
        ["accuracy is 0.4, not at least 0.9", "accuracy is 0.4, not higher than the base model's 0.5"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_gate_says_what_is_not_reached(case: str) -> None:
    gate, tuned, told = CASES[case]
    assert unmet_gates([Gate.model_validate(gate)], tuned, BASE, MEASURED) == told


def test_a_gate_over_nothing_is_refused_before_training(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing is measured without rows"):
        require_measured([Gate(metric="accuracy", min=0.5)], {})
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", evaluation__gates=[{"metric": "bleu", "min": 20}])
    with pytest.raises(ConfigurationError) as caught:
        run_job(job, tmp_path / "scratch")
    assert "evaluation.gates[0].metric is bleu, which is not measured: measured are evalLoss, accuracy, f1" in caught.value.message


@pytest.fixture
def ranks(tmp_path: Path, tiny_model: Path) -> Iterator[Ranks]:
    started = Ranks(tmp_path, {"PATH": ""})
    yield started
    for rank in started.started:
        if rank.process.is_alive():
            rank.process.kill()


def test_an_unmet_gate_keeps_the_artifact_and_ends_the_run_for_good(tmp_path: Path, tiny_model: Path, ranks: Ranks) -> None:
    """Pod 0 tells, with all numbers; pod 1 ends quietly, so that one failure ends the Job. Pods that come later repeat the end."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    gates = [{"metric": "accuracy", "min": 2}, {"metric": "eval_loss", "improvesOnBase": True}]
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", evaluation__gates=gates)
    ends: list[Snapshot] = []
    for _ in range(2):
        zero, one = ranks.start(job)
        assert (zero.code(), one.code()) == (ExitCode.GATE_UNMET, ExitCode.DONE), zero.log + one.log
        end = zero.end()
        assert (end.category, end.reason, end.step, end.attempt) == (Category.USER, Reason.GATE_UNMET, 8, 1)
        assert end.snapshot is not None
        ends.append(end.snapshot)
        value, artifact = end.snapshot.metrics["accuracy"], end.snapshot.artifacts[0].uri
        assert f"accuracy is {value:.6g}, not at least 2; the artifact is kept at {artifact}, not published" in end.message
    kept, value = ends[-1].artifacts[0], ends[-1].metrics["accuracy"]
    run = Path(kept.uri.removeprefix("file://")).parents[1]
    assert (run / "artifacts" / kept.digest / "adapter_model.safetensors").exists()
    record = Published.model_validate_json((run / "run" / "published.json").read_bytes())
    assert record.unmet == [f"accuracy is {value:.6g}, not at least 2"]
    assert not list(run.parents[1].rglob("index/*")), "what is not published is not offered to others"
    assert list((run / "checkpoints").iterdir()), "a run that was not published keeps its checkpoints"


def test_a_met_gate_changes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", evaluation__gates=[{"metric": "accuracy", "min": 0}])
    published = run_job(job, tmp_path / "scratch")
    assert published.unmet == []
    assert len(list((tmp_path / "runs" / "team" / "index").iterdir())) == 1
