"""An Olivine bottleneck adapter (methods/adapter.py), read strictly."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from olivine_api.methods import Bottleneck
from olivine_trainer.bundle.adapter import SlotAdapter, check_shape, read_config, read_tensors
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.slots import Floats, Linear, Slot
from olivine_trainer.methods.adapter import CONFIG, FORMAT, WEIGHTS


def bottleneck_of(folder: Path) -> Bottleneck:
    """What its description says. Raises RejectedError where that is none of this format."""
    config = read_config(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise RejectedError(f"{CONFIG} has the format {config.get('format')!r}, this release reads {FORMAT}: train it again")
    if config.get("labels"):
        raise RejectedError(
            "it carries a classifier's head, which the graph has no place for: train it with classification.head Generative"
        )
    try:
        return Bottleneck.model_validate({name: config.get(name) for name in ("bottleneck", "activation", "placement")})
    except ValidationError as error:
        raise RejectedError(f"{CONFIG} cannot be read ({error.errors()[0]['msg']}): upload the adapter again") from None


def read_bottleneck(folder: Path, linears: Mapping[str, Linear]) -> SlotAdapter:
    """Raises RejectedError with a sentence where it is damaged or another base's."""
    spec = bottleneck_of(folder)
    found = read_tensors(folder / WEIGHTS)
    modules = sorted({name.rsplit(".", 2)[0] for name in found})
    tensors: dict[str, Floats] = {}
    slots: list[Slot] = []
    for module in modules:
        linear = linears.get(module)
        if linear is None or (slot := linear.slot(spec.activation)) is None:
            raise RejectedError(f"it follows {module}, which this base does not have: it was trained on another base model")
        width, hidden = spec.bottleneck, linear.outputs
        shapes = {"down.weight": (width, hidden), "down.bias": (width,), "up.weight": (hidden, width), "up.bias": (hidden,)}
        for part, shape in shapes.items():
            if f"{module}.{part}" not in found:
                raise RejectedError(f"{WEIGHTS} lacks {module}.{part}: upload the adapter again")
            check_shape(f"{module}.{part}", found[f"{module}.{part}"], shape, module)
        slots.append(slot)
        tensors |= {
            slot.down: found[f"{module}.down.weight"],
            slot.down_bias: found[f"{module}.down.bias"],
            slot.up: np.ascontiguousarray(found[f"{module}.up.weight"].T),
            slot.up_bias: found[f"{module}.up.bias"],
        }
    if len(found) != 4 * len(modules) or not modules:
        raise RejectedError(f"{WEIGHTS} has {len(found)} tensors for {len(modules)} modules: upload the adapter again")
    targets = sorted({linears[module].last for module in modules})
    return SlotAdapter(rank=spec.bottleneck, targets=targets, scaling={}, slots=slots, tensors=tensors)
