"""The base model as an ONNX graph, by onnxruntime-genai's model builder."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Literal

from olivine_api.adapterbundle import Onnx
from olivine_api.reasons import Reason
from olivine_trainer.errors import ModelError

Precision = Literal["fp32", "fp16", "int8", "int4"]
Target = Literal["cpu", "cuda", "directml", "webgpu"]

MODEL = "model.onnx"
GENAI_CONFIG = "genai_config.json"
# One MatMul for each projection: fused ones would have no place for an adapter of one of them.
_OPTIONS = ("fuse_qkv=false", "fuse_mlp_gate_up=false")
# What the model builder calls the devices. It needs none of them to build.
_PROVIDERS: dict[Target, str] = {"cpu": "cpu", "cuda": "cuda", "directml": "dml", "webgpu": "webgpu"}


def builder_options(_onnx: Onnx) -> tuple[str, ...]:
    """What the builder is told beside model, precision and target."""
    return _OPTIONS


def can_be_built(precision: Precision, target: Target) -> bool:
    """Not fp32 for CUDA and DirectML: the builder then packs q, k, v into an attention without outputs for the cache."""
    return precision != "fp32" or target not in ("cuda", "directml")


def build_base(model: Path, folder: Path, precision: Precision, target: Target = "cpu") -> None:
    """Write the graph of a Hugging Face folder into `folder`. Raises ModelError where the builder does not know the model."""
    # Imported late: seconds.
    from onnxruntime_genai.models.builder import create_model, parse_extra_options  # noqa: PLC0415

    said = io.StringIO()
    with tempfile.TemporaryDirectory() as cache, _quiet(said):
        where = ("", str(model), str(folder), precision, _PROVIDERS[target], cache)
        try:
            create_model(*where, **parse_extra_options(*where, list(_OPTIONS)))
        except (Exception, SystemExit) as error:
            raise ModelError(
                Reason.MODEL_UNSUPPORTED,
                f"onnxruntime-genai's model builder cannot make an {precision} graph of this model for {target}"
                f" ({type(error).__name__}: {' '.join(str(error).split())[:300]}): take a model of a family that it knows, e.g. Llama",
            ) from error


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Generator[None]:
    """It tells of every tensor, on standard output and through the root's logger."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        logging.disable(before)
