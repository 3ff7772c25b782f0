"""Losses of the learned tokens, each summed: the engine divides by their number, so accumulation and ranks change nothing."""

from typing import Any

import torch
from torch import nn

from olivine_api.parameters import Plugin
from olivine_api.training import BuiltInLoss
from olivine_trainer.modeling.forward import TokenLoss, cross_entropy


class LabelSmoothing:
    """Cross entropy against the label with 1 - `smoothing`, and all tokens alike with the rest (Szegedy et al. 2016)."""

    def __init__(self, smoothing: float = 0.1) -> None:
        self.smoothing = smoothing

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """`logits` [learned, vocabulary] fp32, `labels` [learned]; the sum."""
        return nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.smoothing)


class Focal:
    """Cross entropy times (1 - p) ** `gamma`: what the model knows already counts little (Lin et al. 2017)."""

    def __init__(self, gamma: float = 2.0) -> None:
        self.gamma = gamma

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """`logits` [learned, vocabulary] fp32, `labels` [learned]; the sum."""
        nll = nn.functional.cross_entropy(logits, labels, reduction="none")
        # expm1 keeps 1 - p above rounding where p is nearly 1; a power of exactly 0 has no finite slope for gamma below 1.
        unknown = (-torch.expm1(-nll)).clamp(min=torch.finfo(nll.dtype).tiny)
        return (unknown**self.gamma * nll).sum()


def token_loss(asked: Plugin | None) -> TokenLoss:
    """The built-in that training.loss names, cross entropy by default; its parameters are checked with the specification."""
    if asked is None:
        return cross_entropy
    parameters: dict[str, Any] = dict(asked.parameters or {})
    match BuiltInLoss(asked.name):
        case BuiltInLoss.CROSS_ENTROPY:
            return cross_entropy
        case BuiltInLoss.LABEL_SMOOTHING:
            return LabelSmoothing(**parameters)
        case BuiltInLoss.FOCAL:
            return Focal(**parameters)
