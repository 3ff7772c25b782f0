"""Every cell of the support matrix trains, is measured and publishes, or is refused with its sentence."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from olivine_api.finetunejob import parse_spec
from olivine_api.status import JobIdentity, Snapshot
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.job import Job
from tests.support.matrix import DISTRIBUTIONS, Cell, cells
from tests.support.models import FAMILIES, make_tiny
from tests.unit.trainer.ranks import Ranks
from tests.unit.trainer.support import run_job, tone_rows, write_rows


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each family; `tiny_model` imports what is heavy."""
    return {family: make_tiny(family, tmp_path_factory.mktemp("family")) for family in FAMILIES}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that serve every task."""
    made: list[dict[str, Any]] = []
    for row in tone_rows(24):
        words = row["phrase"].split()
        start = len(row["phrase"]) - len(words[-1])
        span = {"start": start, "end": len(row["phrase"]), "label": "number"}
        chat = [{"role": "user", "content": row["phrase"]}, {"role": "assistant", "content": row["tone"]}]
        made.append({**row, "chat": chat, "spans": [span]})
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


@pytest.fixture(autouse=True)
def accelerate_anew() -> Iterator[None]:
    """accelerate keeps the precision for the life of its process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path / "ranks", {})
    yield ranks
    ranks.close()


def _mark(cell: Cell) -> Any:
    return pytest.param(cell, id=cell.name, marks=[] if cell.core else [pytest.mark.full])


@pytest.mark.parametrize("cell", [_mark(cell) for cell in cells()])
def test_a_cell_trains_or_is_refused_with_a_sentence(
    models: dict[str, Path], rows: Path, tmp_path: Path, ranks: Ranks, cell: Cell
) -> None:
    raw = cell.spec(f"file://{models[cell.family]}", f"file://{rows}", f"file://{tmp_path}/runs")
    refusal = cell.refusal
    if refusal is not None and "not served by this release" in refusal:
        with pytest.raises(ValidationError, match="not served by this release"):
            parse_spec(raw)
        return
    job = Job(spec=parse_spec(raw), identity=JobIdentity(namespace="team", name="cell", uid="u1", child=""))
    if refusal is not None:
        with pytest.raises(ConfigurationError) as caught:
            run_job(job, tmp_path / "scratch")
        assert caught.value.message == refusal
        return
    size = DISTRIBUTIONS[cell.distribution]
    snapshot = run_job(job, tmp_path / "scratch").snapshot if size == 1 else ranks.run(job, size)[0].end().snapshot
    assert isinstance(snapshot, Snapshot)
    assert snapshot.progress.step == 2
    assert snapshot.resolved.world_size == size
    assert snapshot.resolved.precision == cell.precision
    assert snapshot.artifacts[0].kind == ("Model" if cell.method == "Full" else "Adapter")
    assert snapshot.baseline is not None
    assert snapshot.metrics.keys() >= snapshot.baseline.keys() >= {"evalLoss"}
    assert all(math.isfinite(value) for value in snapshot.metrics.values())
    if cell.task == "Classification, Sequence":  # two steps teach a random head nothing; they do move it
        assert snapshot.metrics["evalLoss"] != snapshot.baseline["evalLoss"]
    else:
        assert snapshot.metrics["evalLoss"] < snapshot.baseline["evalLoss"]
