"""From what was measured to a page: shares with their intervals, who wins by how much, and what everything cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from tests.bench.results.baselines import Scored
from tests.bench.results.jobs import Cost, Outcome

_Z = 1.959964  # 95 %
SAVING_LIMIT, MEMORY_LIMIT = 0.035, 0.15
DATA = (
    "The data are PolyAI's [task-specific-datasets](https://github.com/PolyAI-LDN/task-specific-datasets), CC BY 4.0: Banking77 (Casanueva"
    " et al. 2020, [arXiv 2003.04807](https://arxiv.org/abs/2003.04807)) and NLU++ (Casanueva et al. 2022,"
    " [arXiv 2204.13021](https://arxiv.org/abs/2204.13021)). No row of them is part of this project."
)


@dataclass(frozen=True)
class Banking:
    """Everything about Banking77; what was not measured is None."""

    outcome: Outcome
    tfidf: tuple[Scored, Cost]
    asked: tuple[Scored, Cost] | None
    intents: int
    trained_rows: int
    test_rows: int


@dataclass(frozen=True)
class Slots:
    """Everything about the slots of NLU++."""

    outcome: Outcome
    trained_rows: int
    seen_rows: int
    """That its steps had, all in all."""
    test_rows: int
    test_slots: int


def interval(share: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `rows`."""
    middle = share + _Z**2 / (2 * rows)
    spread = _Z * sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2))
    whole = 1 + _Z**2 / rows
    return (middle - spread) / whole, (middle + spread) / whole


def render(banking: Banking | None, slots: Slots | None, environment: Mapping[str, str]) -> str:
    """The whole page, markdown."""
    lines = [
        "# What a small model learns from real rows",
        "Written by `make bench-results`: each job below is trained as a bare process, `olivine-train --spec FILE`. Base and tuned model are measured by",
        "the same code on test rows that nothing else looked at. Behind a share stands its 95 % interval (Wilson's, of the number of rows).",
        "",
        DATA,
        "",
        "## Environment",
        *(f"- {name}: {value}" for name, value in environment.items()),
        *(_banking(banking) if banking is not None else ["", "## Banking77", "Not measured yet."]),
        *(_slots(slots) if slots is not None else ["", "## NLU++ banking: slots", "Not measured yet."]),
        "",
        "## Repeat it",
        "```",
        "make bench-results DATA=FOLDER",
        "```",
        "FOLDER has `banking77/train.csv` and `test.csv`, and `nlupp-banking/fold0.json` to `fold19.json`, as published; their rows are written to",
        "`.olivine/bench-results` and leave it no further. A run that is cut off goes on from its newest checkpoint when the command is",
        'repeated; `BENCH="--only PART …"` measures parts anew, takes the others from there, and with no PART writes the page alone. Another data set or model: copy a manifest, put in its URIs.',
    ]
    return "\n".join(lines) + "\n"


def _banking(banking: Banking) -> list[str]:
    outcome = banking.outcome
    tuned = Scored(banking.test_rows, outcome.metrics["testAccuracy"], outcome.metrics["testMacroF1"])
    untrained = Scored(banking.test_rows, outcome.baseline["testAccuracy"], outcome.baseline["testMacroF1"])
    rival, rival_cost = banking.tfidf
    rows = [("**SmolLM2-135M, tuned**", tuned, outcome.cost), ("TF-IDF and logistic regression", rival, rival_cost)]
    if banking.asked is not None:
        rows.append(("SmolLM2-135M untrained, asked for the most probable topic", *banking.asked))
    return [
        "",
        f"## Banking77: {banking.intents} intents",
        f"[The job](../../tests/bench/results/banking77.yaml) trains on {banking.trained_rows:,} rows; TF-IDF is fitted on the same rows, and the"
        " same validation rows choose its C.",
        "",
        "| classifier | test rows | accuracy | macro-F1 | CPU-hours |",
        "|---|---|---|---|---|",
        *(_classifier(name, scored, cost) for name, scored, cost in rows),
        f"| SmolLM2-135M with the head that training began with | {untrained.rows:,} | {_share(untrained.accuracy, untrained.rows)} |"
        f" {untrained.macro_f1:.3f} | in the job's |",
        "",
        f"- {verdict(tuned.accuracy, rival.accuracy, banking.test_rows, times=outcome.cost.cpu_seconds / rival_cost.cpu_seconds)}",
        f"- TF-IDF: {rival.how}.",
        *([f"- Asked for the topic: {banking.asked[0].how}."] if banking.asked is not None else []),
        *_facts(outcome),
    ]


