"""The support matrix: family x method x task x precision x distribution. The tests run its cells, docs/support-matrix.md shows them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from olivine_api.finetunejob import parse_spec
from tests.support.models import FAMILIES

_LORA = {"rank": 4, "alpha": 8}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"type": "LoRA", "lora": _LORA},
    "QLoRA": {"type": "QLoRA", "lora": _LORA},
    "Adapter, Houlsby": {"type": "Adapter", "adapter": {"bottleneck": 8}},
    "Adapter, Pfeiffer": {"type": "Adapter", "adapter": {"bottleneck": 8, "placement": "Pfeiffer"}},
    "Full": {"type": "Full"},
}
_PAIR = {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"}
TASKS: dict[str, dict[str, Any]] = {
    "Generation": {"task": "Generation", "data": {"template": _PAIR}},
    "Instruction": {"task": "Instruction", "data": {"template": {"messages": "chat"}}},
    "Classification": {"task": "Classification", "data": {"template": _PAIR}},
    "Classification, Sequence": {
        "task": "Classification",
        "data": {"template": _PAIR, "labels": {"field": "tone"}},
        "classification": {"head": "Sequence"},
    },
    "Extraction": {
        "task": "Extraction",
        "data": {
            "template": {"prompt": "Phrase: {phrase}\nSpans:", "completion": "{spans}"},
            "extraction": {"format": "Spans", "textField": "phrase", "spansField": "spans"},
        },
    },
    "Summarization": {"task": "Summarization", "data": {"template": _PAIR}},
}
PRECISIONS = ("fp32", "bf16", "fp16")
DISTRIBUTIONS = {"one process": 1, "two processes": 2}

NO_HALF_ON_CPU = "training.precision fp16 needs a CUDA device and this pod has none: write Auto, fp32 or bf16"


@dataclass(frozen=True)
class Cell:
    """One combination."""

    family: str
    method: str
    task: str
    precision: str
    distribution: str

    @property
    def name(self) -> str:
        """For people and for pytest."""
        return " / ".join((self.family, self.method, self.task, self.precision, self.distribution))

    def spec(self, model: str, rows: str, storage: str) -> dict[str, Any]:
        """A specification of two steps, between two measurements."""
        task = TASKS[self.task]
        return {
            **task,
            "model": {"uri": model},
            "data": {"train": {"uri": rows}, "validationFraction": 0.25, "maxLength": 96, **task["data"]},
            "method": METHODS[self.method],
            "training": {
                "maxSteps": 2,
                "learningRate": 5e-3,
                "batchSize": 8 // DISTRIBUTIONS[self.distribution],
                "loggingSteps": 1,
                "precision": self.precision,
            },
            "evaluation": {"samples": 1},
            "checkpoint": {"everySteps": 1},
            "tracking": {"tensorboard": False},
            "storage": {"uri": storage},
        }

    @property
    def refusal(self) -> str | None:
        """The sentence that this combination is refused with, by `kubectl apply` or by the trainer; None where it trains."""
        try:
            parse_spec(self.spec("file:///model", "file:///rows.jsonl", "file:///runs"))
        except ValidationError as error:
            return "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        return NO_HALF_ON_CPU if self.precision == "fp16" else None

    @property
    def core(self) -> bool:
        """Whether `make test` runs it: each family with each method, and each other axis with each method, on one Llama.

        `make test-full` runs all.
        """
        plain = (self.precision == "fp32") + (self.distribution == "one process") + (self.task == "Generation")
        return plain == 3 or (plain == 2 and self.family == "Llama")


def cells() -> Iterator[Cell]:
    """All of them."""
    for parts in itertools.product(FAMILIES, METHODS, TASKS, PRECISIONS, DISTRIBUTIONS):
        yield Cell(*parts)


def matrix_markdown() -> str:
    """docs/support-matrix.md: a table for each precision and distribution, a row for each family and method."""
    refusals: dict[str, int] = {}
    tables: list[str] = []
    for precision, distribution in itertools.product(PRECISIONS, DISTRIBUTIONS):
        tables += [f"## {precision}, {distribution}", ""]
        tables += [f"| family | method | {' | '.join(TASKS)} |", "|---" * (2 + len(TASKS)) + "|"]
        for family, method in itertools.product(FAMILIES, METHODS):
            marks: list[str] = []
            for task in TASKS:
                refusal = Cell(family, method, task, precision, distribution).refusal
                marks.append("yes" if refusal is None else f"refused ({refusals.setdefault(refusal, len(refusals) + 1)})")
            tables.append(f"| {family} | {method} | {' | '.join(marks)} |")
        tables.append("")
    lines = [
        "<!-- Generated by `make generate` from tests/support/matrix.py; do not edit. -->",
        "# Support matrix",
        "",
        "Family x method x task x precision x distribution. The tests run each cell (tests/unit/trainer/test_matrix.py) on a tiny random model",
        "of the family, on a CPU: two steps between two measurements of the validation rows, a checkpoint after each, and the artifact published.",
        "`make test` runs each family with each method, and each other axis with each method on a Llama; `make test-full` runs all.",
        "A cell says yes, or is refused with a sentence:",
        "",
        *(f"{number}. {sentence}" for sentence, number in refusals.items()),
        "",
        *tables,
    ]
    return "\n".join(lines)
