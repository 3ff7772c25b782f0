"""The bench of results: rows come out of the files as they are published, jobs are valid, and the page says who wins and what was kept."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import parse_spec
from olivine_trainer.data.extraction import written_rows
from olivine_trainer.data.rows import Row as TrainerRow
from tests.bench.results.baselines import Scored, tfidf
from tests.bench.results.jobs import Cost, Outcome, manifest, outcome, placed, tree_cpu_seconds
from tests.bench.results.report import Banking, Slots, interval, render
from tests.bench.results.rows import Splits, banking77, nlupp

WORDS = {"lost_card": "my card is gone", "top_up": "add money please", "rate": "which exchange rate"}
MESSAGES = [(f"{text}, {number} times", label) for number in range(40) for label, text in WORDS.items()]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Two data sets of made-up rows in the published form."""
    _write_csv(tmp_path / "banking77" / "train.csv", [*MESSAGES[:90], MESSAGES[100]])
    _write_csv(tmp_path / "banking77" / "test.csv", MESSAGES[90:])
    slot = {"text": "6 pounds", "span": [5, 13], "value": 6}
    for number in range(20):
        rows = [{"text": f"send 6 pounds {number}", "intents": ["send"], "slots": {"amount": slot}}, {"text": f"yes {number}"}]
        path = tmp_path / "nlupp-banking" / f"fold{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
    return tmp_path


def _write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([("text", "category"), *rows])


def test_a_message_that_is_measured_is_not_trained_on(published: Path) -> None:
    splits = banking77(published / "banking77")
    texts = [{row["text"] for row in rows} for rows in (splits.train, splits.validation, splits.test)]
    assert [len(rows) for rows in texts] == [84, 6, 30]  # a twentieth of each label's 30, rounded
    assert len(set.union(*texts)) == 120  # nobody shares a message
    assert {row["category"] for row in splits.validation} == set(WORDS)
    assert splits.test[0]["topic"] == splits.test[0]["category"].replace("_", " ")


def test_a_message_is_held_back_whatever_the_files_order(published: Path) -> None:
    before = banking77(published / "banking77")
    _write_csv(published / "banking77" / "train.csv", MESSAGES[:90][::-1])
    assert banking77(published / "banking77") == before


def test_the_trainer_reads_the_slots_as_they_are_written(published: Path, tmp_path: Path) -> None:
    splits = nlupp(published / "nlupp-banking")
    assert [len(rows) for rows in (splits.train, splits.validation, splits.test)] == [34, 0, 6]
    extraction = parse_spec(manifest("nlupp-banking")["spec"]).data.extraction
    assert extraction is not None
    rows = [TrainerRow(number, dict(row)) for number, row in enumerate(splits.test, start=1)]
    assert [row.fields["slots"] for row in written_rows(rows, extraction, "test.jsonl")] == ["amount: 6 pounds", "none"] * 3


@pytest.mark.parametrize("name", ["banking77", "nlupp-banking"])
def test_a_job_stays_as_its_manifest_has_it_but_for_places(name: str) -> None:
    asked = manifest(name)
    job = placed(asked, model=Path("/models/m"), rows=Path("/rows"), storage=Path("/runs"))
    spec = parse_spec(job["spec"])
    assert spec.data.test is not None
    assert spec.data.test.uri == "file:///rows/test.jsonl"
    apart = {key for key in asked["spec"] if job["spec"][key] != asked["spec"][key]}
    assert apart == {"model", "data", "storage"}
    assert job["spec"]["data"].keys() == asked["spec"]["data"].keys()


def test_tfidf_is_chosen_by_rows_that_are_not_measured(published: Path) -> None:
    splits = banking77(published / "banking77")
    found = tfidf(splits)
    assert (found.rows, found.accuracy, found.macro_f1) == (30, 1.0, 1.0)
    wrong = [{**row, "category": "rate"} for row in splits.test]
    assert tfidf(Splits(splits.train, splits.validation, wrong)).how == found.how


