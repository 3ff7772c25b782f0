"""Importing the heavy libraries once, on purpose and timed."""

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext


def import_training_stack(*, quantized: bool = False) -> float:
    """Import torch, transformers, accelerate and peft; returns the seconds that it took.

    peft imports bitsandbytes where it finds it, and with it torch's compiler: half of the time to start. Only QLoRA needs it
    (`quantized`); once seen, it stays so for the process.
    """
    start = time.monotonic()
    import accelerate  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport]
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    with nullcontext() if quantized else _hidden("bitsandbytes"):
        import peft  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport]
        from peft.import_utils import is_bnb_4bit_available, is_bnb_available  # noqa: PLC0415

        # Both answers are cached: injecting an adapter asks again, when the module is visible.
        if quantized:
            is_bnb_available.cache_clear()
            is_bnb_4bit_available.cache_clear()
        is_bnb_available()
        is_bnb_4bit_available()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(_threads())
    return time.monotonic() - start


def _threads() -> int:
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


@contextmanager
def _hidden(name: str) -> Generator[None]:
    """Let find_spec and import answer that a module is absent: None in sys.modules is Python's own way to say so."""
    if sys.modules.get(name) is not None:  # somebody needs it and has it
        yield
        return
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[name]
