"""Loading a base model and its tokenizer from a folder in Hugging Face layout."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from olivine_api.methods import Quantization
from olivine_api.reasons import Reason
from olivine_trainer.errors import ModelError, OutOfMemoryError, StorageUnavailableError
from olivine_trainer.faults import first_line, is_disk_fault, is_out_of_memory
from olivine_trainer.modeling.overheard import complaint, overheard
from olivine_trainer.modeling.quantized import keep_as_quantised, loading_options

_KINDS = {False: "causal language model", True: "classifier (classification.head Sequence)"}


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, and the tokens that matter to training."""

    backend: Any
    """A transformers tokenizer with an EOS and a PAD token."""
    stop_ids: frozenset[int]
    """Tokens that end generation: EOS and what the model's generation settings add."""

    @property
    def eos_id(self) -> int:
        """The stop token that training teaches."""
        return int(self.backend.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Fills up batches; always masked."""
        return int(self.backend.pad_token_id)


def load_tokenizer(folder: Path, uri: str, *, trust_remote_code: bool = False) -> Tokenizer:
    """Raises ModelError where the folder has no usable tokenizer, or one without a stop token."""
    try:
        backend = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        _raise_platform_fault(error, uri)
        _raise_own_code(folder, uri, trusted=trust_remote_code)
        raise ModelError(
            Reason.MODEL_UNSUPPORTED, f"the tokenizer of model.uri {uri} cannot be loaded: {first_line(error, 400)}"
        ) from None
    if backend.eos_token_id is None:
        raise ModelError(
            Reason.MODEL_UNSUPPORTED,
            f"the tokenizer of model.uri {uri} has no eos_token, so the model could not learn where to stop: set it in tokenizer_config.json",
        )
    if backend.pad_token_id is None:
        backend.pad_token = backend.eos_token
    return Tokenizer(backend=backend, stop_ids=frozenset({backend.eos_token_id}))


def load_model(
    folder: Path,
    uri: str,
    dtype: torch.dtype,
    *,
    labels: Sequence[str] = (),
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model in `dtype`, frozen; code that it brings along runs only where it is trusted. Quantised, it is on its device already.

    With `labels` it is a classifier over them: its head `score`, which a causal model's files lack, has random numbers.

    Raises ModelError where transformers knows no such causal model.
    """
    kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    with overheard() as reports:
        try:
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
            if labels:
                config.update(
                    {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
                )
            loaded: Any = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **(loading_options(quantization, dtype, skip=["score"] if labels else None) if quantization is not None else {}),
            )
        except SafetensorError as error:
            raise ModelError(
                Reason.MODEL_UNSUPPORTED,
                f"a .safetensors file of model.uri {uri} is truncated or damaged ({first_line(error)}): upload the model again",
            ) from None
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, MemoryError) as error:
            told = complaint(error, reports)
            _raise_platform_fault(told, uri)
            _raise_platform_fault(error, uri)
            _raise_own_code(folder, uri, trusted=trust_remote_code)
            raise ModelError(
                Reason.MODEL_UNSUPPORTED, f"model.uri {uri} cannot be loaded as a {_KINDS[bool(labels)]}: {first_line(told, 400)}"
            ) from None
    model, report = loaded
    # transformers fills in random numbers, other ones each time.
    if missing := sorted(set(report["missing_keys"]) - ({"score.weight"} if labels else set())):
        raise ModelError(
            Reason.MODEL_UNSUPPORTED,
            f"the weights of model.uri {uri} lack {len(missing)} tensors of a {type(model).__name__}, e.g. {missing[0]}:"
            " it must be a whole causal language model",
        )
    if quantization is not None:
        keep_as_quantised(model)
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def fitted_to(model: PreTrainedModel, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, its stop tokens completed by the model's generation settings, its PAD token one that the model knows."""
    if tokenizer.pad_id >= embeddings(model):
        tokenizer.backend.pad_token = tokenizer.backend.eos_token  # always masked: any known one will do
    if hasattr(model, "score"):
        model.config.get_text_config().pad_token_id = tokenizer.pad_id  # where a row ends, for who loads what is published
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [more] if isinstance(more, int) else list(more or [])
    return Tokenizer(backend=tokenizer.backend, stop_ids=tokenizer.stop_ids | frozenset(int(one) for one in ids))


def embeddings(model: PreTrainedModel) -> int:
    """How many tokens the model knows."""
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[0])


def _raise_own_code(folder: Path, uri: str, *, trusted: bool) -> None:
    """Where the model cannot be loaded, and brings code along that was not run."""
    if trusted:
        return
    for name in ("config.json", "tokenizer_config.json"):
        try:
            described = json.loads((folder / name).read_text())
        except (OSError, ValueError):
            continue  # told by whoever needs the file
        if isinstance(described, dict) and described.get("auto_map"):
            raise ModelError(
                Reason.REMOTE_CODE_NOT_TRUSTED,
                f"model.uri {uri} brings Python code of its own ({name} has auto_map), which runs only where model.trustRemoteCode is"
                " true and the administrator's policy allows it: set it once you have read that code, or take a model that transformers knows",
            ) from None


def _raise_platform_fault(error: Exception, uri: str) -> None:
    """Memory that ran out and disks that fail say nothing of the model."""
    if is_out_of_memory(error):
        detail = f"memory ran out while model.uri {uri} was loaded: {first_line(error, 400)}"
        raise OutOfMemoryError(detail, advice="raise pods.resources.limits.memory, or take a smaller model") from error
    if is_disk_fault(error):
        raise StorageUnavailableError(f"the files of model.uri {uri} could not be read: {first_line(error, 400)}") from error
