"""What a FineTuneJob publishes, and which methods can be published how."""

from typing import Any, Literal

from olivine_api.base import ApiModel, Rule
from olivine_api.methods import MethodType
from olivine_api.publish import Publish


class OnnxOutput(ApiModel):
    """The tuned model for onnxruntime-genai."""

    rules = (
        Rule(
            # The API server asks it of an empty object, too: where defaults are nested, the outer one comes first.
            cel="!has(self.precision) || !has(self.target) || self.precision != 'fp32' || !(self.target in ['cuda', 'directml'])",
            holds=lambda onnx: onnx.precision != "fp32" or onnx.target not in ("cuda", "directml"),
            message="onnx.precision is fp32 and onnx.target cuda or directml, for which onnxruntime-genai makes no graph: write fp16",
            field_path=".precision",
        ),
    )

    precision: Literal["fp32", "fp16", "int8", "int4"] = "int8"
    target: Literal["cpu", "cuda", "directml", "webgpu"] = "cpu"


class Outputs(ApiModel):
    """What is published."""

    rules = (
        Rule(
            cel="self.adapter || self.merged || has(self.onnx)",
            holds=lambda o: o.adapter or o.merged or o.onnx is not None,
            message="outputs must have at least one of adapter: true, merged: true and onnx",
        ),
    )

    adapter: bool = True
    """What training made: the adapter, or with method.type Full the model."""
    merged: bool = False
    """The whole model with the adapter folded in, proven to compute the same; with method.type Full it is the model itself."""
    onnx: OnnxOutput | None = None
    """A folder for onnxruntime-genai, proven against PyTorch as bundles are: the base with a slot for the adapter, or with method.type Full the model."""
    publish: Publish | None = None
    """A second place for what is published: another prefix, or a repository of a hub."""


def _onnx(spec: Any) -> bool:
    return spec.outputs is not None and spec.outputs.onnx is not None


# Over the whole specification: what cannot be exact is refused before anything is trained.
OUTPUT_RULES = (
    Rule(
        cel="!(has(self.outputs) && self.outputs.merged && self.method.type == 'Adapter')",
        holds=lambda s: not (s.outputs is not None and s.outputs.merged and s.method.type is MethodType.ADAPTER),
        message="outputs.merged is true, but a bottleneck adapter (method.type Adapter) has an activation that no weight of the base can"
        " hold: write outputs.onnx, or method.type LoRA",
        field_path=".outputs",
    ),
    Rule(
        cel="!(has(self.outputs) && has(self.outputs.onnx) && has(self.classification) && self.classification.head == 'Sequence')",
        holds=lambda s: not (_onnx(s) and s.classification is not None and s.classification.head == "Sequence"),
        message="outputs.onnx has no place for a classifier's head: write classification.head Generative, or outputs.merged: true"
        " instead of onnx",
        field_path=".outputs",
    ),
    Rule(
        cel="!(has(self.outputs) && has(self.outputs.onnx)"
        " && has(self.method.lora) && has(self.method.lora.modulesToSave) && size(self.method.lora.modulesToSave) > 0)",
        holds=lambda s: not (_onnx(s) and s.method.lora is not None and s.method.lora.modules_to_save),
        message="outputs.onnx has no place for modules that are trained whole (method.lora.modulesToSave): leave them out,"
        " or write outputs.merged: true instead of onnx",
        field_path=".outputs",
    ),
)
