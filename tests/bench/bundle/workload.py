"""What all contestants are asked for: one base, random adapters of it, and how much of each measurement."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
RANK, WIDE_RANK = 8, 16
WIDE = "all"
# Adapters as training leaves them: what they add changes answers, and does not drown the base.
SPREAD = 0.02


@dataclass(frozen=True)
class Workload:
    """As a file passes it to the processes that measure."""

    model: str
    scratch: str
    counts: list[int] = field(default_factory=lambda: [1, 4, 16])
    """Adapters in a bundle."""
    precisions: list[str] = field(default_factory=lambda: ["int8", "int4"])
    processes: int = 7
    """For decoding, in huge pages."""
    small_page_processes: int = 3
    """In pages of 4 KiB: to tell the difference, not for the goals."""
    turns: int = 25
    """In each of them."""
    tokens: int = 4
    """In each turn, after one that is not counted."""
    switches: int = 150
    threads: int = 1

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @property
    def folder(self) -> Path:
        """Everything that is made."""
        return Path(self.scratch)

    @property
    def most(self) -> int:
        """The largest bundle's adapters."""
        return max(self.counts)

    def adapter(self, name: str) -> Path:
        """A peft directory: a00, a01, … of rank 8 on attention, one more than the largest bundle has; `all` of rank 16 on everything."""
        return self.folder / "adapters" / name

    def names(self, count: int) -> list[str]:
        """The first so many of rank 8."""
        return [f"a{number:02d}" for number in range(count)]


def make_adapters(load: Workload) -> None:
    """Saved by peft."""
    from tests.support.adapters import make_peft

    for seed, name in enumerate(load.names(load.most + 1)):
        make_peft(Path(load.model), load.adapter(name), seed=seed, spread=SPREAD, r=RANK, lora_alpha=16, target_modules=ATTENTION)
    make_peft(Path(load.model), load.adapter(WIDE), seed=99, spread=SPREAD, r=WIDE_RANK, lora_alpha=32, target_modules=ALL)
