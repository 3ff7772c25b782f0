"""The base model as an ONNX graph, by onnxruntime-genai's model builder."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

from olivine_api.adapterbundle import Onnx
from olivine_api.reasons import Reason
from olivine_trainer.errors import ModelError
from olivine_trainer.faults import is_machine_fault

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


def build_base(model: Path, folder: Path, precision: Precision, target: Target = "cpu") -> None:
    """Write the graph of a Hugging Face folder into `folder`. Raises ModelError where the builder does not know the model."""
    # Imported late: seconds.
    from onnxruntime_genai.models.builder import create_model, parse_extra_options  # noqa: PLC0415

    said = io.StringIO()
    with tempfile.TemporaryDirectory() as cache, _quiet(said):
        where = ("", str(model), str(folder), precision, _PROVIDERS[target], cache)
        try:
            options = parse_extra_options(*where, list(_OPTIONS))
            _flatten_rope(options["hf_details"]["hf_config"])
            create_model(*where, **options)
        except (Exception, SystemExit) as error:
            if is_machine_fault(error):
                raise
            raise ModelError(
                Reason.MODEL_UNSUPPORTED,
                f"onnxruntime-genai's model builder cannot make an {precision} graph of this model for {target}"
                f" ({type(error).__name__}: {' '.join(str(error).split())[:300]}): take a model of a family that it knows, e.g. Llama",
            ) from error
    _forget_wrong_shapes(folder)


def _forget_wrong_shapes(folder: Path) -> None:
    """Without GroupQueryAttention (fp16 on the CPU) the builder says of repeated keys and values that they are as long as the tokens that
    are new; they are as long as all. onnxruntime believes it, and fails at the second token."""
    import onnx_ir as ir  # noqa: PLC0415

    model = ir.load(folder / MODEL)
    repeated = [node for node in model.graph if "/repeat_kv/" in (node.name or "")]
    for node in repeated:
        for value in node.outputs:
            value.shape = None
    if repeated:
        ir.save(model, folder / MODEL)


def _flatten_rope(config: Any) -> None:
    """Gemma 3 has a table of angles for each type of layer; transformers keeps both in one member, the builder looks for two."""
    known = getattr(config, "rope_parameters", None)
    if (
        isinstance(known, dict)
        and known.keys() == {"full_attention", "sliding_attention"}
        and not hasattr(config, "rope_local_base_freq")
    ):
        config.rope_local_base_freq = known["sliding_attention"]["rope_theta"]
        config.rope_parameters = known["full_attention"]


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
