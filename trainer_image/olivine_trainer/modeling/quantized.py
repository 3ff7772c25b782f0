"""A base model in fewer bits (Dettmers et al. 2023), by bitsandbytes: on a CUDA device and on a CPU."""

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from olivine_api.methods import Quantization


def loading_options(spec: Quantization, dtype: torch.dtype, *, skip: list[str] | None = None) -> dict[str, Any]:
    """What from_pretrained needs to quantise every linear module but the head (or those in `skip`); they compute in `dtype`."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    if spec.type == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=skip,  # of four bits, too
            bnb_4bit_quant_type=spec.type,
            bnb_4bit_use_double_quant=spec.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_as_quantised(model: Any) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks a weight, rounding its scales to bf16, the first time that it computes without
    gradients: a run's base would then depend on when it was evaluated, and small layers fail. Here it never does.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
