"""Which number format the computation uses."""

from dataclasses import dataclass

import torch

from olivine_api.finetunejob import Precision
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError


@dataclass(frozen=True)
class ResolvedPrecision:
    """`name` as in the specification; `base_dtype` of the frozen weights; `mixed` as accelerate calls it. Trained weights are fp32."""

    name: Precision
    base_dtype: torch.dtype
    mixed: str


def resolve_precision(asked: Precision) -> ResolvedPrecision:
    """Auto: bf16 where a CUDA device computes it, fp32 otherwise (bf16 on AVX2 is 14 times slower than fp32).

    Raises ConfigurationError for fp16 without a CUDA device, and bf16 on one that lacks it.
    """
    cuda = torch.cuda.is_available()
    if asked is Precision.AUTO:
        asked = Precision.BF16 if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else Precision.FP32
    if asked is Precision.FP16 and not cuda:
        raise ConfigurationError(
            Reason.INVALID_SPEC, "training.precision fp16 needs a CUDA device and this pod has none: write Auto, fp32 or bf16"
        )
    if asked is Precision.BF16 and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigurationError(Reason.INVALID_SPEC, "training.precision bf16 is not computed by this device: write Auto or fp16")
    kinds = {
        Precision.FP32: (torch.float32, "no"),
        Precision.BF16: (torch.bfloat16, "bf16"),
        Precision.FP16: (torch.float16, "fp16"),
    }
    dtype, mixed = kinds[asked]
    return ResolvedPrecision(name=asked, base_dtype=dtype, mixed=mixed)
