"""A bundle's folder as onnxruntime-genai loads it: logits and greedy answers with one adapter, another, or none."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai

from olivine_trainer.bundle.base import GENAI_CONFIG, Target
from olivine_trainer.bundle.files import BASE, adapter_path
from olivine_trainer.bundle.slots import Floats
from olivine_trainer.faults import first_line, is_machine_fault

genai: Any = onnxruntime_genai  # its classes have no types


def stop_tokens(folder: Path) -> frozenset[int]:
    """Where an answer ends."""
    found = json.loads((folder / GENAI_CONFIG).read_text())["model"]["eos_token_id"]
    return frozenset(found if isinstance(found, list) else [found])


def runs_here(folder: Path, target: Target) -> str | None:
    """None where this machine can run the graph in `folder`; otherwise why not: then only its fp32 twin on the CPU is proven."""
    if target == "cpu":
        return None
    genai.disable_telemetry_events()
    try:
        genai.Model(str(folder))
    except RuntimeError as error:
        if is_machine_fault(error):
            raise
        return f"this machine cannot run a graph for {target} ({first_line(error)})"
    return None


def context_length(folder: Path) -> int:
    """Tokens that the model can have before it."""
    return int(json.loads((folder / GENAI_CONFIG).read_text())["model"]["context_length"])


def shortest_length(folder: Path) -> int:
    """That a generator must be made for: attention over a window keeps the whole of it."""
    decoder = json.loads((folder / GENAI_CONFIG).read_text())["model"]["decoder"]
    return int((decoder.get("sliding_window") or {}).get("window_size") or 0)


class OnnxModel:
    """One loaded folder; an adapter's file is read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        genai.disable_telemetry_events()
        self._folder = folder
        self._model = genai.Model(str(folder))
        self._adapters = genai.Adapters(self._model)
        self._shortest = shortest_length(folder)
        self.load_milliseconds: dict[str, float] = {}

    def tokenizer(self) -> Any:
        """onnxruntime-genai's own."""
        return genai.Tokenizer(self._model)

    def load(self, name: str) -> None:
        """Read an adapter's file, once."""
        if name in self.load_milliseconds:
            return
        start = time.perf_counter()
        self._adapters.load(str(adapter_path(self._folder, name)), name)
        self.load_milliseconds[name] = 1000 * (time.perf_counter() - start)

    def generator(self, longest: int) -> Any:
        """Greedy, for `longest` tokens, prompt included, or for more."""
        longest = max(longest, self._shortest)
        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=longest, repetition_penalty=1.0, min_length=0)
        return genai.Generator(self._model, parameters)

    def activate(self, generator: Any, adapter: str | None) -> float:
        """Let a generator use an adapter, or, with None, nothing; returns the microseconds of the call. A fresh generator uses none."""
        name = adapter or BASE
        self.load(name)
        start = time.perf_counter()
        generator.set_active_adapter(self._adapters, name)
        return 1e6 * (time.perf_counter() - start)

    def logits(self, ids: Sequence[int], adapter: str | None, *, generator: Any = None) -> Floats:
        """[tokens, vocabulary] of one text; a given generator is rewound first and goes on with the adapter that it is switched to."""
        if generator is None:
            generator = self.generator(len(ids) + 1)
            if adapter is not None:
                self.activate(generator, adapter)
        else:
            generator.rewind_to(0)
            self.activate(generator, adapter)
        generator.append_tokens(np.array([list(ids)], np.int32))
        return np.array(generator.get_output("logits"), np.float32)[0]

    def answer(self, ids: Sequence[int], adapter: str | None, count: int) -> list[int]:
        """The greedy answer, at most `count` tokens, its stop token left out or not as the engine does."""
        generator = self.generator(len(ids) + count)
        if adapter is not None:
            self.activate(generator, adapter)
        generator.append_tokens(np.array([list(ids)], np.int32))
        while not generator.is_done() and generator.token_count() < len(ids) + count:
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)[len(ids) :]]
