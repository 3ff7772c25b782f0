"""`make bench-bundle`: measures bundles, merged models and Olive, each step in a process of its own, and writes docs/benchmarks/bundle.md."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from devcluster.basemodel import base_model
from tests.bench.bundle import olive
from tests.bench.bundle.report import Measured, render
from tests.bench.bundle.workload import ALL, ATTENTION, RANK, WIDE, WIDE_RANK, Workload
from tests.bench.trainer.__main__ import processor

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "benchmarks" / "bundle.md"
# As docs/bundles.md advises. In pages of 4 KiB a model's place in memory, which each process draws anew, changes its speed by up to 30 %.
# The threshold: what glibc maps one by one, most of an int8 model's matrices, is too small for such a page.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"}
_KERNELS_CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 once the page is written, whatever it says."""
    parser = argparse.ArgumentParser(prog="make bench-bundle", description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder in Hugging Face layout (default: the embedded cluster's base model)")
    parser.add_argument("--precisions", nargs="+", default=["int8", "int4"], choices=["fp32", "int8", "int4"])
    parser.add_argument("--quick", action="store_true", help="few adapters, few tokens, no Olive: whether it runs, not how fast")
    parser.add_argument("--no-olive", action="store_true", help="leave Olive out")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    asked = parser.parse_args(arguments)
    model = (asked.model or base_model().build() / "model").resolve()
    began, load_before = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-bundle-") as scratch:
        smaller: dict[str, Any] = (
            {"counts": [1, 2], "processes": 1, "small_page_processes": 1, "turns": 2, "switches": 4} if asked.quick else {}
        )
        load = Workload(model=str(model), scratch=scratch, precisions=asked.precisions, **smaller)
        steps = _Steps(load)
        sizes: dict[str, int] = steps.run("adapters")["bytes"]
        measured = [_measure(steps, load, precision) for precision in load.precisions]
        tried: list[olive.Attempt] = []
        second = ""
        if not (asked.quick or asked.no_olive):
            olive.environment().build()
            print("Olive", flush=True)
            tried = olive.attempts(load)
            second = olive.matching_names(load)
    versions = ("torch", "peft", "onnxruntime", "onnxruntime-genai", "onnx-ir")
    environment = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, decoding on {load.threads} thread without spinning",
        "transparent huge pages": _KERNELS_CHOICE.read_text().strip() if _KERNELS_CHOICE.exists() else "none",
        "load of the machine before": f"{load_before:.1f}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in versions)
        + f", Python {platform.python_version()}",
        "model": model.name if asked.model else "SmolLM2-135M-Instruct",
        "adapters": f"{load.most + 1} random ones, r{RANK} on {', '.join(ATTENTION)}; one r{WIDE_RANK} on {', '.join(ALL)}",
        "took": f"{time.monotonic() - began:.0f} s",
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(render(measured, sizes, environment, tried, second))
    print(asked.out.read_text())
    return 0


def _measure(steps: "_Steps", load: Workload, precision: str) -> Measured:
    first = load.names(1)[0]
    folder = f"bundle-{precision}-{load.counts[0]}"
    one = Measured(precision, steps.run("plain", precision))
    for count in [*map(str, load.counts), WIDE]:
        one.bundles[count] = steps.run("bundle", precision, count)
    one.unproven = steps.run("graph_only", precision)
    one.merged = steps.run("merged", precision, first)
    one.merged_kl = steps.run("divergence", f"merged-{precision}-{first}", first)["kl"]
    one.one_more = steps.run("one_more", precision)
    one.switch = steps.run("switch", f"bundle-{precision}-{load.most}", environ=HUGE_PAGES)
    one.opened = {"bundle": steps.run("opened", folder), "merged": steps.run("opened", f"merged-{precision}-{first}")}
    one.decode = [steps.run("decode", precision, environ=HUGE_PAGES) for _ in range(load.processes)]
    one.small_pages = [steps.run("decode", precision) for _ in range(load.small_page_processes)]
    return one


class _Steps:
    """Runs them."""

    def __init__(self, load: Workload) -> None:
        self._path = load.folder / "workload.json"
        load.save(self._path)

    def run(self, *step: str, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One step in a process of its own, `environ` added to its environment."""
        print(" ".join(step), flush=True)
        whole = os.environ | {
            "OMP_WAIT_POLICY": "PASSIVE",  # as Olivine's pods set it; without it idle threads burn CPU
            "GOMP_SPINCOUNT": "0",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
            **(environ or {}),
        }
        command = [sys.executable, "-m", "tests.bench.bundle.steps", step[0], str(self._path), *step[1:]]
        done = subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(step)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
