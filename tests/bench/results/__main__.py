"""`make bench-results DATA=FOLDER`: trains the jobs of this folder on the data in FOLDER and writes docs/benchmarks/results.md."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from devcluster.basemodel import base_model
from tests.bench.results.jobs import manifest, placed, run_job
from tests.bench.results.rows import banking77, nlupp

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "benchmarks" / "results.md"
WORK = ROOT / ".olivine" / "bench-results"
SPLITS = {"banking77": banking77, "nlupp-banking": nlupp}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 once the page is written, whoever wins."""
    parser = argparse.ArgumentParser(prog="make bench-results", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with banking77/ and nlupp-banking/")
    parser.add_argument("--model", type=Path, help="a folder in Hugging Face layout (default: the embedded cluster's base model)")
    parser.add_argument("--only", nargs="+", default=list(SPLITS), choices=list(SPLITS), help="measure these anew")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of a training")
    parser.add_argument("--work", type=Path, default=WORK, help="where rows, runs and what was measured lie between two calls")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    asked = parser.parse_args(arguments)
    model = (asked.model or base_model().build() / "model").resolve()
    for name in asked.only:
        work = (asked.work / name).resolve()
        SPLITS[name](asked.data / name).write(work / "rows")
        job = placed(manifest(name), model=model, rows=work / "rows", storage=work / "runs")
        run_job(job, scratch=work, threads=asked.threads).save(work / "outcome.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
