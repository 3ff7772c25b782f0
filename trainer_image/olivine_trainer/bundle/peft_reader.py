"""A peft directory with LoRA, read strictly: what the graph cannot express exactly is refused by name, never left out."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from olivine_trainer.bundle.adapter import SlotAdapter, check_shape, read_config, read_tensors
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.slots import Floats, Linear, Slot

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[AB])\.weight$")
_MERGE = "merge it into the base by peft's merge_and_unload and export that model by itself"
# Options that change what the adapter computes in a way that A and B alone do not tell.
_REFUSED = {
    "use_dora": f"is a DoRA adapter, whose magnitudes depend on the base's weights: train it with use_dora false, or {_MERGE}",
    "modules_to_save": f"carries whole modules (modules_to_save): train it without them, or {_MERGE}",
    "lora_bias": f"has biases (lora_bias): train it without them, or {_MERGE}",
    "layer_replication": f"repeats layers (layer_replication): {_MERGE}",
    "trainable_token_indices": f"changes embeddings (trainable_token_indices): train it without them, or {_MERGE}",
}
# Options that are read here, or that say how it was trained and not what it computes.
_KNOWN = frozenset(
    {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("init_lora_weights", "eva_config", "qalora_group_size", "megatron_core", "ensure_weight_tying", "runtime_config"),
    }
)
# Initialisations that leave the base's weights as they are; others (PiSSA, OLoRA, CorDA, LoftQ) move part of them into the adapter.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def read_peft(folder: Path, linears: Mapping[str, Linear]) -> SlotAdapter:
    """LoRA of any mixture of ranks, alphas and targets. Raises RejectedError with a sentence for everything else."""
    config = read_config(folder / CONFIG)
    _check_config(config)
    found = read_tensors(folder / WEIGHTS)
    pairs = _pairs(found)
    tensors: dict[str, Floats] = {}
    scaling: dict[str, float] = {}
    slots: list[Slot] = []
    for module in sorted(pairs):
        linear = linears.get(module)
        if linear is None or (slot := linear.slot("lora")) is None:
            raise RejectedError(
                f"it adapts {module}, which this base does not have as a linear module of a block: it was trained on another base"
                " model, or targets the embeddings or the head, for which the graph has no place"
            )
        down, up = pairs[module]
        rank = len(down)
        check_shape(f"{module}.lora_A", down, (rank, linear.inputs), module)
        check_shape(f"{module}.lora_B", up, (linear.outputs, rank), module)
        scale = _scale(config, module, rank)
        slots.append(slot)
        scaling[slot.name] = scale
        tensors[slot.down] = down
        tensors[slot.up] = np.ascontiguousarray(up.T * np.float32(scale))
    return SlotAdapter(
        rank=max(len(down) for down, _ in pairs.values()),
        targets=sorted({linears[module].last for module in pairs}),
        scaling=scaling,
        slots=slots,
        tensors=tensors,
    )


def _check_config(config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RejectedError(f"it is a {kind} adapter of peft: only LoRA fits beside a projection; train it with LoRA, or {_MERGE}")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise RejectedError(
            f"its task is {config['task_type']}: its head is another one than the base's;"
            " train the classification with classification.head Generative"
        )
    for field, why in _REFUSED.items():
        if config.get(field):
            raise RejectedError(f"it {why}")
    if (bias := config.get("bias", "none")) != "none":
        raise RejectedError(f"it has biases (bias: {bias}): train it with bias none, or {_MERGE}")
    if (start := config.get("init_lora_weights")) not in _STARTS:
        raise RejectedError(
            f"it was initialised by {start}, which moves weights of the base into the adapter: save it by"
            " save_pretrained(…, path_initial_model_for_weight_conversion=…), which turns it into plain LoRA"
        )
    odd = sorted(name for name in config.keys() - _KNOWN if config[name] and config[name] != _defaults().get(name))
    if odd:
        raise RejectedError(f"it uses {', '.join(odd)} of peft, which the graph cannot express: train it without, or {_MERGE}")


def _defaults() -> dict[str, Any]:
    from peft import LoraConfig  # noqa: PLC0415  (seconds)

    return {field.name: field.default for field in fields(LoraConfig)}


def _pairs(found: Mapping[str, Floats]) -> dict[str, tuple[Floats, Floats]]:
    """A and B by the module's name."""
    parts: dict[str, dict[str, Floats]] = {}
    for name, tensor in found.items():
        match = _PART.match(name.removeprefix(_PREFIX))
        if match is None or tensor.ndim != 2:
            raise RejectedError(
                f"it holds {name}, which is no matrix of LoRA beside a linear module: train it without, or {_MERGE}"
            )
        parts.setdefault(match["module"], {})[match["part"]] = tensor
    if not parts:
        raise RejectedError(f"{WEIGHTS} is empty: upload the adapter again")
    halves = sorted(module for module, both in parts.items() if len(both) < 2)
    if halves:
        raise RejectedError(f"{WEIGHTS} has only one of lora_A and lora_B of {halves[0]}: upload the adapter again")
    return {module: (both["A"], both["B"]) for module, both in parts.items()}


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank), with the module's own alpha; the rank is the matrices' own, whatever rank_pattern says."""
    from peft.utils.other import get_pattern_key  # noqa: PLC0415

    said = config.get("rank_pattern") or {}
    meant = said.get(get_pattern_key(list(said), module), config.get("r"))
    if rank != meant:
        raise RejectedError(f"{module} has rank {rank}, but {CONFIG} says {meant}: the two files are of different adapters")
    alphas = config.get("alpha_pattern") or {}
    alpha = float(alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
