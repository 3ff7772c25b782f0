"""Whether a model's architecture becomes a graph at all: tried before training, on one layer of random weights."""

import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from olivine_api.reasons import Reason
from olivine_trainer.bundle.base import build_base
from olivine_trainer.bundle.graph import projections_of
from olivine_trainer.bundle.onnx_model import OnnxModel
from olivine_trainer.bundle.slots import Linear, linears_of
from olivine_trainer.errors import ConfigurationError, ModelError
from olivine_trainer.faults import first_line, is_machine_fault
from olivine_trainer.reporting.logs import warn

_VOCABULARY = 1009  # no projection is as wide: the builder finds the head by its shape
_LAYER = re.compile(r"\.\d+\.")


def require_graph(model: Path, modules: Iterable[str] = ()) -> None:
    """Raise ModelError where the builder makes no graph of this architecture, or onnxruntime cannot run it.

    `modules`: full names of those that get an adapter. Raises ConfigurationError where the graph has no place for one of them.
    Takes seconds, whatever the model's size.
    """
    with tempfile.TemporaryDirectory() as scratch:
        small, built = Path(scratch) / "model", Path(scratch) / "built"
        linears = _shrink(model, small)
        if linears is None:
            return
        build_base(small, built, "fp32")
        try:
            OnnxModel(built).logits([5, 6, 7], None)
        except RuntimeError as error:
            if is_machine_fault(error):
                raise
            raise ModelError(
                Reason.MODEL_UNSUPPORTED,
                f"outputs.onnx: onnxruntime cannot run a graph of this architecture ({first_line(error)}): leave outputs.onnx out,"
                " or take another model",
            ) from None
        known = projections_of(built)
        _require_places(modules, {name for name, one in linears.items() if one.projection in known})


def _shrink(model: Path, target: Path) -> dict[str, Linear] | None:
    """Write the same architecture with one layer and few words, and return its linear modules; None where that cannot be: the whole model has to tell in the end."""
    try:
        config: Any = AutoConfig.from_pretrained(str(model), local_files_only=True)
        text = config.get_text_config()
        text.num_hidden_layers = 1
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1]
        text.vocab_size = _VOCABULARY
        text.bos_token_id, text.eos_token_id, text.pad_token_id = 0, 1, None
        with torch.random.fork_rng():  # the run's own numbers stay as they are
            small: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            small.save_pretrained(target)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if is_machine_fault(error):
            raise
        warn(f"whether outputs.onnx can be made is not known before the end: {first_line(error)}")
        return None
    for path in model.iterdir():
        if path.is_file() and path.suffix not in (".safetensors", ".bin") and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
    return linears_of(small)


def _require_places(modules: Iterable[str], places: set[str]) -> None:
    """Both by full names of modules, the places of the one layer that was tried."""
    known = {_LAYER.sub(".", place) for place in places}
    odd = sorted({module.rpartition(".")[2] for module in modules if _LAYER.sub(".", module) not in known})
    if odd:
        names = ", ".join(sorted({place.rpartition(".")[2] for place in known}))
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"outputs.onnx has no place for an adapter of {', '.join(odd)}; this model's graph has places for {names}:"
            " write those into method.lora.targetModules, or outputs.merged: true instead of onnx",
        )
