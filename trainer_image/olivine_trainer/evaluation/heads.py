"""Classification by a head: the label with the highest logit at the prompt's last token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from olivine_trainer.evaluation.loss import Tick
from olivine_trainer.evaluation.sharing import answered
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import collate, learned_logits
from olivine_trainer.world.world import World


@dataclass(frozen=True)
class HeadScorer:
    """Asks a classifier; its examples are those of `for_a_head`."""

    classifier: Any
    texts: tuple[str, ...]
    """The labels as answers, in the order of the head's outputs."""
    pad_id: int
    device: torch.device

    @torch.no_grad()
    def answers(self, examples: Sequence[Example], *, batch_size: int, tick: Tick, world: World) -> list[str]:
        """The best label of each row, in the order of `examples`; of equal ones the first."""
        self.classifier.eval()

        def best(members: list[Example]) -> list[str]:
            batch = collate(members, self.pad_id, self.device)
            logits = learned_logits(self.classifier, batch.ids, batch.mask, batch.positions, split_head=True)
            return [self.texts[index] for index in logits.float().argmax(dim=-1).tolist()]

        return answered(examples, batch_size, best, tick=tick, world=world)