def _slots(slots: Slots) -> list[str]:
    outcome = slots.outcome
    return [
        "",
        "## NLU++ banking: slots",
        f"[The job](../../tests/bench/results/nlupp-banking.yaml) trains on folds 0 to 16 ({slots.trained_rows:,} rows, most of them without a slot;"
        f" its steps see {slots.seen_rows:,} of them once), folds 17 to 19 are measured: {slots.test_rows:,} rows with {slots.test_slots} slots. An entity counts where label and extent are equal.",
        "",
        "| model | entity F1 | precision | recall | answers that could not be read |",
        "|---|---|---|---|---|",
        _extractor("SmolLM2-135M", outcome.baseline, slots),
        _extractor("**tuned**", outcome.metrics, slots),
        "",
        *_facts(outcome),
    ]


def verdict(ours: float, other: float, rows: int, *, times: float) -> str:
    """Who wins against TF-IDF, unless so many rows cannot tell; `times`: how often its CPU the tuned model took."""
    difference = ours - other
    spread = _Z * sqrt((ours * (1 - ours) + other * (1 - other)) / rows)
    who = "neither wins nor loses" if abs(difference) <= spread else "wins" if difference > 0 else "loses"
    return (
        f"Against TF-IDF the tuned model {who}: {100 * difference:+.1f} points, where chance explains {100 * spread:.1f} (95 %, taking the two"
        f" classifiers' errors as independent), at {times:.0f} times its CPU."
    )


def _classifier(name: str, scored: Scored, cost: Cost) -> str:
    return f"| {name} | {scored.rows:,} | {_share(scored.accuracy, scored.rows)} | {scored.macro_f1:.3f} | {_hours(cost)} |"


def _extractor(name: str, metrics: Mapping[str, float], slots: Slots) -> str:
    f1, precision, recall, malformed = (
        metrics[f"test{key}"] for key in ("EntityF1", "EntityPrecision", "EntityRecall", "MalformedAnswers")
    )
    return f"| {name} | {f1:.3f} | {precision:.3f} | {_share(recall, slots.test_slots)} | {malformed:.0f} of {slots.test_rows:,} |"


def _facts(outcome: Outcome) -> Sequence[str]:
    data = outcome.resolved["data"]
    apart = outcome.estimated_bytes / outcome.peak_bytes - 1
    return [
        f"- The job took {_hours(outcome.cost)} CPU-hours and {outcome.cost.wall_seconds / 3600:.2f} hours on the wall, measuring base and tuned model"
        f" included. It trains {outcome.resolved['trainableParameters']:,} numbers; the artifact has {outcome.artifact_bytes / 1e6:.1f} MB."
        f" {data['tokens']:,} tokens an epoch.",
        f"- Memory: {_gib(outcome.estimated_bytes)} estimated before training, {_gib(outcome.peak_bytes)} at the peak ({apart:+.1%};"
        f" at most {MEMORY_LIMIT:.0%}: {_kept(abs(apart) <= MEMORY_LIMIT)}).",
        f"- A checkpoint every 10 steps held training up for {outcome.saving_share:.2%} of its step time (at most {SAVING_LIMIT:.1%}:"
        f" {_kept(outcome.saving_share <= SAVING_LIMIT)}).",
    ]


def _share(share: float, rows: int) -> str:
    low, high = interval(share, rows)
    return f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _hours(cost: Cost) -> str:
    hours = cost.cpu_seconds / 3600
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.3f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _kept(holds: bool) -> str:
    return "kept" if holds else "NOT kept"
