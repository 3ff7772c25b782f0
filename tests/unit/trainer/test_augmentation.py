"""Other wordings of training rows: seeded by (seed, epoch, row), of the input alone, of the training rows alone."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from olivine_api.data import Augmentation, CaseStyle, Data
from olivine_trainer.data.augment import Augmenter, Draws, in_another_case, without_words
from olivine_trainer.data.augmented import AugmentedRows
from olivine_trainer.data.making import Wording
from olivine_trainer.data.prepare import load_rows, prepare_examples
from olivine_trainer.data.rows import Row, RowFiles
from olivine_trainer.data.template import RowTemplate
from olivine_trainer.errors import ConfigurationError, DataError
from tests.unit.trainer.support import adapter_bytes, kill_in_step, make_job, run_job, tone_rows, write_rows

TEMPLATE = {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"}
EVERYTHING: list[dict[str, Any]] = [
    {"name": "word_dropout", "probability": 0.6, "parameters": {"share": 0.5}},
    {"name": "case_noise", "probability": 0.6},
    {"name": "template_paraphrase", "probability": 0.6, "templates": ["{phrase} sounds like", "The tone of {phrase}:"]},
]


def prepared(tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]], **changes: Any) -> Any:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    data = Data.model_validate({"train": {"uri": f"file://{path}"}, "template": TEMPLATE} | changes)
    return prepare_examples(data, load_rows(data, RowFiles.of(path), None, seed=0), tokenizer, stop_ids=frozenset({1}))


def prompts(rows: AugmentedRows, *, seed: int, epochs: int) -> list[dict[int, str]]:
    """By epoch: the rows' prompts by number."""
    return [{one.number: one.prompt for one in rows.batch(seed, epoch, len(rows))} for epoch in range(epochs)]


def test_words_are_left_out_and_one_stays() -> None:
    text = "  one two three\nfour "
    seen = {without_words(text, 0.5, Draws(0, 0, row, 0)) for row in range(40)}
    assert len(seen) > 5
    for some in seen:
        words = some.split()
        assert words
        assert [word for word in text.split() if word in words] == words  # in their order
        assert some.startswith("  ")
    assert without_words("alone", 0.99, Draws(0, 0, 0, 0)) == "alone"
    assert without_words(" ", 0.99, Draws(0, 0, 0, 0)) == " "


def test_the_share_of_words_is_the_one_asked_for() -> None:
    kept = sum(len(without_words("a b c d e f g h i j", 0.3, Draws(1, 0, row, 0)).split()) for row in range(2000))
    # 10 words, one of them spared: 1 + 9 x 0.7 = 7.3 stay; the mean of 2000 is within 0.15 (five standard deviations)
    assert abs(kept / 2000 - 7.3) < 0.15


def test_letters_change_their_case() -> None:
    draws = Draws(0, 0, 0, 0)
    assert in_another_case("Wie Geht's", CaseStyle.UPPER, 0.1, draws) == "WIE GEHT'S"
    assert in_another_case("Wie Geht's", CaseStyle.LOWER, 0.1, draws) == "wie geht's"
    swapped = in_another_case("abcdefghij" * 100, CaseStyle.SWAP, 0.2, draws)
    assert swapped.lower() == "abcdefghij" * 100
    assert 140 < sum(letter.isupper() for letter in swapped) < 260  # 200, give or take five standard deviations


def test_numbers_are_the_same_for_good() -> None:
    """A resume on a newer numpy must put the rows as before: these must never change."""
    assert [round(number, 6) for number in Draws(3, 1, 2, 0).many(3)] == FIRST_DRAWS


FIRST_DRAWS = [0.008995, 0.539221, 0.971825]


def test_a_wording_is_a_function_of_seed_epoch_and_row(tmp_path: Path, tokenizer: Any) -> None:
    rows = prepared(tmp_path, tokenizer, tone_rows(24), augmentation=EVERYTHING).train
    first, second = prompts(rows, seed=5, epochs=2), prompts(rows, seed=5, epochs=2)
    assert first == second
    assert first[0] != first[1] != prompts(rows, seed=6, epochs=1)[0]
    singly = {one.number: one.prompt for step in range(24) for one in rows.batch(5, step, 1)}
    assert singly == first[0]  # whatever the batch


def test_what_is_asked_changes_and_the_answer_does_not(tmp_path: Path, tokenizer: Any) -> None:
    rows = prepared(tmp_path, tokenizer, tone_rows(24), augmentation=EVERYTHING)
    plain = {number + 1: row for number, row in enumerate(tone_rows(24))}
    changed = 0
    for example in rows.train.batch(0, 0, 24):
        row = plain[example.number]
        assert example.expected == f" {row['tone']}"
        assert tokenizer.decode(example.ids[example.learned]) == f" {row['tone']}<|im_end|>"
        assert tokenizer.decode(example.prompt_ids) == example.prompt
        changed += example.prompt != f"Phrase: {row['phrase']}\nTone:"
    assert changed > 12  # all but 0.4 cubed of them, but for draws that change nothing


