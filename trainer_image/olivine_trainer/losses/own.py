"""The user's loss: their class called with the model's outputs and the batch, what it returns summed."""

from typing import Any

import torch
from torch import nn

from olivine_trainer.losses.outputs import Outputs, OwnBatch, OwnPairs, model_outputs, own_batch
from olivine_trainer.modeling.forward import Batch, SummedLoss
from olivine_trainer.plugins import OwnClass


class OwnLoss(SummedLoss):
    """A loss of the user's own, in training and in evaluation."""

    likelihood = False

    def __init__(self, model: nn.Module, causal: Any, *, split_head: bool, own: OwnClass) -> None:
        super().__init__(model, causal, split_head=split_head)
        self.own = own
        self.criterion = make_criterion(own)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The sum of what the user's class returns."""
        outputs, seen = self.see(batch)
        return called(self.own, self.criterion, outputs, seen).sum()

    def see(self, batch: Batch) -> "tuple[Outputs | tuple[Outputs, Outputs], OwnBatch | OwnPairs]":
        """What the class is called with."""
        outputs = model_outputs(self.causal, batch, split_head=self.split_head)
        if batch.right is None or batch.pair_labels is None:
            return outputs, own_batch(batch)
        right = model_outputs(self.causal, batch.right, split_head=self.split_head)
        pairs = OwnPairs(left=own_batch(batch), right=own_batch(batch.right), label=batch.pair_labels)
        return (outputs, right), pairs


def make_criterion(own: OwnClass) -> nn.Module:
    """The user's module. Raises ConfigurationError where it is none, or has weights of its own."""
    made = own.make()
    if not isinstance(made, nn.Module):
        raise own.refused("is no torch.nn.Module: write class … (torch.nn.Module) with a forward(self, outputs, batch)")
    own_weights = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
    if own_weights:
        raise own.refused(
            f"has trainable parameters of its own ({', '.join(own_weights)}), which no checkpoint keeps:"
            " make them constants, or buffers by register_buffer"
        )
    return made


def called(own: OwnClass, criterion: nn.Module, outputs: Any, batch: Any) -> torch.Tensor:
    """What the class returns: a tensor of floats. Raises ConfigurationError for anything else, and for what it raises."""
    with own.blamed("failed when it was called"):
        value = criterion(outputs, batch)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        kind = f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise own.refused(f"returns {kind}: return a tensor of floats, the sum over the rows or a value for each")
    return value.float()
