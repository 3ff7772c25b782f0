"""How fast tokens come: every contestant loaded in one process, in random order, a few tokens each in turns."""

import importlib
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from tests.bench.bundle.workload import WIDE, Workload

PROMPT = list(range(100, 132))
_ROUND = 64  # tokens before a generator starts over


def contestants(load: Workload, precision: str) -> dict[str, tuple[str, str | None]]:
    """Folder and adapter of each; the first is what the others are compared with."""
    attention, everything = f"bundle-{precision}-{load.counts[0]}", f"bundle-{precision}-{WIDE}"
    name = load.names(1)[0]
    return {
        "base": (f"plain-{precision}", None),
        "merged": (f"merged-{precision}-{name}", None),
        "attention, idle": (attention, None),
        "attention, r8 active": (attention, name),
        "all linear, idle": (everything, None),
        "all linear, r16 active": (everything, WIDE),
    }


class _Running:
    """One generator that goes on and on."""

    def __init__(self, genai: Any, model: Any, adapter: Path | None) -> None:
        import numpy as np

        self._prompt = np.array([[token % 300 for token in PROMPT]], np.int32)
        parameters = genai.GeneratorParams(model)
        longest = len(PROMPT) + _ROUND + 8
        parameters.set_search_options(do_sample=False, max_length=longest, min_length=longest - 1)
        self._generator = genai.Generator(model, parameters)
        if adapter is not None:
            self._adapters = genai.Adapters(model)
            self._adapters.load(str(adapter), adapter.stem)
            self._generator.set_active_adapter(self._adapters, adapter.stem)
        self._left = 0

    def seconds(self, tokens: int) -> float:
        """CPU time of one token; the first of a turn finds the caches cold, and is not counted."""
        if self._left <= tokens:
            self._generator.rewind_to(0)
            self._generator.append_tokens(self._prompt)
            self._left = _ROUND
        self._left -= tokens + 1
        self._generator.generate_next_token()
        began = time.process_time()
        for _ in range(tokens):
            self._generator.generate_next_token()
        return (time.process_time() - began) / tokens


def decode(load: Workload, precision: str) -> dict[str, Any]:
    """Median CPU seconds of a token, by contestant."""
    import numpy as np

    genai: Any = importlib.import_module("onnxruntime_genai")  # its classes have no types
    asked = contestants(load, precision)
    order = list(asked)
    random.shuffle(order)
    models: dict[str, Any] = {}
    for name in order:
        folder = asked[name][0]
        if folder not in models:
            models[folder] = genai.Model(str(with_threads(load, folder)))
    running: dict[str, _Running] = {}
    for name in order:
        folder, adapter = asked[name]
        path = load.folder / folder / "adapters" / f"{adapter}.onnx_adapter" if adapter else None
        running[name] = _Running(genai, models[folder], path)
    took: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(load.turns):
        for place in range(len(order)):
            name = order[(turn + place) % len(order)]
            took[name].append(running[name].seconds(load.tokens))
    return {"seconds": {name: float(np.median(times)) for name, times in took.items()}}


def with_threads(load: Workload, folder: str) -> Path:
    """The same files, with a fixed number of threads, which do not spin: idle ones would burn what is measured."""
    here, there = load.folder / folder, load.folder / f"{folder}-threads-{os.getpid()}"
    there.mkdir()
    for path in here.iterdir():
        if path.is_file() and path.name != "genai_config.json":
            os.link(path, there / path.name)
    config = json.loads((here / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"] |= {
        "intra_op_num_threads": load.threads,
        "session.intra_op.allow_spinning": "0",
    }
    (there / "genai_config.json").write_text(json.dumps(config))
    if (here / "adapters").is_dir():
        (there / "adapters").symlink_to(here / "adapters")
    return there
