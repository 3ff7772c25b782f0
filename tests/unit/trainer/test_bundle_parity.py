"""What a graph's distance from PyTorch leads to."""

import re

import pytest

from olivine_api.adapterbundle import Verify
from olivine_trainer.bundle.parity import Parity, shortfall


@pytest.mark.parametrize(
    ("difference", "top1", "greedy", "said"),
    [
        (1e-3, 1.0, 1.0, None),
        (2e-3, 1.0, 1.0, r"by 0\.002 in a logit, verify\.maxLogitDifference is 0\.001: .*allow it there if it is rounding"),
        (float("nan"), 1.0, 1.0, "by nan in a logit"),
        (1e-4, 0.99, 1.0, r"1e-04|0\.0001, two tokens .* lower verify\.minGreedyAgreement$"),
        (1e-4, 1.0, 0.9, r"answers 90\.0% of the greedy tokens .* give other verify\.prompts"),
    ],
)
def test_a_graph_that_misses_what_is_asked_says_which_field_to_write(
    difference: float, top1: float, greedy: float, said: str | None
) -> None:
    found = shortfall(Parity(difference, top1, greedy, mean_kl=0.0), Verify())
    assert (found is None) == (said is None)
    assert said is None or (found is not None and re.search(said, found))
