"""Before the first step: how much memory training will take, and how long, from one probe step that changes nothing.

The probe computes the gradients of one micro-batch of the widest rows; what it held at its peak has parameters, gradients and
activations in it. The optimizer's state, which comes with the first step, is added by its size.
"""

import time
from collections.abc import Sequence

import torch

from olivine_api.status import Estimate
from olivine_trainer.faults import is_out_of_memory
from olivine_trainer.loop.engine import Engine
from olivine_trainer.loop.optimizers import held_numbers, present_bytes, state_bytes
from olivine_trainer.loop.state import capture_random, restore_random
from olivine_trainer.loop.usage import PeakOf, held_memory_bytes, peak_memory_bytes
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import collate
from olivine_trainer.reporting.logs import log, warn


def estimate(engine: Engine, examples: Sequence[Example], micro: int, *, steps_left: int) -> Estimate | None:
    """None where memory does not even suffice for the probe: the first step will find its own way. Every rank calls it."""
    rows = sorted(examples, key=lambda example: -example.width)[:micro]
    earlier = peak_memory_bytes()
    randomness = capture_random()
    start = time.monotonic()
    engine.prepared.train()
    try:
        with PeakOf() as peak:
            batch = collate(rows, engine.pad_id, engine.accelerator.device, packed=engine.packed)
            engine.add_gradients(batch, batch.weight)
            held = held_memory_bytes()
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        warn("memory did not suffice for the probe step: there is no estimate")
        return None
    finally:
        engine.optimizer.zero_grad(set_to_none=True)
        restore_random(randomness)
    parameters = engine.trained
    missing = max(0, state_bytes(engine.training.optimizer, parameters) - present_bytes(engine.optimizer, parameters))
    # While the optimizer moves the weights no activation is held, but copies are: of all of them at once on a device.
    sizes = [held_numbers(parameter) * parameter.element_size() for parameter in parameters.values()]
    moving = sum(sizes) if torch.cuda.is_available() else max(sizes)
    memory = max(earlier, peak.bytes + missing, held + missing + moving)
    seconds = time.monotonic() - start
    mean = sum(example.tokens for example in examples) / len(examples)
    step = seconds * mean * engine.effective_batch / engine.world.size / max(batch.tokens, 1)
    log("memory is estimated", estimatedBytes=memory, probeBytes=peak.bytes, optimizerBytes=missing, secondsPerStep=round(step, 3))
    return Estimate(memory_bytes=memory, seconds=round(step * steps_left))
