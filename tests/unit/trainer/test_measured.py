"""Other rows than the validation rows, and own metrics: data.test, benchmarks, a class from a ConfigMap."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from olivine_api.evaluation import Metric
from olivine_api.finetunejob import parse_spec
from olivine_trainer.errors import ConfigurationError, DataError
from olivine_trainer.evaluation.measures import Case
from olivine_trainer.evaluation.own import own_measure
from olivine_trainer.job import Job
from olivine_trainer.plugins import import_own
from tests.unit.trainer.ranks import Ranks
from tests.unit.trainer.support import make_job, run_job, tone_rows, write_rows

OWN = {"name": "short_answers", "configMap": "metrics", "key": "own.py", "class": "Short"}
CODE = """
class Short:
    lower_is_better = True

    def __init__(self, longest):
        self.longest = longest

    def __call__(self, expected, answers):
        return sum(len(answer) > self.longest for answer in answers) / len(expected)
"""


def _job(tiny_model: Path, tmp_path: Path, **changes: Any) -> Job:
    """Short; rows of different lengths, so that each set of rows scores differently."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    return make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=2, **changes)


def _other_rows(tmp_path: Path, name: str, count: int = 6) -> dict[str, str]:
    rows = [{"phrase": f"oh {index} {name}", "tone": row["tone"]} for index, row in enumerate(tone_rows(count))]
    return {"uri": f"file://{write_rows(tmp_path / f'{name}.jsonl', rows)}"}


def _with(job: Job, code: str, **changes: Any) -> Job:
    spec = job.spec.to_json_dict()
    spec["evaluation"] |= {"metrics": [OWN | {"parameters": {"longest": 4}} | changes]}
    return replace(job, spec=parse_spec(spec), plugins={"metrics/own.py": code})


def test_rows_of_data_test_and_benchmarks_are_measured_before_and_after(tiny_model: Path, tmp_path: Path) -> None:
    benchmarks = [
        {"name": "cards-2", **_other_rows(tmp_path, "cards"), "metric": "accuracy"},
        {"name": "loans", **_other_rows(tmp_path, "loans"), "metric": "eval_loss"},
        {"name": "odds", **_other_rows(tmp_path, "odds"), "metric": "micro_f1"},
    ]
    gates = [{"metric": "test_loss", "improvesOnBase": True}, {"metric": "loansLoss", "max": 100}]
    job = _job(
        tiny_model, tmp_path, data__test=_other_rows(tmp_path, "test"), evaluation__benchmarks=benchmarks, evaluation__gates=gates
    )
    published = run_job(job, tmp_path / "scratch")
    snapshot = published.snapshot
    apart = {"testLoss", "testAccuracy", "testF1", "cards2Accuracy", "loansLoss", "oddsMicroF1"}
    assert set(snapshot.baseline) == {"evalLoss", "accuracy", "f1"} | apart
    assert set(snapshot.metrics) == set(snapshot.baseline) | {"trainLoss"}
    assert snapshot.baseline["testLoss"] != snapshot.baseline["loansLoss"] != snapshot.baseline["evalLoss"]
    assert published.unmet == []
    assert len(published.samples) == 2, "samples are of the validation rows alone"


def test_metrics_may_be_of_the_test_rows_alone(tiny_model: Path, tmp_path: Path) -> None:
    """Where nothing is chosen by validation rows, none have to be held back."""
    alone = {"data__validationFraction": None, "data__stratifyBy": None, "evaluation__metrics": [{"name": "accuracy"}]}
    with pytest.raises(ValidationError, match=r"data\.validationFraction or data\.test: there are no rows to measure on"):
        _job(tiny_model, tmp_path, **alone)
    snapshot = run_job(_job(tiny_model, tmp_path, data__test=_other_rows(tmp_path, "test"), **alone), tmp_path / "scratch").snapshot
    assert set(snapshot.baseline) == {"testLoss", "testAccuracy"}
    assert set(snapshot.metrics) == {"testLoss", "testAccuracy", "trainLoss"}


def test_what_is_measured_apart_is_the_same_on_two_ranks(tiny_model: Path, tmp_path: Path) -> None:
    """Seven rows over two ranks, in batches of two: one rank has a batch more, and no row counts twice."""
    test = _other_rows(tmp_path, "test", 7)
    job = _job(tiny_model, tmp_path, data__test=test, training__batchSize=1, training__evalBatchSize=2, method__lora__dropout=0)
    two = Ranks(tmp_path / "ranks", {"PATH": ""}).run(job)[0].end().snapshot
    one = run_job(
        _job(tiny_model, tmp_path, data__test=test, storage__uri=f"file://{tmp_path}/alone", training__evalBatchSize=2),
        tmp_path / "scratch",
    ).snapshot
    assert two is not None
    assert two.baseline["testAccuracy"] == one.baseline["testAccuracy"]
    assert two.baseline["testLoss"] == pytest.approx(one.baseline["testLoss"], rel=1e-6)


def test_a_benchmark_that_is_not_there_is_named(tiny_model: Path, tmp_path: Path) -> None:
    benchmark = {"name": "cards", "uri": f"file://{tmp_path}/none.jsonl", "metric": "accuracy"}
    with pytest.raises(DataError, match=r"evaluation.benchmarks\[\].uri .*none.jsonl"):
        run_job(_job(tiny_model, tmp_path, evaluation__benchmarks=[benchmark]), tmp_path / "scratch")


