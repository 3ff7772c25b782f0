"""One contestant, in a process of its own: trains the workload and tells what it cost from the second step on."""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.bench.trainer.workload import (
    ALPHA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    PACK_TOKENS,
    RANK,
    SEED,
    TARGETS,
    WEIGHT_DECAY,
    Workload,
)


@dataclass
class Run:
    """What one run of one contestant cost; the first step, which warms up, is left out of times and tokens."""

    contestant: str
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    tokens: int = 0
    """Without padding."""
    peak_bytes: int = 0
    losses: list[float] = field(default_factory=list)
    """Of every step."""
    saving_share: float | None = None
    """Time that training stood still for checkpoints, over the time of its steps; Olivine's alone."""

    def start(self) -> None:
        """After the first step."""
        self.cpu_seconds, self.wall_seconds = -time.process_time(), -time.perf_counter()

    def stop(self) -> None:
        """After the last step."""
        self.cpu_seconds += time.process_time()
        self.wall_seconds += time.perf_counter()
        self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def olivine(load: Workload, scratch: Path) -> Run:
    """The verb `train` as a worker calls it: logs, one checkpoint and publishing included, but for what is outside the steps."""
    from olivine_api.status import Stage
    from olivine_trainer.loop.claim import Claim, claim_run, fetch_sources, open_run
    from olivine_trainer.loop.stop import StopFlag
    from olivine_trainer.modeling.imports import import_training_stack
    from olivine_trainer.reporting.board import Board

    run = Run("Olivine")

    class Clock(Board):
        """Starts with the first point of the curve, stops where the stage leaves training."""

        first = 0

        def point(self, step: int, **values: Any) -> None:
            super().point(step, **values)
            if step == 1:
                self.first = self.snapshot.progress.trained_tokens or 0
                run.start()

        def progress(self, **changes: Any) -> None:
            left = self.snapshot.progress.stage is Stage.TRAINING and changes.get("stage", Stage.TRAINING) is not Stage.TRAINING
            super().progress(**changes)
            if left and not run.peak_bytes:
                run.stop()
                run.tokens = (self.snapshot.progress.trained_tokens or 0) - self.first

    job, board = load.job(scratch / "runs"), Clock(None)
    records = open_run(job, {})
    claim = claim_run(job, records, board)
    assert isinstance(claim, Claim)
    sources = fetch_sources(job, {}, scratch, board)
    import_training_stack()
    from olivine_trainer.loop.train import train

    train(job, claim, sources, board=board, stop=StopFlag(), scratch=scratch)
    run.losses = [point.train_loss or 0.0 for point in board.curve]
    run.saving_share = _saving_share(scratch / "runs")
    return run


def _saving_share(runs: Path) -> float:
    """As the attempt's last event of a checkpoint tells it."""
    lines = [line for path in sorted(runs.rglob("events-*.jsonl")) for line in path.read_text().splitlines()]
    return [event["share"] for event in map(json.loads, lines) if event["event"] == "CheckpointSaved"][-1]


def transformers_trainer(load: Workload, scratch: Path) -> Run:
    """transformers' Trainer over a peft model, with its collator for padded rows."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer, rows = _peft_model(load, scratch)
    run = Run("transformers Trainer + peft")
    arguments = TrainingArguments(**_arguments(load, scratch))
    trainer = _clocked(Trainer, run)(
        model=model, args=arguments, train_dataset=_dataset(rows), data_collator=DataCollatorForSeq2Seq(tokenizer)
    )
    trainer.train()
    return run


def trl_trainer(load: Workload, scratch: Path) -> Run:
    """TRL's SFTTrainer over the same peft model; in row B it packs by its own default strategy."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model, tokenizer, rows = _peft_model(load, scratch)
    run = Run("TRL SFTTrainer")
    shared = _arguments(load, scratch)
    own: dict[str, Any] = {"gradient_checkpointing": False, "max_length": PACK_TOKENS if load.packing else None}
    if load.packing:
        own |= {"packing": True, "completion_only_loss": True}
        # Olivine packs the rows of a step; TRL's batch size is of packs: as many as hold as many tokens.
        tokens = sum(len(row["input_ids"]) for row in rows) / load.steps
        shared["per_device_train_batch_size"] = max(1, round(tokens / PACK_TOKENS))
        rows = [{"input_ids": row["input_ids"], "completion_mask": [int(label >= 0) for label in row["labels"]]} for row in rows]
    else:
        own |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = _clocked(SFTTrainer, run)(
        model=model, args=SFTConfig(**shared, **own), train_dataset=_dataset(rows), processing_class=tokenizer
    )
    trainer.train()
    return run


CONTESTANTS: dict[str, Callable[[Workload, Path], Run]] = {
    "olivine": olivine,
    "transformers": transformers_trainer,
    "trl": trl_trainer,
}


def _peft_model(load: Workload, scratch: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Model, adapter initialised as Olivine initialises it, tokenizer, and the rows in the order in which Olivine draws them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from olivine_trainer.data.prepare import prepare_examples
    from olivine_trainer.loop.claim import fetch_sources
    from olivine_trainer.reporting.board import Board

    tokenizer = AutoTokenizer.from_pretrained(load.model)
    job = replace(load, packing=False).job(Path("/unused"))
    loaded = fetch_sources(job, {}, scratch, Board(None)).rows
    drawn = prepare_examples(job.spec.data, loaded, tokenizer, stop_ids=frozenset({tokenizer.eos_token_id})).train
    examples = [example for step in range(load.steps) for example in drawn.batch(SEED, step, load.batch)]
    rows = [
        {
            "input_ids": example.ids.tolist(),
            "labels": [int(token) if learned else -100 for token, learned in zip(example.ids, example.learned, strict=True)],
        }
        for example in examples
    ]
    model = AutoModelForCausalLM.from_pretrained(load.model, dtype=torch.float32)
    model.config.use_cache = False
    torch.manual_seed(SEED)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS, bias="none", task_type="CAUSAL_LM")
    return get_peft_model(model, lora), tokenizer, rows


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _arguments(load: Workload, scratch: Path) -> dict[str, Any]:
    """Everything that Olivine is told too; all else is the library's default."""
    return {
        "output_dir": str(scratch),
        "max_steps": load.steps,
        "per_device_train_batch_size": load.batch,
        "train_sampling_strategy": "sequential",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "optim": "adamw_torch",
        "seed": SEED,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _clocked(kind: Any, run: Run) -> Any:
    """A trainer class that notes each step's loss and tokens, and the costs from the second step on."""

    class Clocked(kind):
        """Counts around the real step."""

        def training_step(self, model: Any, inputs: Any, *arguments: Any, **names: Any) -> Any:
            if len(run.losses) == 1:
                run.start()
            mask = inputs.get("attention_mask")
            tokens = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            loss = super().training_step(model, inputs, *arguments, **names)
            run.tokens += tokens if run.losses else 0
            run.losses.append(float(loss))
            return loss

        def train(self, *arguments: Any, **names: Any) -> Any:
            result = super().train(*arguments, **names)
            run.stop()
            return result

    return Clocked


def main() -> None:
    """`python -m tests.bench.trainer.contestants NAME WORKLOAD`: the run as JSON in the last line."""
    name, path = sys.argv[1:]
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as scratch:
        run = CONTESTANTS[name](Workload.load(Path(path)), Path(scratch))
    print(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
