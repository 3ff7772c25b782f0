"""A contrastive loss over pairs of texts (Hadsell, Chopra & LeCun 2006): alike ones together, others at least `margin` apart."""

import torch
from torch import nn


class Contrastive(nn.Module):
    """`label` is 1 for two texts that mean the same, 0 for others."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, outputs, batch):
        """`outputs` and `batch` of pairs; the sum."""
        left, right = outputs
        squared = (left.pooled - right.pooled).square().mean(dim=-1)
        # The root of 0 has no slope: texts that are equal would give no number as a gradient.
        short = torch.relu(self.margin - (squared + 1e-6).sqrt())
        return (batch.label * squared + (1 - batch.label) * short.square()).sum()
