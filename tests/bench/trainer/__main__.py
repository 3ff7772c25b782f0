"""`make bench-trainer`: runs the contestants in turn, each in a process of its own, and writes docs/benchmarks/trainer.md."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from devcluster.basemodel import base_model
from tests.bench.trainer.contestants import CONTESTANTS, Run
from tests.bench.trainer.report import Row, render
from tests.bench.trainer.workload import ROWS, Workload

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "benchmarks" / "trainer.md"
PACKED_TIMES = 4  # packs of one step must be several, and full
SAVING = {"LoRA": 10, "Full": 100}  # steps between checkpoints
TITLES = {
    "A": "identical batches, loss on the completion; Olivine leaves padding out by itself, the others pad",
    "A-padded": "as A, with data.packing false: all pad",
    "A-all": "as A, loss on every token",
    "B": "packed by those who can, loss on the completion",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 once the page is written, whoever wins."""
    parser = argparse.ArgumentParser(prog="make bench-trainer", description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder in Hugging Face layout (default: the embedded cluster's base model)")
    parser.add_argument("--rows", nargs="+", default=list(TITLES), choices=list(TITLES), help="rows of the table")
    parser.add_argument(
        "--saving", nargs="*", default=list(SAVING), choices=list(SAVING), help="methods whose checkpoints are timed"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contestant in each row")
    parser.add_argument("--steps", type=int, default=13, help="optimizer steps of a run; the first is not counted")
    parser.add_argument("--batch", type=int, default=8, help=f"rows of a step; {PACKED_TIMES} times as many in row B")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each contestant")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    asked = parser.parse_args(arguments)
    model = asked.model or base_model().build() / "model"
    load_before = os.getloadavg()[0]
    rows = [_run_row(name, model, asked) for name in asked.rows]
    saving = {
        f"{name}, every {SAVING[name]} steps": _run("olivine", _saving(name, model, asked), asked.threads) for name in asked.saving
    }
    environment = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, {asked.threads} threads a contestant, CPU only, fp32",
        "load of the machine before": f"{load_before:.1f}",
        "versions": ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft", "accelerate", "trl")
        )
        + f", Python {platform.python_version()}",
        "model": f"{model.name if asked.model else 'SmolLM2-135M-Instruct'}, LoRA r8 on q, k, v, o",
        "rows": f"{ROWS}, {asked.steps} steps of {asked.batch} rows, {asked.rounds} runs each",
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(render(rows, environment, saving))
    print(asked.out.read_text())
    return 0


def _run_row(name: str, model: Path, asked: argparse.Namespace) -> Row:
    packed = name == "B"
    load = Workload(
        row=name,
        model=str(model.resolve()),
        rows=str(ROOT / ROWS),
        steps=asked.steps,
        batch=PACKED_TIMES * asked.batch if packed else asked.batch,
        loss_on="All" if name == "A-all" else "Completion",
        packing={"B": True, "A-padded": False}.get(name),
    )
    contestants, note = list(CONTESTANTS), ""
    if packed:
        contestants.remove("transformers")
        note = "transformers' Trainer has no packing: TRL alone is compared."
    runs: list[Run] = []
    for turn in range(asked.rounds):
        for place in range(len(contestants)):  # nobody is always first
            contestant = contestants[(turn + place) % len(contestants)]
            print(f"row {name}, round {turn + 1} of {asked.rounds}: {contestant}", flush=True)
            runs.append(_run(contestant, load, asked.threads))
    return Row(name, TITLES[name], sorted(runs, key=lambda run: run.contestant != "Olivine"), note)


def _saving(method: str, model: Path, asked: argparse.Namespace) -> Workload:
    """Until the last of some checkpoints is whole, rows as in A."""
    every = SAVING[method]
    print(f"checkpoints of {method}", flush=True)
    return Workload(
        row="saving",
        model=str(model.resolve()),
        rows=str(ROOT / ROWS),
        steps=max(every, 30) + 1,
        batch=asked.batch,
        method=method,
        checkpoint_every=every,
    )


def _run(contestant: str, load: Workload, threads: int) -> Run:
    environ = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # as Olivine's pods set it; without it idle threads burn CPU
        "GOMP_SPINCOUNT": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "workload.json"
        load.save(path)
        command = [sys.executable, "-m", "tests.bench.trainer.contestants", contestant, str(path)]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{contestant} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def processor() -> str:
    """Its name, as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
