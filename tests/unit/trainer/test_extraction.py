"""Extraction: spans become answers, answers are read back, entities are counted on tokens by seqeval."""

import json
from pathlib import Path
from typing import Any

import pytest

from olivine_api.data import Extraction
from olivine_trainer.data.extraction import written_rows
from olivine_trainer.data.rows import Row
from olivine_trainer.errors import ConfigurationError, DataError
from olivine_trainer.evaluation.entities import entity_scores
from olivine_trainer.spans import read_spans
from tests.unit.trainer.support import make_job, run_job, write_rows

TEXT = "call me at 9 05 in the morning, any day next week"
LINES = "time_from: 9 05 in the morning\ndate_period: next week"
SPANS = Extraction(format="Spans", text_field="text", spans_field="slots")
BIO = Extraction(format="BIO", text_field="tokens", spans_field="tags")

FORMS: dict[str, Any] = {
    "offsets": [{"label": "date_period", "start": 40, "end": 49}, {"label": "time_from", "start": 11, "end": 30}],
    "texts": [{"label": "time_from", "text": "9 05 in the morning"}, {"label": "date_period", "text": "next week"}],
    "by label": {
        "date_period": {"text": "next week", "span": [40, 49]},
        "time_from": {"text": "9 05 in the morning", "span": [11, 30]},
    },
    "by label, texts": {"date_period": "next week", "time_from": ["9 05 in the morning"]},
    "JSON in a CSV": json.dumps({"date_period": "next week", "time_from": "9 05 in the morning"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_spans_becomes_the_same_answer(form: str) -> None:
    rows = [Row(1, {"text": TEXT, "slots": FORMS[form]}), Row(2, {"text": "no slots"}), Row(3, {"text": "none", "slots": []})]
    assert [row.fields["slots"] for row in written_rows(rows, SPANS, "data.train")] == [LINES, "none", "none"]
    assert read_spans(LINES) == ([("time_from", "9 05 in the morning"), ("date_period", "next week")], False)
    assert read_spans("none") == ([], False)


WRONG: dict[str, tuple[Any, str]] = {
    "outside": (
        [{"label": "a", "start": 40, "end": 99}],
        "has a span 'a' from 40 to 99, which are no characters of its text of 49",
    ),
    "another text": ([{"label": "a", "start": 0, "end": 4, "text": "ring"}], "its offsets hold 'call': correct one"),
    "text that is not there": ({"a": "tomorrow"}, "whose text 'tomorrow' does not occur in its text"),
    "a label that cannot be read back": ({"a: b": "call"}, "write one without ': '"),
    "no form": ([["call", "a"]], "has spans in no known form: write a list of"),
    "no JSON": ("[{", "has spans that are not valid JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_row_with_wrong_spans_is_named(case: str) -> None:
    spans, told = WRONG[case]
    with pytest.raises(DataError) as caught:
        written_rows([Row(7, {"text": TEXT, "slots": spans})], SPANS, "data.train")
    assert caught.value.message.startswith("row 7 of data.train has")
    assert told in caught.value.message


def test_tags_are_one_a_token() -> None:
    rows = [Row(1, {"tokens": ["to", "New York"], "tags": ["O", "B-city"]}), Row(2, {"tokens": "to Rome", "tags": "O B-city"})]
    written = [row.fields for row in written_rows(rows, BIO, "data.train")]
    assert written == [{"tokens": "to New_York", "tags": "O B-city"}, {"tokens": "to Rome", "tags": "O B-city"}]
    with pytest.raises(DataError, match=r"row 3 of data.train has 2 tokens in \{tokens\} and 1 tags"):
        written_rows([Row(3, {"tokens": "to Rome", "tags": "O"})], BIO, "data.train")
    with pytest.raises(DataError, match="has the tag 'X': write O, B-label or I-label"):
        written_rows([Row(4, {"tokens": "to", "tags": "X"})], BIO, "data.train")


# (answer, F1, precision, recall, malformed): two entities are expected.
ANSWERS: dict[str, tuple[str, float, float, float, int]] = {
    "all": (LINES, 1, 1, 1, 0),
    "another order": ("date_period: next week\ntime_from: 9 05 in the morning", 1, 1, 1, 0),
    "one missing": ("date_period: next week", 2 / 3, 1, 1 / 2, 0),
    "too long an extent": ("time_from: 9 05 in the morning\ndate_period: any day next week", 1 / 2, 1 / 2, 1 / 2, 0),
    "another label": ("time_to: 9 05 in the morning\ndate_period: next week", 1 / 2, 1 / 2, 1 / 2, 0),
    "none": ("none", 0, 0, 0, 0),
    "invented": (f"{LINES}\ncity: Rome", 4 / 5, 2 / 3, 1, 0),
    "twice": (f"{LINES}\ndate_period: next week", 4 / 5, 2 / 3, 1, 0),
    "a line that is no entity": (f"{LINES}\nand more", 1, 1, 1, 1),
    "nothing": ("", 0, 0, 0, 1),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_entities_are_held_to_label_and_extent(case: str) -> None:
    """Invented and repeated entities have no token of their own: they are held against the precision all the same."""
    answer, f1, precision, recall, malformed = ANSWERS[case]
    scores = entity_scores("Spans", [TEXT], [LINES], [answer])
    assert scores == pytest.approx(
        {"entityF1": f1, "entityPrecision": precision, "entityRecall": recall, "malformedAnswers": malformed}
    )


def test_a_span_within_a_span_is_found_too() -> None:
    nested = "place: Bank of Rome\ncity: Rome"
    assert entity_scores("Spans", ["the Bank of Rome"], [nested], [nested])["entityF1"] == 1
    assert entity_scores("Spans", ["the Bank of Rome"], [nested], ["place: Bank of Rome"])["entityRecall"] == 1 / 2


def test_tags_are_filled_up_cut_and_counted() -> None:
    expected = "O B-city I-city O"
    scores = entity_scores("BIO", [""] * 4, [expected] * 4, [expected, "O B-city I-city", "O B-city I-city O O", "O city I-city O"])
    # The first three name the entity; the last one's tag is none, and what is left begins a token late.
    assert (scores["entityRecall"], scores["malformedAnswers"]) == (3 / 4, 3)


def test_an_extraction_trains_and_is_measured_by_entities(tiny_model: Path, tmp_path: Path) -> None:
    spans = [{"label": "number", "start": 3, "end": 4}]
    rows = [{"text": f"ha {index} ha {index}", "slots": spans if index % 3 else None} for index in range(9)]
    for row in rows[:1]:
        row.pop("slots")  # rows without spans may lack the field
    job = make_job(
        tiny_model,
        write_rows(tmp_path / "rows.jsonl", rows),
        f"file://{tmp_path}/runs",
        task="Extraction",
        data__stratifyBy=None,
        data__template={"prompt": "Text: {text}\n", "completion": "{slots}"},
        data__extraction=SPANS.to_json_dict(),
        training__maxSteps=2,
    )
    published = run_job(job, tmp_path / "scratch")
    assert set(published.snapshot.baseline) == {"evalLoss", "entityF1", "entityPrecision", "entityRecall", "malformedAnswers"}
    assert published.samples[0].expected in {"none", *(f"number: {index}" for index in range(9))}
    # A random model's answers are no lines of label and text.
    assert published.snapshot.baseline["malformedAnswers"] > 0


def test_a_template_without_the_text_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "ha", "slots": []}])
    template = {"prompt": "Text:", "completion": "{slots}"}
    changes: dict[str, Any] = {"data__stratifyBy": None, "data__template": template, "data__extraction": SPANS.to_json_dict()}
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", task="Extraction", **changes)
    with pytest.raises(ConfigurationError, match=r"data.template.prompt must name \{text\}: it is data.extraction.textField"):
        run_job(job, tmp_path / "scratch")
