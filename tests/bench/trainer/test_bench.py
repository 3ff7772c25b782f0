"""The bench itself: its verdicts are tables, and a short run on a tiny model shows three equal trainings."""

from pathlib import Path

import pytest

from tests.bench.trainer.__main__ import main
from tests.bench.trainer.contestants import Run
from tests.bench.trainer.report import Row, curve_distance, render


def _run(name: str, *, tokens: int = 1, losses: tuple[float, ...] = (2.0, 1.0), peak: int = 100 << 20, share: float = 0.0) -> Run:
    return Run(name, 10.0, 5.0, tokens=tokens, peak_bytes=peak, losses=list(losses), saving_share=share)


@pytest.mark.parametrize(
    ("name", "other", "says"),
    [
        ("A", _run("TRL", tokens=1000), "1.30x tokens per CPU-second (goal 1.3x: reached), 1.00x memory (no more memory)"),
        ("A-all", _run("TRL", tokens=1001), "(goal 1.3x: missed)"),
        ("B", _run("TRL", tokens=700), "1.86x tokens per CPU-second (goal 1.8x: reached)"),
        ("A", _run("TRL", tokens=1000, peak=50 << 20), "2.00x memory (MORE memory)"),
        ("A", _run("TRL", tokens=1000, losses=(2.0, 1.00009)), "9.0e-05 apart (at most 0.0001: the same training)"),
        ("A", _run("TRL", tokens=1000, losses=(2.0, 1.0002)), "NOT the same training"),
    ],
)
def test_a_verdict_says_whether_the_goal_is_reached(name: str, other: Run, says: str) -> None:
    assert says in render([Row(name, "title", [_run("Olivine", tokens=1300), other])], {"machine": "here"}, {})


def test_the_share_of_checkpoints_is_judged() -> None:
    page = render([], {}, {"LoRA, every 10 steps": _run("Olivine", share=0.035), "Full": _run("Olivine", share=0.036)})
    assert "- LoRA, every 10 steps: 3.50% (at most 3.5%: reached)" in page
    assert "- Full: 3.60% (at most 3.5%: missed)" in page


def test_curves_of_different_length_are_not_compared() -> None:
    with pytest.raises(ValueError, match="longer"):
        curve_distance([1.0], [1.0, 2.0])


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_three_train_the_same_on_a_tiny_model(tmp_path: Path) -> None:
    from tests.support.models import make_tiny_llama

    page = tmp_path / "trainer.md"
    model = make_tiny_llama(tmp_path / "model")
    asked = ["--model", str(model), "--rounds", "1", "--steps", "4", "--batch", "4", "--threads", "1", "--out", str(page)]
    assert main([*asked, "--rows", "A", "A-all", "--saving", "LoRA"]) == 0
    text = page.read_text()
    assert "LoRA, every 10 steps: " in text
    assert text.count("the same training") == 4
    assert "NOT the same training" not in text
