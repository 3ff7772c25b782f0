"""How the model is adapted."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from olivine_api.base import ApiModel, Rule
from olivine_api.sources import FieldName


class MethodType(StrEnum):
    """How the model is adapted."""

    FULL = "Full"
    LORA = "LoRA"
    QLORA = "QLoRA"
    ADAPTER = "Adapter"


class Lora(ApiModel):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0, le=8192)] = 32
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with rsLora)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[list[FieldName], Field(min_length=1, max_length=64)] | None = None
    """Names of linear modules, e.g. q_proj. Default: every linear module but the head."""
    modules_to_save: Annotated[list[FieldName], Field(max_length=64)] | None = None
    """Modules that are trained whole and saved beside the adapter, e.g. lm_head."""
    rs_lora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732)."""


class Quantization(ApiModel):
    """The frozen base in fewer bits (Dettmers et al. 2023, arXiv:2305.14314)."""

    rules = (
        Rule(
            cel="self.type == 'int8' ? self.bits == 8 : self.bits == 4",
            holds=lambda q: q.bits == (8 if q.type == "int8" else 4),
            message="method.quantization.bits must be 4 with type nf4 or fp4, and 8 with int8",
            field_path=".bits",
        ),
    )

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4", "int8"] = "nf4"
    double_quantization: bool = True


class Bottleneck(ApiModel):
    """Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247)."""

    bottleneck: Annotated[int, Field(ge=1, le=8192)] = 64
    """Width of the inner layer."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    placement: Literal["Houlsby", "Pfeiffer"] = "Houlsby"
    """Houlsby: after attention and MLP; Pfeiffer: after the MLP."""


class Method(ApiModel):
    """The method and its parameters."""

    rules = (
        Rule(
            cel="!has(self.lora) || self.type in ['LoRA', 'QLoRA']",
            holds=lambda m: m.lora is None or m.type in (MethodType.LORA, MethodType.QLORA),
            message="method.lora is for method.type LoRA and QLoRA: leave it out, or change the type",
            field_path=".lora",
        ),
        Rule(
            cel="!has(self.quantization) || self.type == 'QLoRA'",
            holds=lambda m: m.quantization is None or m.type is MethodType.QLORA,
            message="method.quantization is for method.type QLoRA: leave it out, or change the type",
            field_path=".quantization",
        ),
        Rule(
            cel="!has(self.adapter) || self.type == 'Adapter'",
            holds=lambda m: m.adapter is None or m.type is MethodType.ADAPTER,
            message="method.adapter is for method.type Adapter: leave it out, or change the type",
            field_path=".adapter",
        ),
    )

    type: MethodType
    lora: Lora | None = None
    """Default: its members' own."""
    quantization: Quantization | None = None
    """Default: its members' own."""
    adapter: Bottleneck | None = None
    """Default: its members' own."""
