"""A FineTuneJob as a bare process on this machine: pointed at folders, run by `olivine-train --spec FILE`, its record and cost read."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from ruamel.yaml import YAML

HERE = Path(__file__).parent
_LOOK_SECONDS = 2.0  # how often the cost is noted: what the last moments took is missed
_T = TypeVar("_T")


@dataclass(frozen=True)
class Cost:
    """What a piece of work took."""

    cpu_seconds: float
    wall_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a job ended with, as the page needs it."""

    resolved: Mapping[str, Any]
    baseline: Mapping[str, float]
    metrics: Mapping[str, float]
    estimated_bytes: int
    peak_bytes: int
    saving_share: float
    """Time that training stood still for checkpoints, over that of its steps."""
    artifact_bytes: int
    cost: Cost
    samples: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cost = Cost(**raw.pop("cost"))
        return cls(**raw, cost=cost)


def manifest(name: str) -> dict[str, Any]:
    """One of this folder's FineTuneJobs."""
    return YAML(typ="safe", pure=True).load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))


def placed(job: Mapping[str, Any], *, model: Path, rows: Path, storage: Path) -> dict[str, Any]:
    """The job with its model, rows and storage in folders of this machine; everything else stays as the manifest has it."""
    spec = json.loads(json.dumps(job["spec"]))
    spec["model"] = {"uri": f"file://{model}"}
    for split in ("train", "validation", "test"):
        if split in spec["data"]:
            spec["data"][split] = {"uri": f"file://{rows}/{split}.jsonl"}
    spec["storage"] = {"uri": f"file://{storage}"}
    return {**job, "spec": spec}


def run_job(job: Mapping[str, Any], *, scratch: Path, threads: int) -> Outcome:
    """Train it to its end; one that was cut off goes on from its newest checkpoint, and what it took before counts.

    Raises SystemExit with its last words.
    """
    name = job["metadata"]["name"]
    spec, log, costs = (scratch / f"{name}.{end}" for end in ("json", "log", "costs"))
    written = json.dumps(job, indent=1)
    if not spec.exists() or spec.read_text() != written:
        costs.unlink(missing_ok=True)  # of another job
        spec.write_text(written)
    environ = os.environ | {"OLIVINE_CPU_LIMIT": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "olivine_trainer", "train", "--spec", str(spec)]
    before = Cost(**json.loads(costs.read_text())) if costs.exists() else Cost(0.0, 0.0)
    with log.open("a") as out:
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=subprocess.STDOUT)
        cost, code = before, None
        start = time.monotonic()
        while code is None:
            try:
                code = process.wait(timeout=_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                cost = Cost(before.cpu_seconds + tree_cpu_seconds(process.pid), before.wall_seconds + time.monotonic() - start)
                costs.write_text(json.dumps(asdict(cost)))
    if code != 0:
        raise SystemExit(f"{name} ended with exit code {code}; the end of its log {log}:\n{log.read_text()[-2000:]}")
    return outcome(Path(job["spec"]["storage"]["uri"].removeprefix("file://")), log, cost)


def tree_cpu_seconds(pid: int) -> float:
    """What a process, its descendants and those that it waited for have used so far."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile: its parent has its times
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
        used[int(path.parent.name)] = sum(map(int, fields[11:15]))
    tree = [pid]
    for member in tree:
        tree += children.get(member, [])
    return sum(used.get(member, 0) for member in tree) / os.sysconf("SC_CLK_TCK")


def outcome(storage: Path, log: Path, cost: Cost) -> Outcome:
    """Of the one run below `storage`, and what its log told of saving."""
    (record,) = storage.glob("*/*/*/run/published.json")
    published = json.loads(record.read_text(encoding="utf-8"))
    snapshot = published["snapshot"]
    return Outcome(
        resolved=snapshot["resolved"],
        baseline=snapshot["baseline"],
        metrics=snapshot["metrics"],
        estimated_bytes=snapshot["estimate"]["memoryBytes"],
        peak_bytes=snapshot["peakMemoryBytes"],
        saving_share=_last(log, "shareOfStepTime"),
        artifact_bytes=sum(artifact["bytes"] for artifact in snapshot["artifacts"]),
        cost=cost,
        samples=published.get("samples", []),
    )


def priced(work: Callable[[], _T]) -> tuple[_T, Cost]:
    """What it returns, and what it took in this process."""
    cpu, wall = time.process_time(), time.monotonic()
    made = work()
    return made, Cost(cpu_seconds=time.process_time() - cpu, wall_seconds=time.monotonic() - wall)


def _last(log: Path, name: str) -> float:
    found = 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        if line.startswith("{") and f'"{name}"' in line:
            found = float(json.loads(line)[name])
    return found
