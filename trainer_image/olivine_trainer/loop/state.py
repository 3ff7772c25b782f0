"""Everything that an exact resume needs, as files without pickle: adapter, optimizer, random numbers (safetensors), the rest (JSON)."""

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save, save_file

from olivine_api.base import StatusModel
from olivine_api.status import Best, CurvePoint, MetricMap
from olivine_trainer.loop import optimizers
from olivine_trainer.loop.engine import Engine
from olivine_trainer.loop.stopping import Stopping
from olivine_trainer.world.shards import gathered

_WEIGHTS = "adapter.safetensors"  # whatever the method: checkpoints of older releases have it
_OPTIMIZER = "optimizer.safetensors"
_BEST = "best.safetensors"  # with early stopping: the weights to publish
_STATE = "state.json"


class Progressed(StatusModel):
    """How far training is, between two steps."""

    step: int = Field(default=0, ge=0)
    """Optimizer steps done."""
    trained_tokens: int = 0
    truncated: int = 0
    """Rows that were cut when they were trained on."""
    evaluated_step: int = 0
    """The last step after which the validation loss was measured."""
    window_loss: float = 0.0
    """Sum of the steps' losses since the last log line."""
    window_steps: int = 0
    effective_batch: int | None = None
    """Rows of an optimizer step; a resume by another number of processes keeps it."""
    stopping: Stopping = Stopping()
    metrics: MetricMap = {}
    best: Best | None = None
    curve: list[CurvePoint] = []


@dataclass(frozen=True)
class RandomState:
    """The generators of this process, as tensors."""

    tensors: dict[str, torch.Tensor]

    def render(self) -> bytes:
        """As a safetensors file."""
        return save(self.tensors)


def seed_random(seed: int) -> None:
    """Start python's, numpy's and torch's generators from a number."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def seed_rank(seed: int, rank: int, *, step: int = 0) -> None:
    """Ranks draw different dropout masks; rank 0 of a new run goes on from where the adapter's initialisation left it."""
    if rank or step:
        seed_random(seed + 1_000_003 * rank + 7919 * step)


def capture_random() -> RandomState:
    """python, numpy and torch, and this process's CUDA device."""
    _, python_words, gauss = random.getstate()
    kind, words, position, has_gauss, cached = np.random.get_state()
    if kind != "MT19937":
        raise RuntimeError(f"numpy's global generator is {kind}")
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(python_words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(words).astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        # Only its own: to ask another device would take memory there, and the next pod may see fewer.
        index = torch.cuda.current_device()
        tensors[f"cuda{index}"] = torch.cuda.get_rng_state(index)
    return RandomState(tensors)


def restore_random(state: RandomState) -> None:
    """Put the generators back."""
    tensors = state.tensors
    gauss = tensors["python_gauss"].tolist()
    random.setstate((3, tuple(tensors["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = tensors["numpy_position"].tolist()
    words = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, float(tensors["numpy_gauss"][0])))
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        index = torch.cuda.current_device()
        if (own := device_state(tensors)) is not None:
            torch.cuda.set_rng_state(own, index)


def device_state(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The one CUDA device's state: a rank may find itself on a device of another number when pods divide otherwise."""
    return next((state for name, state in tensors.items() if name.startswith("cuda")), None)


def save_state(
    folder: Path,
    engine: Engine,
    progressed: Progressed,
    randomness: Sequence[bytes],
    optimizer: Mapping[str, torch.Tensor],
    *,
    best: Path | None = None,
) -> None:
    """Write the state between two steps into an empty folder, while the engine is `whole`.

    `randomness` holds each rank's rendered RandomState, `optimizer` what `optimizer_tensors` gave; `best`: weights of an earlier
    step that are still the best.
    """
    folder.mkdir(parents=True)
    engine.method.save_weights(folder / _WEIGHTS)
    save_file(dict(optimizer), folder / _OPTIMIZER)
    if best is not None:
        shutil.copyfile(best, folder / _BEST)
    for rank, rendered in enumerate(randomness):
        (folder / _random_file(rank)).write_bytes(rendered)
    scaler = engine.accelerator.scaler
    state = {
        "progressed": progressed.model_copy(update={"effective_batch": engine.effective_batch}).to_json_dict(),
        "worldSize": len(randomness),
        "optimizer": optimizers.state_numbers(engine.optimizer, engine.trained),
        "schedule": engine.schedule.state(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    (folder / _STATE).write_text(json.dumps(state))


def saved_effective_batch(folder: Path) -> int | None:
    """Rows of an optimizer step in a saved state."""
    return _progressed(json.loads((folder / _STATE).read_text())).effective_batch


def saved_best_weights(folder: Path) -> Path | None:
    """The best weights in a saved state; None where it has none of its own."""
    path = folder / _BEST
    return path if path.exists() else None


def load_state(folder: Path, engine: Engine) -> Progressed:
    """Put a saved state back, the random generators last; those of another number of ranks cannot be: they start anew."""
    with engine.whole(torch.device("cpu")):
        load_weights(folder / _WEIGHTS, engine)
    state = json.loads((folder / _STATE).read_text())
    # Checkpoints of older releases are of AdamW, which keeps no numbers beside its tensors.
    numbers = state.get("optimizer", {})
    optimizers.restore(engine.optimizer, engine.trained, load_file(folder / _OPTIMIZER), numbers)
    engine.schedule.restore(state["schedule"])
    if engine.accelerator.scaler is not None and state["scaler"] is not None:
        engine.accelerator.scaler.load_state_dict(state["scaler"])
    progressed = _progressed(state)
    if state.get("worldSize", 1) == engine.world.size:
        restore_random(RandomState(load_file(folder / _random_file(engine.world.rank))))
    else:
        seed_rank(engine.training.seed, engine.world.rank, step=progressed.step)
    return progressed


def _progressed(state: dict[str, Any]) -> Progressed:
    return Progressed.model_validate(state["progressed"])


def _random_file(rank: int) -> str:
    return f"random-{rank:05d}.safetensors"


def load_weights(path: Path, engine: Engine) -> None:
    """Weights of a checkpoint into the model, while the engine is `whole`; a divided one takes its parts."""
    engine.method.load_weights(path)
    if engine.shards is not None:
        engine.shards.take()


def optimizer_tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """The optimizer's tensors, whole, on the CPU. All ranks come; rank 0 has something from it."""

    def whole(value: torch.Tensor) -> torch.Tensor:
        found = gathered(value, engine.world)
        return found if engine.world.leads else torch.empty(0)

    return optimizers.state_tensors(engine.optimizer, engine.trained, whole)
