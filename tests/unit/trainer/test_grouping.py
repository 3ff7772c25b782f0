"""Rows of a length together: a function of (seed, step), each row once an epoch, less padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine_trainer.data.batches import TokenisedRows, TrainingRows
from olivine_trainer.data.grouping import WINDOW, GroupedRows, by_length
from olivine_trainer.modeling.example import Example
from tests.unit.trainer.support import make_job, run_job, tone_rows, write_rows

BATCH = 8


def _rows(count: int) -> TokenisedRows:
    """Lengths as text has them: most rows are short, some are not."""
    lengths = 4 + np.random.default_rng(5).lognormal(2.5, 0.8, count).astype(int)
    return TokenisedRows([Example(np.full(size, row, np.int32), np.ones(size, np.bool_), 0) for row, size in enumerate(lengths)])


def _drawn(rows: TrainingRows, steps: range, seed: int = 3) -> list[list[int]]:
    return [[int(example.ids[0]) for example in rows.batch(seed, step, BATCH)] for step in steps]


def _padding(rows: TrainingRows, steps: int) -> float:
    """Share of a padded batch that is padding."""
    batches = [[len(example.ids) for example in rows.batch(3, step, BATCH)] for step in range(steps)]
    return 1 - sum(map(sum, batches)) / sum(BATCH * max(batch) for batch in batches)


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 50])
def test_a_run_sees_the_rows_that_it_would_see(steps: int) -> None:
    """The last window is cut short with the run: an epoch has each row once."""
    plain, grouped = _rows(100), GroupedRows(_rows(100), total_steps=steps)
    one, other = ([row for batch in _drawn(rows, range(steps)) for row in batch] for rows in (plain, grouped))
    assert sorted(one) == sorted(other)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    """A resume asks in the middle, of a new object, and backwards."""
    whole = _drawn(GroupedRows(_rows(100), total_steps=50), range(50))
    other = GroupedRows(_rows(100), total_steps=50)
    assert [_drawn(other, range(step, step + 1))[0] for step in reversed(range(50))] == whole[::-1]
    assert _drawn(other, range(50), seed=4) != whole


def test_steps_come_in_an_order_that_length_does_not_decide() -> None:
    grouped = GroupedRows(_rows(1000), total_steps=10 * WINDOW)
    longest = [
        [max(len(row.ids) for row in grouped.batch(3, WINDOW * window + step, BATCH)) for step in range(WINDOW)]
        for window in range(10)
    ]
    assert all(one != sorted(one) and one != sorted(one, reverse=True) for one in longest)
    assert len({tuple(np.argsort(one, kind="stable")) for one in longest}) > 1


def test_padding_falls_by_far() -> None:
    plain, grouped = _padding(_rows(1000), 100), _padding(GroupedRows(_rows(1000), total_steps=100), 100)
    # 0.17 of 0.55: what is left is the tail, the few rows that are much longer than any other of their window.
    assert plain > 0.5
    assert grouped < 0.2


def test_the_longest_come_first_and_equals_keep_their_order() -> None:
    rows = [Example(np.full(size, row, np.int32), np.ones(size, np.bool_), 0) for row, size in enumerate([2, 5, 2, 7, 5])]
    assert [int(row.ids[0]) for row in by_length(rows)] == [3, 1, 4, 0, 2]


def test_a_grouped_run_trains_on_as_many_tokens(tiny_model: Path, tmp_path: Path) -> None:
    """Two whole epochs of 18 rows in steps of 4: nine steps."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    seen: dict[bool, Any] = {}
    for grouped in (False, True):
        changes: dict[str, Any] = {"training__maxSteps": None, "training__epochs": 2, "training__groupByLength": grouped}
        job = make_job(tiny_model, rows, f"file://{tmp_path}/{grouped}", **changes)
        seen[grouped] = run_job(job, tmp_path / f"scratch-{grouped}").snapshot
    assert seen[True].progress.trained_tokens == seen[False].progress.trained_tokens
    assert seen[True].progress.step == seen[False].progress.step == 9
    assert seen[True].curve != seen[False].curve
