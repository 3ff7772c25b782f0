"""The loss that training.loss asks for, around a model."""

from typing import Any

from torch import nn

from olivine_api.parameters import Plugin
from olivine_trainer.losses.own import OwnLoss
from olivine_trainer.losses.tokens import token_loss
from olivine_trainer.modeling.forward import SummedLoss
from olivine_trainer.plugins import OwnClass


def make_loss(asked: Plugin | None, own: OwnClass | None, model: nn.Module, causal: Any, *, split_head: bool) -> SummedLoss:
    """`own` is the user's class where `asked` names one."""
    if own is not None:
        return OwnLoss(model, causal, split_head=split_head, own=own)
    return SummedLoss(model, causal, split_head=split_head, token_loss=token_loss(asked))
