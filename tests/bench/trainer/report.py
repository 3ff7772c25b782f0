"""From runs to a page: medians with their spread, ratios against the goals, and how far the loss curves are apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.trainer.contestants import Run

GOALS = {"A": 1.3, "B": 1.8}
SAVING_GOAL = 0.035
CURVE_TOLERANCE = 1e-4  # the same batches in the same order: rounding alone tells them apart


@dataclass(frozen=True)
class Row:
    """One row of the table: every contestant's runs, Olivine's first; `note` says who was not run, and why."""

    name: str
    title: str
    runs: Sequence[Run]
    note: str = ""

    def of(self, contestant: str) -> list[Run]:
        """One contestant's runs."""
        return [run for run in self.runs if run.contestant == contestant]

    @property
    def contestants(self) -> list[str]:
        """In the order of their first run."""
        return list(dict.fromkeys(run.contestant for run in self.runs))


def curve_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference of two loss curves. Raises ValueError where they differ in length."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def render(rows: Sequence[Row], environment: Mapping[str, str], saving: Mapping[str, Run]) -> str:
    """The whole page, markdown. `saving`: Olivine's runs with checkpoints, by what was saved how often."""
    lines = [
        "# The trainer against transformers' Trainer and TRL's SFTTrainer",
        "Written by `make bench-trainer`: same model, rows, batches and seed, contestants interleaved, each run in a process of its own.",
        "The first step is not counted. Tokens are counted without padding. Shown: median (lowest to highest).",
        "",
        "## Environment",
        *(f"- {name}: {value}" for name, value in environment.items()),
    ]
    for row in rows:
        lines += ["", f"## Row {row.name}: {row.title}", *([row.note] if row.note else []), *_table(row), *_verdicts(row)]
    return "\n".join([*lines, *_saving(saving)]) + "\n"


def _saving(runs: Mapping[str, Run]) -> list[str]:
    if not runs:
        return []
    lines = [
        "",
        "## Checkpoints",
        "How long training stands still for them, over the time of its steps (rows and batch of A, storage on the same disk); uploads run beside it.",
        "",
    ]
    for name, run in runs.items():
        share = run.saving_share or 0.0
        lines.append(f"- {name}: {share:.2%} (at most {SAVING_GOAL:.1%}: {'reached' if share <= SAVING_GOAL else 'missed'})")
    return lines


def _table(row: Row) -> list[str]:
    lines = [
        "",
        "| contestant | runs | tokens per CPU-second | CPU-seconds | wall seconds | peak memory, MiB | largest relative loss difference |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = row.of(row.contestants[0])[0]
    for name in row.contestants:
        runs = row.of(name)
        cells = [
            name,
            str(len(runs)),
            _spread([run.tokens / run.cpu_seconds for run in runs], 1),
            _spread([run.cpu_seconds for run in runs], 2),
            _spread([run.wall_seconds for run in runs], 2),
            _spread([run.peak_bytes / 2**20 for run in runs], 0),
            "-" if name == ours.contestant or row.name == "B" else f"{_distance(ours, runs):.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _verdicts(row: Row) -> list[str]:
    ours, *others = row.contestants
    goal = GOALS[row.name[0]]
    lines = [""]
    for other in others:
        ratio = _speed(row.of(ours)) / _speed(row.of(other))
        memory = _memory(row.of(ours)) / _memory(row.of(other))
        reached = "reached" if ratio >= goal else "missed"
        more = "no more memory" if memory <= 1 else "MORE memory"
        lines.append(
            f"- against {other}: {ratio:.2f}x tokens per CPU-second (goal {goal}x: {reached}), {memory:.2f}x memory ({more})"
        )
        if row.name != "B":
            distance = _distance(row.of(ours)[0], row.of(other))
            same = "the same training" if distance <= CURVE_TOLERANCE else "NOT the same training"
            lines.append(f"- loss curve against {other}: {distance:.1e} apart (at most {CURVE_TOLERANCE:g}: {same})")
    return lines


def _distance(ours: Run, runs: Sequence[Run]) -> float:
    return max(curve_distance(run.losses, ours.losses) for run in runs)


def _speed(runs: Sequence[Run]) -> float:
    return median(run.tokens / run.cpu_seconds for run in runs)


def _memory(runs: Sequence[Run]) -> float:
    return median(run.peak_bytes for run in runs)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
