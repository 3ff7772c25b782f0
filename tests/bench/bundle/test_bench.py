"""The bench itself: its goals are tables, and a short run on a tiny model writes the whole page."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.bench.bundle.__main__ import main
from tests.bench.bundle.olive import Attempt
from tests.bench.bundle.report import Measured, render

_DECODED = {"base": 1.0, "merged": 1.0, "attention, idle": 1.0, "attention, r8 active": 1.079, "all linear, idle": 1.0}


def _measured(**changes: Any) -> Measured:
    found: dict[str, Any] = {
        "bytes": 1_020,
        "cpu": 1.0,
        "peak_bytes": 1,
        "max_logit_difference": 1e-3,
        "kl": 0.1,
        "base_kl": 0.1,
        "top1": 1.0,
        "greedy": 1.0,
    }
    values: dict[str, Any] = {
        "precision": "int8",
        "plain": {"bytes": 0},
        "bundles": {"1": found},
        "unproven": {"cpu": 1.0, "next": 0.05},
        "merged": {"bytes": 1, "cpu": 1.0, "peak_bytes": 1},
        "one_more": {"first": 100.0, "next": 5.0},
        "switch": {"call": 2.0, "token": 98.0, "load": 0.1},
        "opened": {"bundle": {"cpu": 1.0, "bytes": 1}, "merged": {"cpu": 1.0, "bytes": 1}},
        "decode": [{"seconds": _DECODED | {"all linear, r16 active": 1.119}}],
        "small_pages": [{"seconds": _DECODED}],
    }
    return Measured(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "adapter", "lost"),
    [
        ({}, 1000, []),
        ({}, 999, ["bytes"]),
        ({"one_more": {"first": 100.0, "next": 5.1}}, 1000, ["one adapter more"]),
        ({"unproven": {"cpu": 1.0, "next": 0.06}}, 1000, ["the same, both without proof"]),
        ({"switch": {"call": 2.0, "token": 99.0, "load": 0.1}}, 1000, ["a switch"]),
        ({"decode": [{"seconds": _DECODED | {"all linear, r16 active": 1.121}}]}, 1000, ["decode overhead, r16"]),
    ],
)
def test_each_goal_is_judged(changes: dict[str, Any], adapter: int, lost: list[str]) -> None:
    page = render([_measured(**changes)], {"a00": adapter}, {"machine": "here"}, [])
    rows = [line for line in page.splitlines() if line.endswith(("| kept |", "| NOT kept |"))]
    assert len(rows) == 7
    broken = [row for row in rows if row.endswith("| NOT kept |")]
    assert [row.startswith(f"| {name}") for row, name in zip(broken, lost, strict=True)] == [True] * len(lost)


def test_what_failed_is_on_the_page_with_its_words() -> None:
    page = render([_measured()], {"a00": 1000}, {}, [Attempt("olive capture-onnx-graph", 1, 12.3, 0, "ModuleNotFoundError: a|b")])
    assert "| `olive capture-onnx-graph` | 1 | 12 | 0.0 | ModuleNotFoundError: a\\|b |" in page


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_short_run_on_a_tiny_model_writes_the_page(tmp_path: Path) -> None:
    from tests.support.models import WIDE, make_tiny

    page = tmp_path / "bundle.md"
    model = make_tiny("Llama", tmp_path / "model", intermediate_size=96, **WIDE)
    assert main(["--quick", "--model", str(model), "--out", str(page)]) == 0
    text = page.read_text()
    assert "## int8" in text
    assert "## int4" in text
    rows = re.findall(r"largest logit difference of the fp32 build: .* \| (\S+) \| kept \|", text)
    assert len(rows) == 2
    assert all(float(row) < 1e-4 for row in rows)
