"""What every contestant trains on: one job, its rows, and for each step the batch that Olivine draws."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from olivine_api.finetunejob import parse_spec
from olivine_api.status import JobIdentity
from olivine_trainer.job import Job

ROWS = Path("examples/data/phrase-tone.jsonl")
RANK, ALPHA, SEED, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY = 8, 16, 0, 2e-3, 1.0, 0.01
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
PACK_TOKENS = 256


@dataclass(frozen=True)
class Workload:
    """One row of the table, as a file passes it to the contestants' processes."""

    row: str
    """A: the same batches. B: each packs as it can."""
    model: str
    rows: str
    steps: int
    batch: int
    """Rows of a step."""
    loss_on: str = "Completion"
    packing: bool | None = None
    """data.packing; None: absent, Olivine's default."""
    method: str = "LoRA"
    """Or Full."""
    checkpoint_every: int | None = None
    """Steps; None: one checkpoint, at the end."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    def job(self, storage: Path) -> Job:
        """The FineTuneJob. Raises ValidationError where this build does not serve it."""
        lora = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "targetModules": TARGETS}
        raw: dict[str, Any] = {
            "task": "Generation",
            "model": {"uri": f"file://{self.model}"},
            "data": {
                "train": {"uri": f"file://{self.rows}"},
                "template": {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"},
                "lossOn": self.loss_on,
                "maxLength": PACK_TOKENS if self.packing else 128,
                **({} if self.packing is None else {"packing": self.packing}),
            },
            "method": {"type": self.method} | ({"lora": lora} if self.method == "LoRA" else {}),
            "training": {
                "maxSteps": self.steps,
                "learningRate": LEARNING_RATE,
                "scheduler": "cosine",
                "batchSize": self.batch,
                "weightDecay": WEIGHT_DECAY,
                "maxGradNorm": MAX_GRAD_NORM,
                "precision": "fp32",
                "loggingSteps": 1,
                "seed": SEED,
            },
            "tracking": {"tensorboard": False},
            "checkpoint": {"everySteps": self.checkpoint_every or self.steps},
            "storage": {"uri": f"file://{storage}"},
        }
        return Job(spec=parse_spec(raw), identity=JobIdentity(namespace="bench", name="trainer", uid="u1", child=""))