def test_other_prompts_are_drawn_evenly(tmp_path: Path, tokenizer: Any) -> None:
    wanted = [{"name": "template_paraphrase", "probability": 0.75, "templates": ["A {phrase}", "B {phrase}", "C {phrase}"]}]
    rows = prepared(tmp_path, tokenizer, tone_rows(24), augmentation=wanted).train
    starts = [prompt[0] for epoch in prompts(rows, seed=0, epochs=50) for prompt in epoch.values()]
    for start in "ABCP":
        assert 230 < starts.count(start) < 370  # 300 of 1200, give or take five standard deviations


def test_rows_to_measure_on_stay_as_they_are(tmp_path: Path, tokenizer: Any) -> None:
    found = prepared(tmp_path, tokenizer, tone_rows(24), augmentation=EVERYTHING, validationFraction=0.25)
    assert len(found.validation) == 6
    for example in found.validation:
        assert example.prompt == f"Phrase: {tone_rows(24)[example.number - 1]['phrase']}\nTone:"


def test_a_wording_that_is_too_long_is_not_used(tmp_path: Path, tokenizer: Any) -> None:
    wanted = [{"name": "template_paraphrase", "probability": 1.0, "templates": ["{phrase} " * 9]}]
    some = [{"phrase": "ha", "tone": "joy"}, {"phrase": "ha ha ha ha ha ha ha", "tone": "joy"}]
    rows = prepared(tmp_path, tokenizer, some, augmentation=wanted, maxLength=48).train
    starts = {example.number: example.prompt[:6] for example in rows.batch(0, 0, 2)}
    assert starts == {1: "ha ha ", 2: "Phrase"}
    assert max(len(example.ids) for example in rows.batch(0, 0, 2)) <= 48


def test_in_a_chat_what_the_user_says_changes() -> None:
    chat = [
        {"role": "system", "content": "Be Kind"},
        {"role": "user", "content": "Hi There"},
        {"role": "assistant", "content": "Ho Ho"},
    ]
    wanted = [Augmentation.model_validate({"name": "case_noise", "probability": 1.0, "parameters": {"style": "upper"}})]
    template = RowTemplate.of(Data.model_validate({"train": {"uri": "file:///x"}, "template": {"messages": "chat"}}).template)
    wording = Augmenter(template, wanted).wording(Row(1, {"chat": chat}), seed=0, epoch=0, index=0)
    assert isinstance(wording, Wording)
    assert [turn["content"] for turn in wording.fields["chat"]] == ["Be Kind", "HI THERE", "Ho Ho"]
    assert chat[1]["content"] == "Hi There"  # the row itself is as it was


@pytest.mark.parametrize(
    ("error", "template", "says"),
    [
        (DataError, "{phras}", r"data\.augmentation\[2\]\.templates\[0\] names the field \{phras\}"),
        (ConfigurationError, "{phrase", r"data\.augmentation\[2\]\.templates\[0\] cannot be read"),
    ],
)
def test_a_wrong_prompt_is_found_before_the_model_is_loaded(
    tmp_path: Path, tokenizer: Any, error: type[Exception], template: str, says: str
) -> None:
    wanted = [*EVERYTHING[:2], {"name": "template_paraphrase", "probability": 0.5, "templates": [template]}]
    with pytest.raises(error, match=says):
        prepared(tmp_path, tokenizer, tone_rows(3), augmentation=wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "word_dropout", "probability": 0.1, "parameters": {"share": 1.0}},
        {"name": "word_dropout", "probability": 0.1, "parameters": {"words": 2.0}},
        {"name": "case_noise", "probability": 0.1, "parameters": {"style": "loud"}},
        {"name": "template_paraphrase", "probability": 0.1, "templates": ["{a}"], "parameters": {"share": 0.5}},
    ],
)
def test_parameters_that_do_not_suit_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="parameters do not suit the name"):
        Augmentation.model_validate(wrong)


def test_a_killed_run_ends_in_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    """18 rows and a batch of 4: the kill is in the second epoch."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    changes: dict[str, Any] = {"data__augmentation": EVERYTHING, "training__maxSteps": 6}
    calm = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/calm", **changes), tmp_path / "calm-scratch")
    job = make_job(tiny_model, rows, f"file://{tmp_path}/killed", **changes)
    kill_in_step(job, 5, tmp_path / "first")
    assert adapter_bytes(run_job(job, tmp_path / "second")) == adapter_bytes(calm)
    plain = run_job(
        make_job(tiny_model, rows, f"file://{tmp_path}/plain", **(changes | {"data__augmentation": None})), tmp_path / "third"
    )
    assert adapter_bytes(plain) != adapter_bytes(calm)
