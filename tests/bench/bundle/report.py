"""From measurements to a page: medians, ratios, and whether each goal is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.bench.bundle.olive import Attempt

BYTES_GOAL = 1.02
NEXT_GOAL = 0.05
SWITCH_GOAL = 100.0  # microseconds
OVERHEAD_GOAL = 0.08  # of rank 8 on attention
WIDE_GOAL = 0.12  # of rank 16 on everything: would be a first
LOGIT_GOAL = 1e-3
Result = Mapping[str, Any]


@dataclass
class Measured:
    """Of one precision."""

    precision: str
    plain: Result
    bundles: dict[str, Result] = field(default_factory=dict[str, Result])
    """By the number of adapters, and `all`."""
    unproven: Result = field(default_factory=dict[str, Any])
    merged: Result = field(default_factory=dict[str, Any])
    merged_kl: float = 0.0
    one_more: Result = field(default_factory=dict[str, Any])
    switch: Result = field(default_factory=dict[str, Any])
    opened: dict[str, Result] = field(default_factory=dict[str, Result])
    decode: list[Result] = field(default_factory=list[Result])
    small_pages: list[Result] = field(default_factory=list[Result])

    def ratios(self, contestant: str, other: str) -> list[float]:
        """CPU time of a token over another contestant's, by process."""
        return [one["seconds"][contestant] / one["seconds"][other] for one in self.decode]


def kept(value: float, goal: float) -> str:
    """A goal stands beside its number."""
    return "kept" if value <= goal else "NOT kept"


def render(
    measured: Sequence[Measured],
    adapters: Mapping[str, int],
    environment: Mapping[str, str],
    olive: Sequence[Attempt] = (),
    second: str = "",
) -> str:
    """The whole page, markdown; `adapters`: bytes of the peft directories; `second`: what became of Olive's second adapter."""
    lines = [
        "# Bundles against merged models and Olive",
        "Written by `make bench-bundle`, in one run, on the same base and adapters; each measurement in a process of its own. Times are CPU time.",
        "",
        "## Environment",
        *(f"- {name}: {value}" for name, value in environment.items()),
    ]
    for one in measured:
        lines += ["", f"## {one.precision}", *_builds(one, adapters), *_goals(one, adapters), *_decode(one)]
    return "\n".join([*lines, *_olive(olive, second)]) + "\n"


def _builds(one: Measured, adapters: Mapping[str, int]) -> list[str]:
    counts = [name for name in one.bundles if name.isdigit()]
    lines = ["", "| | " + " | ".join(f"N = {name}" for name in counts) + " |", "|---|" + "---|" * len(counts)]
    size, cpu = one.merged["bytes"], one.merged["cpu"]
    rows = {
        "bundle, MB": [f"{one.bundles[name]['bytes'] / 1e6:.1f}" for name in counts],
        "merged models, MB (one built, times N)": [f"{int(name) * size / 1e6:.1f}" for name in counts],
        "bundle, CPU-seconds to build and prove": [f"{one.bundles[name]['cpu']:.1f}" for name in counts],
        "merged models, CPU-seconds to merge and build, without any proof (one built, times N)": [
            f"{int(name) * cpu:.1f}" for name in counts
        ],
        "bundle, peak memory of the build, MB": [f"{one.bundles[name]['peak_bytes'] / 1e6:.0f}" for name in counts],
    }
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    bundle, merged = one.opened["bundle"], one.opened["merged"]
    most = counts[-1]
    return [
        *lines,
        "",
        f"- the same N = {most} without proof: {one.unproven['cpu']:.1f} CPU-seconds; merging and building one takes {one.merged['peak_bytes'] / 1e6:.0f} MB",
        f"- loading: bundle {bundle['cpu']:.2f} CPU-seconds and {bundle['bytes'] / 1e6:.0f} MB, one merged model {merged['cpu']:.2f} and {merged['bytes'] / 1e6:.0f} MB"
        f" (N of them take N times that); an adapter {one.switch['load']:.2f} ms",
        f"- mean KL from PyTorch with the adapter: bundle {one.bundles[counts[0]]['kl']:.4f}, merged {one.merged_kl:.4f}, the base's own {one.bundles[counts[0]]['base_kl']:.4f}",
        f"- as shipped the bundle finds PyTorch's likeliest token at {one.bundles[counts[0]]['top1']:.1%} of all, and gives {one.bundles[counts[0]]['greedy']:.1%} of its greedy answers",
    ]


