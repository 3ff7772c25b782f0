"""All labels as one tree of tokens behind a prompt: scored in one forward, in which each token sees its own branch alone.

77 intents behind a prompt of 30 tokens are some 300 tokens in the tree, 2,800 as rows of their own: the prompt is computed
once, and so is what labels begin with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LabelTree:
    """Nodes are the tokens of the labels, what labels share at their start only once. A label's stop token is no node."""

    tokens: npt.NDArray[np.int64]
    """[nodes]"""
    depths: npt.NDArray[np.int64]
    """[nodes]; 0 follows the prompt."""
    sees: npt.NDArray[np.bool_]
    """[nodes, nodes]; a node's own branch up to itself."""
    steps: tuple[tuple[tuple[int, int], ...], ...]
    """Of each label: (node whose logits predict it, token) for each of its tokens and its stop token; node -1 is the prompt's last."""

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]]) -> "LabelTree":
        """From the labels' tokens, each with its stop token."""
        known: dict[tuple[int, ...], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        steps: list[tuple[tuple[int, int], ...]] = []
        for label in labels:
            path = [-1]
            for length in range(1, len(label)):
                start = tuple(label[:length])
                if start not in known:
                    known[start] = len(tokens)
                    tokens.append(label[length - 1])
                    parents.append(path[-1])
                path.append(known[start])
            steps.append(tuple(zip(path, label, strict=True)))
        sees = np.eye(len(tokens), dtype=np.bool_)
        depths = np.zeros(len(tokens), dtype=np.int64)
        for node, parent in enumerate(parents):
            if parent >= 0:
                sees[node] |= sees[parent]
                depths[node] = depths[parent] + 1
        return cls(np.asarray(tokens, dtype=np.int64), depths, sees, tuple(steps))

    @property
    def size(self) -> int:
        """How many tokens it adds to a row."""
        return len(self.tokens)

    @property
    def deepest(self) -> int:
        """Positions that it needs after the prompt."""
        return int(self.depths.max()) + 1 if self.size else 0
