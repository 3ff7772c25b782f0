"""Before training: a loss of the user's own must be finite, differentiable, blind to what is masked, and a sum.

All of it is tried on the model's outputs of a few rows, cut and padded here, so that the model's own rounding plays no part.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.losses.outputs import IGNORED, Outputs, OwnBatch, OwnPairs
from olivine_trainer.losses.own import OwnLoss, called
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import Batch
from olivine_trainer.plugins import OwnClass

PROBE_ROWS = 4
_TOLERANCE = 1e-4  # of the loss: sums of fp32 in another order differ by far less
_PADDING = 3  # positions that are added to try whether padding counts


def check_conformance(loss: OwnLoss, batch: Batch) -> None:
    """Raise ConfigurationError that says which check failed, and by how much. Needs a batch of at least one row."""
    loss.eval()
    with torch.no_grad():
        outputs, seen = loss.see(batch)
        sides = outputs if isinstance(outputs, tuple) else (outputs,)
        sides = tuple(Outputs(side.last_hidden_state, side.attention_mask, _constant(side.logits)) for side in sides)
    check_own(loss.own, loss.criterion, sides, seen)


def check_own(own: OwnClass, criterion: nn.Module, sides: Sequence[Outputs], batch: OwnBatch | OwnPairs) -> None:
    """The checks, on outputs of one side or of two."""

    def value(some: Sequence[Outputs], of: OwnBatch | OwnPairs) -> torch.Tensor:
        return called(own, criterion, tuple(some) if isinstance(of, OwnPairs) else some[0], of).sum()

    leaves = [_leaf(side) for side in sides]
    whole = value([side for side, _ in leaves], batch)
    if not torch.isfinite(whole):
        raise _refused(own, f"is not finite: it gave {float(whole):g} for {_rows(batch)} rows of the training data")
    _check_same(own, whole, value(sides, batch))
    _check_gradient(own, whole, [found for _, found in leaves], batch)
    _check_padding(own, whole, value([_padded(side) for side in sides], _padded_batch(batch)))
    if _rows(batch) > 1:
        parts = [value([_cut(side, rows) for side in sides], _cut_batch(batch, rows)) for rows in (slice(0, 1), slice(1, None))]
        _check_sum(own, whole, parts)


def _check_same(own: OwnClass, whole: torch.Tensor, again: torch.Tensor) -> None:
    if _differ(whole, again):
        raise _refused(
            own,
            f"gave {float(whole):g} and then {float(again):g} for the same batch in evaluation: no resumed run could be exact;"
            " draw nothing at random unless self.training",
        )


def _check_gradient(own: OwnClass, whole: torch.Tensor, leaves: Sequence[dict[str, torch.Tensor]], batch: Any) -> None:
    inputs = [tensor for found in leaves for tensor in found.values()]
    if not whole.requires_grad:
        raise _refused(
            own, "is not differentiable: what it returns does not depend on the outputs (detach, argmax or item cut it off)"
        )
    with own.blamed("cannot be differentiated"):
        gradients: list[torch.Tensor | None] = list(torch.autograd.grad(whole, inputs, allow_unused=True))
    reached = [gradient for gradient in gradients if gradient is not None]
    if not reached:
        raise _refused(own, "is not differentiable: no gradient reaches the model's outputs")
    wrong = sum(int((~torch.isfinite(gradient)).sum()) for gradient in reached)
    if wrong:
        raise _refused(
            own,
            f"has a gradient that is not finite in {wrong} of {sum(gradient.numel() for gradient in reached)} places:"
            " keep square roots, logarithms and divisions away from 0",
        )
    if isinstance(batch, OwnBatch):
        for tensor, gradient in zip(inputs, gradients, strict=True):
            if gradient is not None and tensor is leaves[0].get("logits"):
                _check_masked(own, gradient, batch.labels)


def _check_masked(own: OwnClass, gradient: torch.Tensor, labels: torch.Tensor) -> None:
    counts = nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)
    largest = float((gradient.abs().amax(-1) * ~counts).max())
    if largest > 0:
        raise _refused(
            own,
            f"counts masked positions: logits that predict no learned token have a gradient of up to {largest:.3g};"
            " logits[:, p] predicts labels[:, p + 1], and a label of -100 does not count",
        )


def _check_padding(own: OwnClass, whole: torch.Tensor, padded: torch.Tensor) -> None:
    if _differ(whole, padded):
        raise _refused(
            own,
            f"counts masked positions: it gave {float(whole):g}, and {float(padded):g} with {_PADDING} positions of padding more;"
            " leave out where batch.attention_mask is 0 (outputs.pooled does)",
        )


def _check_sum(own: OwnClass, whole: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
    if _differ(whole, sum(parts, torch.zeros_like(whole))):
        told = " + ".join(f"{float(part):g}" for part in parts)
        raise _refused(
            own,
            f"changes where a batch is split for accumulation: all rows together gave {float(whole):g}, in two parts {told}:"
            " return the sum over the rows, or a value for each row, never their mean",
        )


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not bool((one - other).abs() <= _TOLERANCE * torch.maximum(one.abs(), other.abs()) + 1e-7)


def _refused(own: OwnClass, why: str) -> ConfigurationError:
    return own.refused(why, Reason.LOSS_NOT_CONFORMING)


def probe_rows(examples: Sequence[Example]) -> list[Example]:
    """A few short rows, of different lengths where there are such: padding is part of the batch then."""
    by_length = {len(example.ids): example for example in reversed(examples) if example.weight}
    chosen = [by_length[length] for length in sorted(by_length)[:PROBE_ROWS]]
    rest = [example for example in examples if example.weight and all(example is not one for one in chosen)]
    return chosen + rest[: max(0, 2 - len(chosen))]


def _rows(batch: OwnBatch | OwnPairs) -> int:
    return len(batch.label) if isinstance(batch, OwnPairs) else len(batch.input_ids)


def _constant(logits: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda _: logits


def _leaf(side: Outputs) -> tuple[Outputs, dict[str, torch.Tensor]]:
    """Outputs whose tensors gradients reach, and those tensors; logits only once they are asked for."""
    hidden = side.last_hidden_state.detach().clone().requires_grad_()
    logits = side.logits.detach().clone().requires_grad_()
    return Outputs(hidden, side.attention_mask, _constant(logits)), {"hidden": hidden, "logits": logits}


def _padded(side: Outputs) -> Outputs:
    """With padding on the right whose outputs are what no row has."""
    hidden = torch.cat([side.last_hidden_state, 7 - 3 * side.last_hidden_state[:, :1].expand(-1, _PADDING, -1)], 1)
    logits = torch.cat([side.logits, 7 - 3 * side.logits[:, :1].expand(-1, _PADDING, -1)], 1)
    return Outputs(hidden, nn.functional.pad(side.attention_mask, (0, _PADDING)), _constant(logits))


def _padded_batch(batch: OwnBatch | OwnPairs) -> OwnBatch | OwnPairs:
    if isinstance(batch, OwnPairs):
        return OwnPairs(_padded_rows(batch.left), _padded_rows(batch.right), batch.label)
    return _padded_rows(batch)


def _padded_rows(batch: OwnBatch) -> OwnBatch:
    ids = torch.cat([batch.input_ids, batch.input_ids[:, :1].expand(-1, _PADDING)], 1)
    mask = nn.functional.pad(batch.attention_mask, (0, _PADDING))
    return OwnBatch(ids, mask, nn.functional.pad(batch.labels, (0, _PADDING), value=IGNORED))


def _cut(side: Outputs, rows: slice) -> Outputs:
    return Outputs(side.last_hidden_state[rows], side.attention_mask[rows], _constant(side.logits[rows]))


def _cut_batch(batch: OwnBatch | OwnPairs, rows: slice) -> OwnBatch | OwnPairs:
    if isinstance(batch, OwnPairs):
        return OwnPairs(_cut_rows(batch.left, rows), _cut_rows(batch.right, rows), batch.label[rows])
    return _cut_rows(batch, rows)


def _cut_rows(batch: OwnBatch, rows: slice) -> OwnBatch:
    return OwnBatch(batch.input_ids[rows], batch.attention_mask[rows], batch.labels[rows])
