"""The verb `bundle run`: one answer of one adapter."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from olivine_api.reasons import Reason
from olivine_trainer.bundle.check import read_manifest
from olivine_trainer.bundle.files import BASE
from olivine_trainer.bundle.onnx_model import OnnxModel
from olivine_trainer.errors import ConfigurationError


def answer_prompt(folder: Path, adapter: str, prompt: str, count: int) -> Iterator[str]:
    """The greedy answer, piece by piece. Raises ConfigurationError where the bundle has no such adapter."""
    known = [one.name for one in read_manifest(folder).adapters]
    if adapter not in (*known, BASE):
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"--adapter is {adapter!r}, this bundle has {', '.join(known)}, and {BASE} for the model without any",
        )
    model = OnnxModel(folder)
    tokenizer = model.tokenizer()
    ids = np.array([tokenizer.encode(prompt)], np.int32)
    generator = model.generator(ids.size + count)
    model.activate(generator, adapter)
    generator.append_tokens(ids)
    stream = tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        yield str(stream.decode(int(generator.get_next_tokens()[0])))