def test_an_interval_is_wilsons() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; and 0 of 20 is not told to be certainly nothing."""
    assert interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def _outcome(metrics: Mapping[str, float], baseline: Mapping[str, float]) -> Outcome:
    return Outcome(
        resolved={"data": {"rows": 100, "tokens": 1234}, "trainableParameters": 5000},
        baseline=baseline,
        metrics=metrics,
        estimated_bytes=110 << 20,
        peak_bytes=100 << 20,
        saving_share=0.02,
        artifact_bytes=20_000_000,
        cost=Cost(cpu_seconds=3600.0, wall_seconds=7200.0),
    )


def _banking(accuracy: float) -> Banking:
    measured = {"testAccuracy": accuracy, "testMacroF1": accuracy}
    made = _outcome(measured, {"testAccuracy": 0.02, "testMacroF1": 0.001})
    rival = (Scored(1000, 0.9, 0.89, "C 30"), Cost(36.0, 40.0))
    return Banking(made, rival, None, intents=57, trained_rows=100, test_rows=1000)


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [
        (0.95, "Against TF-IDF the tuned model wins: +5.0 points, where chance explains 2.3"),
        (0.85, "Against TF-IDF the tuned model loses: -5.0 points, where chance explains 2.9"),
        (0.91, "neither wins nor loses: +1.0 points, where chance explains 2.6"),
        (0.9, "at 100 times its CPU"),
    ],
)
def test_the_page_says_who_wins(accuracy: float, says: str) -> None:
    assert says in render(_banking(accuracy), None, {})


def test_the_page_says_what_was_kept_and_what_was_not() -> None:
    banking = _banking(0.95)
    page = render(banking, None, {"machine": "here"})
    assert "| TF-IDF and logistic regression | 1,000 | 90.0 % (88.0 to 91.7) | 0.890 | 0.010 |" in page
    assert "- machine: here" in page
    assert "## NLU++ banking: slots\nNot measured yet." in page
    assert page.count("NOT kept") == 0
    worse = replace(banking.outcome, saving_share=0.036, estimated_bytes=116 << 20)
    assert render(replace(banking, outcome=worse), None, {}).count("NOT kept") == 2


def test_slots_are_told_before_and_after() -> None:
    keys = ("EntityF1", "EntityPrecision", "EntityRecall", "MalformedAnswers")
    after, before = (
        {f"test{key}": value for key, value in zip(keys, values, strict=True)}
        for values in ((0.8, 0.9, 0.72, 1.0), (0.0, 0.0, 0.0, 6.0))
    )
    page = render(None, Slots(_outcome(after, before), trained_rows=100, seen_rows=80, test_rows=308, test_slots=150), {})
    assert "| SmolLM2-135M | 0.000 | 0.000 | 0.0 % (0.0 to 2.5) | 6 of 308 |" in page
    assert "| **tuned** | 0.800 | 0.900 | 72.0 % (64.3 to 78.6) | 1 of 308 |" in page


def test_a_cost_is_that_of_a_process_and_of_all_below_it() -> None:
    """A worker's CPU is not its supervisor's until it ends; and a run that is cut off is never waited for."""
    burn = "import time\nwhile time.process_time() < 0.5: pass\n"
    shell = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n{burn}print('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "done\n"
        assert 0.95 <= tree_cpu_seconds(parent.pid) < 5  # ticks are of 10 ms, and Python starts twice
        assert tree_cpu_seconds(os.getpid()) >= tree_cpu_seconds(parent.pid)
        parent.communicate("\n")


def test_a_record_is_read_with_what_the_log_told_of_saving(tmp_path: Path) -> None:
    snapshot: dict[str, Any] = {
        "resolved": {"data": {"rows": 7}},
        "baseline": {"testAccuracy": 0.1},
        "metrics": {"testAccuracy": 0.9},
        "estimate": {"memoryBytes": 5, "seconds": 1},
        "peakMemoryBytes": 6,
        "artifacts": [{"bytes": 3}],
    }
    record = tmp_path / "runs" / "team-a" / "banking77" / "local-1" / "run" / "published.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"snapshot": snapshot}))
    log = tmp_path / "log"
    log.write_text('{"shareOfStepTime": 0.5}\nnot JSON\n{"shareOfStepTime": 0.01}\n{"message": "published"}\n')
    found = outcome(tmp_path / "runs", log, Cost(1.0, 2.0))
    assert (found.saving_share, found.peak_bytes, found.artifact_bytes) == (0.01, 6, 3)
    found.save(tmp_path / "outcome.json")
    assert Outcome.load(tmp_path / "outcome.json") == found
