"""`make bench-results DATA=FOLDER`: trains the jobs of this folder on the data in FOLDER and writes docs/benchmarks/results.md."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from devcluster.basemodel import base_model
from tests.bench.results.baselines import Scored, asked_plainly, tfidf
from tests.bench.results.jobs import Cost, Outcome, manifest, placed, priced, run_job
from tests.bench.results.report import Banking, Slots, render
from tests.bench.results.rows import Splits, banking77, nlupp
from tests.bench.trainer.__main__ import processor

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "benchmarks" / "results.md"
WORK = ROOT / ".olivine" / "bench-results"
SPLITS: dict[str, Callable[[Path], Splits]] = {"banking77": banking77, "nlupp-banking": nlupp}
TFIDF, ASKED = "tfidf", "asked"
_RECLAIMED = (
    "the kernel pages out what is cold (DAMON): resident memory, which estimate and peak below are of, falls and rises by itself"
)
PARTS = [*SPLITS, TFIDF, ASKED]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 once the page is written, whoever wins."""
    parser = argparse.ArgumentParser(prog="make bench-results", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with banking77/ and nlupp-banking/")
    parser.add_argument("--model", type=Path, help="a folder in Hugging Face layout (default: the embedded cluster's base model)")
    parser.add_argument(
        "--only",
        nargs="*",
        default=PARTS,
        metavar="PART",
        help=f"measure these of {', '.join(PARTS)}; the page takes the others from --work",
    )
    parser.add_argument("--asked", type=int, default=150, help="test rows that the base model is asked plainly")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of a training")
    parser.add_argument("--work", type=Path, default=WORK, help="where rows, runs and what was measured lie between two calls")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    asked = parser.parse_args(arguments)
    if not (asked.data / "banking77").is_dir() or not (asked.data / "nlupp-banking").is_dir():
        parser.error(f"--data {asked.data} must hold the folders banking77 and nlupp-banking: write make bench-results DATA=FOLDER")
    if unknown := sorted(set(asked.only) - set(PARTS)):
        parser.error(f"--only {' '.join(unknown)}: write some of {', '.join(PARTS)}")
    model = (asked.model or base_model().build() / "model").resolve()
    splits = {name: read(asked.data / name) for name, read in SPLITS.items()}
    for part in asked.only:
        print(f"measuring {part}", flush=True)
        work = (asked.work / part).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if part == TFIDF:
            _save(work, *priced(lambda: tfidf(splits["banking77"])))
        elif part == ASKED:
            _save(
                work,
                *priced(lambda: asked_plainly(splits["banking77"], model, sample=asked.asked, threads=asked.threads)),
            )
        else:
            splits[part].write(work / "rows")
            job = placed(manifest(part), model=model, rows=work / "rows", storage=work / "runs")
            run_job(job, scratch=work, threads=asked.threads).save(work / "outcome.json")
    page = render(_banking(asked.work, splits["banking77"]), _slots(asked.work, splits["nlupp-banking"]), _environment(asked))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(page, encoding="utf-8")
    print(page)
    return 0


def _banking(work: Path, splits: Splits) -> Banking | None:
    outcome, rival = _outcome(work / "banking77"), _scored(work / TFIDF)
    if outcome is None or rival is None:
        return None
    return Banking(
        outcome,
        tfidf=rival,
        asked=_scored(work / ASKED),
        intents=len({row["category"] for row in splits.train}),
        trained_rows=outcome.resolved["data"]["rows"],
        test_rows=len(splits.test),
    )


def _slots(work: Path, splits: Splits) -> Slots | None:
    outcome = _outcome(work / "nlupp-banking")
    if outcome is None:
        return None
    steps = manifest("nlupp-banking")["spec"]["training"]["maxSteps"]
    return Slots(
        outcome,
        trained_rows=outcome.resolved["data"]["rows"],
        seen_rows=steps * outcome.resolved["effectiveBatchSize"],
        test_rows=len(splits.test),
        test_slots=sum(len(row["slots"]) for row in splits.test),
    )


def _outcome(work: Path) -> Outcome | None:
    path = work / "outcome.json"
    return Outcome.load(path) if path.exists() else None


def _save(work: Path, scored: Scored, cost: Cost) -> None:
    (work / "scored.json").write_text(json.dumps({"scored": asdict(scored), "cost": asdict(cost)}, indent=1) + "\n")


def _scored(work: Path) -> tuple[Scored, Cost] | None:
    path = work / "scored.json"
    if not path.exists():
        return None
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Scored(**raw["scored"]), Cost(**raw["cost"])


def _environment(asked: argparse.Namespace) -> dict[str, str]:
    versions = ("torch", "transformers", "peft", "scikit-learn")
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, CPU only, fp32",
        **({"memory": _RECLAIMED} if _reclaims() else {}),
        "load of the machine after": f"{os.getloadavg()[0]:.1f}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in versions)
        + f", Python {platform.python_version()}",
        "model": str(asked.model.name) if asked.model else "SmolLM2-135M-Instruct (Apache-2.0)",
    }


def _reclaims() -> bool:
    """Whether the kernel takes cold pages of files away, the mapped weights' among them."""
    actions = Path("/sys/kernel/mm/damon/admin/kdamonds").glob("*/contexts/*/schemes/*/action")
    return any(path.read_text().strip() == "pageout" for path in actions)


if __name__ == "__main__":
    sys.exit(main())