def test_a_benchmarks_metric_fits_its_task(tiny_model: Path, tmp_path: Path) -> None:
    benchmark = {"name": "cards", **_other_rows(tmp_path, "cards")}
    with pytest.raises(ConfigurationError, match=r"the metric seqeval of evaluation.benchmarks cards is over entities"):
        run_job(_job(tiny_model, tmp_path, evaluation__benchmarks=[benchmark | {"metric": "seqeval"}]), tmp_path / "one")
    head: dict[str, Any] = {"classification": {"head": "Sequence"}, "data__labels": {"field": "tone"}}
    head |= {"storage__uri": f"file://{tmp_path}/others"}
    with pytest.raises(ConfigurationError, match="a classification head generates none"):
        run_job(_job(tiny_model, tmp_path, evaluation__benchmarks=[benchmark | {"metric": "rouge"}], **head), tmp_path / "two")


def test_data_test_is_measured_with_a_head_too(tiny_model: Path, tmp_path: Path) -> None:
    head: dict[str, Any] = {"classification": {"head": "Sequence"}, "data__labels": {"field": "tone"}}
    snapshot = run_job(_job(tiny_model, tmp_path, data__test=_other_rows(tmp_path, "test"), **head), tmp_path / "scratch").snapshot
    assert {"testLoss", "testAccuracy", "testF1"} <= set(snapshot.baseline) & set(snapshot.metrics)


def test_no_row_of_a_benchmark_is_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    shared = write_rows(tmp_path / "shared.jsonl", tone_rows(24)[:4])
    benchmark = {"name": "shared", "uri": f"file://{shared}", "metric": "accuracy"}
    data = run_job(_job(tiny_model, tmp_path, evaluation__benchmarks=[benchmark]), tmp_path / "scratch").snapshot.resolved.data
    assert data is not None
    assert (data.leaked, data.rows + data.validation_rows) == (4, 20)


TOO_MUCH: dict[str, tuple[list[dict[str, str]], str]] = {
    "twice": ([{"name": "test", "metric": "accuracy"}], "gives two numbers the name testAccuracy"),
    "too many": (
        [{"name": f"b{index}", "metric": "accuracy"} for index in range(16)],
        "evaluation asks for 25 numbers (trainLoss, evalLoss, accuracy",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_status_has_room_for_every_number_once(tiny_model: Path, tmp_path: Path, case: str) -> None:
    benchmarks, told = TOO_MUCH[case]
    rows = _other_rows(tmp_path, "more")
    metrics = [{"name": name} for name in ("accuracy", "f1", "perplexity")]
    changes: dict[str, Any] = {"data__test": rows, "evaluation__metrics": metrics}
    job = _job(tiny_model, tmp_path, evaluation__benchmarks=[one | rows for one in benchmarks], **changes)
    with pytest.raises(ConfigurationError) as caught:
        run_job(job, tmp_path / "scratch")
    assert told in caught.value.message


def test_a_metric_of_ones_own_is_measured_and_gated(tiny_model: Path, tmp_path: Path) -> None:
    """Answers are labels: `joy`, `anger` and `fear` with a space before; all but `joy` are longer than four characters."""
    gates = [{"metric": "short_answers", "max": -1}]
    job = _with(_job(tiny_model, tmp_path, evaluation__gates=gates), CODE)
    published = run_job(job, tmp_path / "scratch")
    answers = [sample.tuned or "" for sample in published.samples]
    assert set(published.snapshot.metrics) == {"trainLoss", "evalLoss", "shortAnswers"}
    assert 0 <= published.snapshot.metrics["shortAnswers"] <= 1
    assert answers
    assert published.unmet == [f"shortAnswers is {published.snapshot.metrics['shortAnswers']:.6g}, not at most -1"]


def test_the_metric_in_the_docs_counts_what_it_says() -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    own = import_own(Metric.model_validate(OWN | {"class": "TooLong", "parameters": {"words": 1}}), "m", {"metrics/own.py": code})
    measure = own_measure("too_long", own)
    assert measure.lower == ("tooLong",)
    assert measure.compare is not None
    assert measure.compare([Case("a", "a b"), Case("a", "a b c")]) == {"tooLong": 0.5}


BAD: dict[str, tuple[str, str]] = {
    "no such class": ("class Other:\n  pass\n", "evaluation.metrics[0].class is Short, which metrics/own.py does not have"),
    "another constructor": ("class Short:\n  pass\n", "class Short of metrics/own.py cannot be made with parameters longest=4"),
    "not called": (
        "class Short:\n  def __init__(self, longest):\n    pass\n",
        "class Short of metrics/own.py has no __call__(self, expected, answers)",
    ),
    "it fails": (
        "class Short:\n  def __init__(self, longest):\n    pass\n  def __call__(self, expected, answers):\n    return 1 / 0\n",
        "failed over 6 answers: line 5: ZeroDivisionError",
    ),
    "no number": (
        "class Short:\n  def __init__(self, longest):\n    pass\n  def __call__(self, expected, answers):\n    return 'good'\n",
        "returned str 'good': it must return one number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_metric_that_cannot_be_used_is_refused_before_training(tiny_model: Path, tmp_path: Path, case: str) -> None:
    code, told = BAD[case]
    with pytest.raises(ConfigurationError) as caught:
        run_job(_with(_job(tiny_model, tmp_path), code), tmp_path / "scratch")
    assert caught.value.message.startswith("evaluation.metrics[0]")
    assert told in caught.value.message
    assert not list((tmp_path / "runs").rglob("checkpoints/*"))
