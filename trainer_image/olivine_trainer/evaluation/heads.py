"""Classification by a head: the label with the highest logit at the prompt's last token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from olivine_trainer.evaluation.loss import Tick
from olivine_trainer.evaluation.sharing import answered
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import collate, cross_entropy, learned_logits
from olivine_trainer.world.world import World


@dataclass(frozen=True)
class HeadScorer:
    """Asks a classifier; its examples are those of `for_a_head`."""

    classifier: Any
    texts: tuple[str, ...]
    """The labels as answers, in the order of the head's outputs."""
    pad_id: int
    device: torch.device

    def answers(self, examples: Sequence[Example], *, batch_size: int, tick: Tick, world: World) -> list[str]:
        """The best label of each row, in the order of `examples`; of equal ones the first."""
        return self.answers_and_loss(examples, batch_size=batch_size, tick=tick, world=world)[0]

    @torch.no_grad()
    def answers_and_loss(
        self, examples: Sequence[Example], *, batch_size: int, tick: Tick, world: World
    ) -> tuple[list[str], float]:
        """The answers, and the mean loss that `mean_loss` would measure: both stand in the same logits, so one forward does."""
        self.classifier.eval()
        total, rows = 0.0, 0

        def best(members: list[Example]) -> list[str]:
            nonlocal total, rows
            batch = collate(members, self.pad_id, self.device)
            logits = learned_logits(self.classifier, batch.ids, batch.mask, batch.positions, split_head=True).float()
            total += float(cross_entropy(logits, batch.labels))
            rows += batch.weight
            return [self.texts[index] for index in logits.argmax(dim=-1).tolist()]

        found = answered(examples, batch_size, best, tick=tick, world=world)
        total, rows = world.sums([total, rows])
        return found, total / max(rows, 1)
