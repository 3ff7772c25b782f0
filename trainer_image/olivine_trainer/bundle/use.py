"""The verb `bundle run`: one answer of one adapter."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from olivine_api.reasons import Reason
from olivine_trainer.bundle.check import BundleDamagedError, read_manifest
from olivine_trainer.bundle.files import BASE
from olivine_trainer.bundle.onnx_model import OnnxModel
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.faults import first_line


def answer_prompt(folder: Path, adapter: str, prompt: str, count: int) -> Iterator[str]:
    """The greedy answer, piece by piece.

    Raises ConfigurationError where the bundle has no such adapter or the prompt is empty, BundleDamagedError where onnxruntime cannot load it.
    """
    known = [one.name for one in read_manifest(folder).adapters]
    if adapter not in (*known, BASE):
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"--adapter is {adapter!r}, this bundle has {', '.join(known)}, and {BASE} for the model without any",
        )
    try:
        model = OnnxModel(folder)
        tokenizer = model.tokenizer()
        model.load(adapter)
    except RuntimeError as error:
        raise BundleDamagedError(
            f"onnxruntime cannot load it ({first_line(error)}): olivine bundle verify tells what is damaged"
        ) from None
    ids = np.array([tokenizer.encode(prompt)], np.int32)
    if not ids.size:
        raise ConfigurationError(Reason.INVALID_SPEC, "--prompt is empty: write what is to be answered")
    generator = model.generator(ids.size + count)
    model.activate(generator, adapter)
    generator.append_tokens(ids)
    stream = tokenizer.create_stream()
    while not generator.is_done() and generator.token_count() < ids.size + count:
        generator.generate_next_token()
        yield str(stream.decode(int(generator.get_next_tokens()[0])))