def _goals(one: Measured, adapters: Mapping[str, int]) -> list[str]:
    lines = ["", "| goal | measured | |", "|---|---|---|"]

    def goal(text: str, shown: str, value: float, most: float) -> None:
        lines.append(f"| {text} | {shown} | {kept(value, most)} |")

    for name, found in one.bundles.items():
        own = [size for adapter, size in adapters.items() if adapter == name] or list(adapters.values())[: int(name)]
        share = (found["bytes"] - one.plain["bytes"]) / sum(own)
        label = f"N = {name}" if name.isdigit() else "r16 on everything"
        goal(f"bytes above the base's, {label}, over the peft files: at most {BYTES_GOAL}", f"{share:.3f}", share, BYTES_GOAL)
    share = one.one_more["next"] / one.one_more["first"]
    shown = f"{share:.1%} ({one.one_more['next']:.1f} of {one.one_more['first']:.1f} CPU-seconds)"
    goal(f"one adapter more, over the first build: at most {NEXT_GOAL:.0%}", shown, share, NEXT_GOAL)
    share = one.unproven["next"] / one.unproven["cpu"]
    shown = f"{share:.1%} ({one.unproven['next']:.2f} of {one.unproven['cpu']:.1f} CPU-seconds)"
    goal(f"the same, both without proof: at most {NEXT_GOAL:.0%}", shown, share, NEXT_GOAL)
    took = one.switch["call"] + max(0.0, one.switch["token"])
    shown = f"{took:.0f} (call {one.switch['call']:.1f}, next token {one.switch['token']:+.0f})"
    goal(f"a switch: at most {SWITCH_GOAL:.0f} microseconds", shown, took, SWITCH_GOAL)
    worst = max(found["max_logit_difference"] for found in one.bundles.values())
    goal(f"largest logit difference of the fp32 build: at most {LOGIT_GOAL:g}", f"{worst:.1e}", worst, LOGIT_GOAL)
    for label, contestant, most in (
        ("r8 on attention", "attention, r8 active", OVERHEAD_GOAL),
        ("r16 on everything", "all linear, r16 active", WIDE_GOAL),
    ):
        ratios = [ratio - 1 for ratio in one.ratios(contestant, "base")]
        shown = f"{median(ratios):.1%} ({min(ratios):.1%} to {max(ratios):.1%})"
        goal(f"decode overhead, {label}, of the base without slots: at most {most:.0%}", shown, median(ratios), most)
    return lines


def _decode(one: Measured) -> list[str]:
    lines = [
        "",
        f"Decoding in huge pages (docs/bundles.md): {len(one.decode)} processes; median (lowest to highest).",
        "",
        "| | tokens per CPU-second | CPU time over the base's | over the merged model's | over its own idle |",
        "|---|---|---|---|---|",
    ]
    for name in one.decode[0]["seconds"]:
        idle = f"{name.partition(',')[0]}, idle"
        cells = [
            f"{median(1 / run['seconds'][name] for run in one.decode):.1f}",
            _spread(one.ratios(name, "base")),
            _spread(one.ratios(name, "merged")),
            _spread(one.ratios(name, idle)) if name.endswith("active") else "-",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    small = ", ".join(
        f"{name} {_spread([1 / run['seconds'][name] for run in one.small_pages], 1)}" for name in ("base", "attention, r8 active")
    )
    return [
        *lines,
        "",
        f"Tokens per CPU-second in pages of 4 KiB, as glibc has them by itself, {len(one.small_pages)} processes: {small}.",
    ]


def _olive(attempts: Sequence[Attempt], second: str) -> list[str]:
    if not attempts:
        return []
    lines = ["", "## Olive", "Its commands on the first two adapters, each with what it left and what it said.", ""]
    lines += ["| command | exit code | CPU-seconds | MB left | error |", "|---|---|---|---|---|"]
    for one in attempts:
        code = "none" if one.code is None else str(one.code)
        said = one.said.replace("|", "\\|") or "-"
        lines.append(f"| `{one.command}` | {code} | {one.cpu_seconds:.0f} | {one.bytes / 1e6:.1f} | {said} |")
    return [*lines, "", f"- {second}"]


def _spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
