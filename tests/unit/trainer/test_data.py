"""Rows to tokens: what is learned, what is held back, what a fault says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import Data, LossOn, OnOverflow, Template
from olivine_api.reasons import Reason
from olivine_trainer.data.batches import batch_rows, epoch_order, rank_micro_batches, total_steps
from olivine_trainer.data.chat import ChatRenderer
from olivine_trainer.data.prepare import load_rows, prepare_examples
from olivine_trainer.data.rows import Row, RowFiles, read_rows
from olivine_trainer.data.split import split_rows
from olivine_trainer.data.template import RowTemplate, parse_template
from olivine_trainer.data.tokens import completion_example, fit_example, fitted_of, text_example
from olivine_trainer.errors import ConfigurationError, DataError, ModelError
from olivine_trainer.modeling.example import Example
from tests.unit.trainer.support import tone_rows, write_rows

STOP = 1


def learned_text(tokenizer: Any, example: Example) -> str:
    return tokenizer.decode(example.ids[example.learned])


def make_data(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> tuple[Data, Path]:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    raw = {"train": {"uri": f"file://{path}"}, "template": {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"}}
    return Data.model_validate(raw | changes), path


def test_completion_and_stop_token_are_learned_and_the_prompt_is_not(tokenizer: Any) -> None:
    example = completion_example(tokenizer, "Phrase: ha\nTone:", " joy", loss_on=LossOn.COMPLETION)
    assert learned_text(tokenizer, example) == " joy<|im_end|>"
    assert tokenizer.decode(example.prompt_ids) == "Phrase: ha\nTone:"
    assert example.ids[-1] == STOP
    everything = completion_example(tokenizer, "Phrase: ha\nTone:", " joy", loss_on=LossOn.ALL)
    assert everything.learned.all()
    assert everything.learned_tokens == len(everything.ids) - 1  # nothing predicts the first


def test_generation_starts_from_the_tokens_that_training_saw(tokenizer: Any) -> None:
    """Tokenised together, ' j' could merge over the boundary: apart, the prompt's tokens are those of the prompt alone."""
    example = completion_example(tokenizer, "Tone: ", "joy", loss_on=LossOn.COMPLETION)
    assert example.prompt_ids.tolist() == tokenizer.encode("Tone: ")


def test_a_text_is_learned_whole_with_its_stop_token(tokenizer: Any) -> None:
    example = text_example(tokenizer, "ha ha")
    assert learned_text(tokenizer, example) == "ha ha<|im_end|>"
    assert example.expected is None


def chat_row(*turns: str) -> Row:
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return Row(3, {"chat": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]})


def test_assistant_turns_are_learned_with_their_stop_tokens(tokenizer: Any) -> None:
    renderer = ChatRenderer(tokenizer, "chat", stop_ids=frozenset({STOP}), loss_on=LossOn.COMPLETION, source="data.train")
    example = renderer.example(chat_row("s:be kind", "u:hi", "a:ho", "u:more", "a:ha ha", "u:bye"))
    assert learned_text(tokenizer, example) == "ho<|im_end|>ha ha<|im_end|>"
    assert example.ids[-1] == STOP  # neither the line break after it nor the user's last word
    assert example.expected == "ha ha"
    assert tokenizer.decode(example.prompt_ids).endswith("more<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    forgetful = _with_template(
        tokenizer,
        "{% for m in messages %}<|im_start|>{{ m.role }}:{% if loop.last %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
    )
    renderer = ChatRenderer(forgetful, "chat", stop_ids=frozenset({STOP}), loss_on=LossOn.COMPLETION, source="data.train")
    with pytest.raises(DataError, match=r"row 3 of data\.train cannot be masked"):
        renderer.example(chat_row("u:hi", "a:ho", "u:more", "a:ha"))


def test_an_answer_may_begin_with_a_line_break(tokenizer: Any) -> None:
    """Many tokenizers make one token of the prompt's last line break and the answer's first: generation starts between them."""
    merging = _with_merged_line_breaks(tokenizer)
    assert len(merging.encode("\n\n")) == 1
    renderer = ChatRenderer(merging, "chat", stop_ids=frozenset({STOP}), loss_on=LossOn.COMPLETION, source="data.train")
    example = renderer.example(chat_row("u:hi", "a:\nho", "u:more", "a:\nha"))
    assert learned_text(merging, example) == "\nho<|im_end|>\nha<|im_end|>"
    assert merging.decode(example.prompt_ids).endswith("more<|im_end|>\n<|im_start|>assistant\n")
    alone = renderer.example(chat_row("u:hi", "a:\nho"))
    assert alone.prompt_ids.tolist() == merging.encode(alone.prompt)


def test_a_chat_keeps_the_tokens_of_its_whole_text_where_none_straddles_a_turn(tokenizer: Any) -> None:
    """SentencePiece-like tokenizers put a word mark before whatever they are given: an answer on its own would get one."""
    marking = _with_word_marks(tokenizer)
    assert marking.tokenize("ho") != marking.tokenize("<|im_start|>ho")[1:]
    renderer = ChatRenderer(marking, "chat", stop_ids=frozenset({STOP}), loss_on=LossOn.COMPLETION, source="data.train")
    row = chat_row("s:be kind", "u:hi", "a:ho", "u:more", "a:ha ha")
    whole = marking.encode(marking.apply_chat_template(row.fields["chat"], tokenize=False), add_special_tokens=False)
    example = renderer.example(row)
    assert example.ids.tolist() == whole[: len(example.ids)]
    assert learned_text(marking, example) == "ho<|im_end|>ha ha<|im_end|>"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Row(5, {"chat": "hello"}), "row 5 of data.train has no chat in the field chat"),
        (Row(5, {"chat": [{"role": "user"}]}), "message 1 that is not"),
        (chat_row("u:hi"), "no message of the role assistant"),
    ],
    ids=["a string", "no content", "no assistant"],
)
def test_what_is_no_chat_is_named(tokenizer: Any, row: Row, says: str) -> None:
    renderer = ChatRenderer(tokenizer, "chat", stop_ids=frozenset({STOP}), loss_on=LossOn.COMPLETION, source="data.train")
    with pytest.raises(DataError, match=says):
        renderer.example(row)


def test_messages_need_a_chat_template(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="has a chat template"):
        ChatRenderer(_with_template(tokenizer, None), "chat", stop_ids=frozenset({STOP}), loss_on=LossOn.ALL, source="data.train")


def _with_template(tokenizer: Any, template: str | None) -> Any:
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def _rebuilt(tokenizer: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """The tokenizer with its JSON changed."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    change(raw)
    backend = Tokenizer.from_str(json.dumps(raw))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = tokenizer.chat_template
    return made


def _with_merged_line_breaks(tokenizer: Any) -> Any:
    """As Qwen's: line breaks in a row are one word, and two of them one token."""

    def change(raw: dict[str, Any]) -> None:
        raw["model"]["vocab"]["ĊĊ"] = len(raw["model"]["vocab"])
        raw["model"]["merges"].append(["Ċ", "Ċ"])
        words = {"type": "Split", "pattern": {"Regex": r"[\r\n]+|[^\r\n]+"}, "behavior": "Isolated", "invert": False}
        bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [words, bytewise]}

    return _rebuilt(tokenizer, change)


def _with_word_marks(tokenizer: Any) -> Any:
    """As Llama 2's: white space is a mark, which the text's first word gets too."""

    def change(raw: dict[str, Any]) -> None:
        for text in ("▁", "\n"):
            raw["model"]["vocab"][text] = len(raw["model"]["vocab"])
        marks = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        raw["pre_tokenizer"] = raw["decoder"] = marks

    return _rebuilt(tokenizer, change)


def _with_leading_token(tokenizer: Any) -> Any:
    """Sequences begin with <|im_start|> (id 0), as those of Llama begin with BOS."""

    def change(raw: dict[str, Any]) -> None:
        start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        known = {"<|im_start|>": {"id": "<|im_start|>", "ids": [0], "tokens": ["<|im_start|>"]}}
        pair = [start, text, {"Sequence": {"id": "B", "type_id": 0}}]
        raw["post_processor"] = {"type": "TemplateProcessing", "single": [start, text], "pair": pair, "special_tokens": known}

    return _rebuilt(tokenizer, change)


def test_templates_substitute_escape_and_refuse() -> None:
    template = parse_template("{{x}} {a}: {b}", "data.template.text")
    assert template.fields == ("a", "b")
    assert template.render({"a": 1.5, "b": ["é", None]}) == '{x} 1.5: ["é", null]'
    for broken in ("{", "a } b", "{a!r}", "{a:>3}", "{}"):
        with pytest.raises(ConfigurationError, match=r"data\.template\.text cannot be read"):
            parse_template(broken, "data.template.text")


def test_a_missing_field_is_told_with_those_that_exist(tmp_path: Path) -> None:
    data, path = make_data(tmp_path, tone_rows(3), template={"prompt": "{phrse}", "completion": "{tone}"})
    with pytest.raises(DataError) as caught:
        load_rows(data, RowFiles.of(path), None, seed=0)
    assert caught.value.reason is Reason.COLUMN_MISSING
    assert (
        caught.value.message
        == "data.template.prompt names the field {phrse}, which the rows of data.train do not have; they have: phrase, tone"
    )
    lacking = [*tone_rows(3), {"phrase": "x"}]
    data, path = make_data(tmp_path, lacking)
    with pytest.raises(DataError, match=r"which row 4 of data\.train lacks"):
        load_rows(data, RowFiles.of(path), None, seed=0)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": }\n', "line 3 of a.jsonl is not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1 of a.jsonl is not an object"),
        ("a.json", '[{"a": 1},\n {"a" 2}]', "not valid JSON: .* at line 2"),
        ("a.csv", "a,b\n1,2\n3\n", "row 2 of a.csv"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.xlsx", "", "rows are read from .jsonl"),
        ("a.parquet", "junk", "not valid Parquet"),
    ],
)
def test_unreadable_rows_are_named_by_line(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        read_rows(tmp_path / name, "data.train")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"a": "x"}\n{"a": ["cut \\ud83d"]}\n', r"line 2 of a\.jsonl holds \\ud83d, one half of a character"),
        ("a.json", '[{"a": "x"}, {"\\uDE00": 1}]', r"row 2 of a\.json holds \\ude00, one half of a character"),
    ],
    ids=["in a value", "in a name"],
)
def test_half_a_character_is_named_by_line(tmp_path: Path, name: str, content: str, says: str) -> None:
    """Software that cuts texts by UTF-16 units leaves half an emoji: no UTF-8 can hold it."""
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        read_rows(tmp_path / name, "data.train")
    assert caught.value.reason is Reason.DATA_UNREADABLE
    caught.value.message.encode()


def test_an_escaped_emoji_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "\\ud83d\\ude00 \\\\ud83d"}\n')
    assert [row.fields for row in read_rows(tmp_path / "a.jsonl", "data.train")] == [{"a": "😀 \\ud83d"}]


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("phrase,tone\n" + "".join(f'"{row["phrase"]}",{row["tone"]}\n' for row in rows))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_rows),
        ("lines.json", write_rows),
        ("array.json", lambda path, rows: path.write_text(json.dumps(rows))),
        ("rows.csv", _csv),
        ("rows.parquet", _parquet),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, Any]]], Any]) -> None:
    write(tmp_path / name, tone_rows(4))
    assert [row.fields for row in read_rows(tmp_path / name, "data.train")] == tone_rows(4)


def _long_row(tokenizer: Any, on_overflow: OnOverflow, limit: int, completion: str = " joy") -> Any:
    row = Row(17, {})
    example = completion_example(tokenizer, "one two three four five six", completion, loss_on=LossOn.COMPLETION)
    return fitted_of([row], [fit_example(row, example, max_length=limit, on_overflow=on_overflow, source="data.train")])


def test_a_row_that_is_too_long_fails_with_its_number(tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r"row 17 of data\.train has \d+ tokens, data\.maxLength is 8: raise data\.maxLength"
    ) as caught:
        _long_row(tokenizer, OnOverflow.FAIL, 8)
    assert caught.value.reason is Reason.ROW_TOO_LONG


def test_overflow_is_dropped_or_truncated_and_counted(tokenizer: Any) -> None:
    dropped = _long_row(tokenizer, OnOverflow.DROP, 8)
    assert (dropped.examples, dropped.dropped, dropped.truncated) == ([], 1, 0)
    cut = _long_row(tokenizer, OnOverflow.TRUNCATE, 8)
    assert (cut.dropped, cut.truncated) == (0, 1)
    assert len(cut.examples[0].ids) == 8
    assert learned_text(tokenizer, cut.examples[0]) == " joy<|im_end|>"  # never the completion
    assert (
        tokenizer.decode(cut.examples[0].prompt_ids)
        == "one two three four five six"[-len(tokenizer.decode(cut.examples[0].prompt_ids)) :]
    )
    hopeless = _long_row(tokenizer, OnOverflow.TRUNCATE, 8, completion=" a very long answer indeed")
    assert (hopeless.dropped, hopeless.truncated) == (1, 0)


def test_a_cut_prompt_keeps_the_token_that_begins_every_sequence(tokenizer: Any) -> None:
    leading = _with_leading_token(tokenizer)
    assert leading.encode("ha")[0] == 0
    cut = _long_row(leading, OnOverflow.TRUNCATE, 8).examples[0]
    assert (len(cut.ids), cut.ids[0], cut.learned[0]) == (8, 0, False)
    assert "one two three four five six".endswith(leading.decode(cut.prompt_ids[1:]))
    assert learned_text(leading, cut) == " joy<|im_end|>"
    answer = int(cut.learned.sum())
    assert _long_row(leading, OnOverflow.TRUNCATE, answer + 1).dropped == 1  # the prompt would be that token alone


def test_a_cut_chat_keeps_the_token_that_begins_every_sequence(tokenizer: Any) -> None:
    """There the chat template writes it; the role marks of a tokenizer that adds none are no such token."""
    for one, kept in ((tokenizer, 0), (_with_leading_token(tokenizer), 1)):
        renderer = ChatRenderer(one, "chat", stop_ids=frozenset({STOP}), loss_on=LossOn.COMPLETION, source="data.train")
        assert renderer.example(chat_row("u:hi", "a:ho")).leading == kept


def test_a_cut_text_does_not_teach_to_stop(tokenizer: Any) -> None:
    text = text_example(tokenizer, "one two three four")
    cut = fit_example(Row(1, {}), text, max_length=8, on_overflow=OnOverflow.TRUNCATE, source="data.train")
    assert cut is not None
    assert STOP not in cut.ids


def test_equal_rows_never_straddle_the_split() -> None:
    rows = [Row(number, fields) for number, fields in enumerate(tone_rows(12) * 3)]
    split = split_rows(rows, 0.25, 1, identity=lambda row: row.fields["phrase"], stratum=lambda row: row.fields["tone"])
    held = {row.fields["phrase"] for row in split.validation}
    assert held
    assert not held & {row.fields["phrase"] for row in split.train}
    assert len(split.train) + len(split.validation) == 36


def test_every_stratum_gives_its_share() -> None:
    rows = [Row(index, {"id": index, "tone": "rare" if index < 3 else "common"}) for index in range(43)]

    def split(seed: int) -> list[int]:
        made = split_rows(rows, 0.25, seed, identity=lambda row: str(row.number), stratum=lambda row: row.fields["tone"])
        return [row.number for row in made.validation]

    assert sum(number < 3 for number in split(0)) == 1
    assert len(split(0)) == 11
    assert split(0) == split(0)
    assert split(0) != split(1)


def test_a_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = [Row(index, {"id": index}) for index in range(20)]
    one = split_rows(rows, 0.3, 5, identity=lambda row: str(row.number), stratum=lambda _: "")
    two = split_rows(rows[::-1], 0.3, 5, identity=lambda row: str(row.number), stratum=lambda _: "")
    assert {row.number for row in one.validation} == {row.number for row in two.validation}


def test_rows_that_the_model_cannot_tell_apart_are_equal() -> None:
    template = RowTemplate.of(Template(prompt="{a}", completion="{b}"))
    assert template.identity(Row(1, {"a": 1, "b": 2, "id": 7})) == template.identity(Row(2, {"id": 8, "b": 2, "a": 1}))


def test_prepared_data_is_counted_and_digested(tmp_path: Path, tokenizer: Any) -> None:
    data, path = make_data(tmp_path, tone_rows(24), validationFraction=0.25, stratifyBy="tone", maxLength=12, onOverflow="Drop")
    loaded = load_rows(data, RowFiles.of(path), None, seed=0)
    prepared = prepare_examples(data, loaded, tokenizer, stop_ids=frozenset({STOP}))
    resolved = prepared.resolved
    assert resolved.rows + resolved.validation_rows + resolved.dropped == 24
    assert resolved.dropped
    assert resolved.tokens == sum(len(example.ids) for example in prepared.train.batch(0, 0, len(prepared.train)))
    assert load_rows(data, RowFiles.of(path), None, seed=0).digest == resolved.digest
    assert load_rows(data, RowFiles.of(path), None, seed=1).digest != resolved.digest


@pytest.mark.parametrize(
    ("changes", "validation", "says"),
    [
        (
            {"validation": {"uri": "file:///v.jsonl"}, "maxLength": 16, "onOverflow": "Drop"},
            [{"phrase": "a very long phrase indeed", "tone": "joy"}],
            "1 of 1 rows were dropped as longer than data.maxLength 16; raise it, or leave data.validation out",
        ),
        (
            {"validationFraction": 0.1, "maxLength": 16, "onOverflow": "Drop"},
            None,
            "1 of 1 rows were dropped as longer than data.maxLength 16; raise it, or leave data.validationFraction out",
        ),
        (
            {"validation": {"uri": "file:///v.jsonl"}, "template": {"text": "{phrase}"}, "lossOn": "All"},
            [{"phrase": ""}],
            "all 1 rows are empty; give rows with text, or leave data.validation out",
        ),
    ],
    ids=["a file of its own", "a fraction", "empty rows"],
)
def test_validation_never_vanishes_silently(
    tmp_path: Path, tokenizer: Any, changes: dict[str, Any], validation: list[dict[str, Any]] | None, says: str
) -> None:
    rows = [{"phrase": "ha", "tone": "joy"}, {"phrase": "ho", "tone": "a tone that is far too long"}]
    data, path = make_data(tmp_path, rows, **changes)
    file = write_rows(tmp_path / "v.jsonl", validation) if validation is not None else None
    # One of the two is held back, and whether it is the long one is the seed's choice.
    seed = next(
        seed for seed in range(99) if file or load_rows(data, RowFiles.of(path), None, seed=seed).split.train[0].number == 1
    )
    with pytest.raises(DataError, match="no validation row is left that measures anything: ") as caught:
        prepare_examples(
            data,
            load_rows(data, RowFiles.of(path), RowFiles.of(file) if file else None, seed=seed),
            tokenizer,
            stop_ids=frozenset({STOP}),
        )
    assert caught.value.reason is Reason.DATA_EMPTY
    assert caught.value.message.endswith(says)


def test_the_index_that_pandas_writes_is_a_column(tmp_path: Path) -> None:
    """df.to_csv() leaves the index's name empty: every such file was refused."""
    path = tmp_path / "rows.csv"
    path.write_text(",phrase,tone\n0,ha,joy\n1,ho,fear\n")
    assert [row.fields for row in read_rows(path, "data.train")][1] == {"": "1", "phrase": "ho", "tone": "fear"}
    path.write_text(",phrase,tone\n0,ha,joy,more\n")
    with pytest.raises(DataError, match=r"row 1 of rows\.csv \(line 2\) has not as many values"):
        read_rows(path, "data.train")


def test_every_fault_of_arrow_is_told_as_the_datas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet
    from pyarrow import ArrowMemoryError, ArrowNotImplementedError

    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr(pyarrow.parquet, "read_table", fail)
    error: Exception = ArrowNotImplementedError("nested")
    with pytest.raises(DataError, match=r"is not valid Parquet: nested"):
        read_rows(tmp_path / "rows.parquet", "data.train")
    error = ArrowMemoryError("malloc of size 9 failed")
    with pytest.raises(MemoryError):  # the worker ends with 20
        read_rows(tmp_path / "rows.parquet", "data.train")


def test_an_epoch_sees_every_row_once_and_epochs_differ() -> None:
    orders = [epoch_order(3, epoch, 10).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    steps = [batch_rows(3, step, 4, 10) for step in range(5)]  # 20 positions: two epochs, one batch straddles them
    assert [row for batch in steps for row in batch] == orders[0] + orders[1]
    assert batch_rows(3, 2, 4, 10) == steps[2]


def test_the_first_epochs_order_is_fixed_for_good() -> None:
    """A resume on a newer numpy must draw the same batches: this order must never change."""
    assert epoch_order(0, 0, 8).tolist() == FIRST_ORDER


FIRST_ORDER = [0, 2, 1, 5, 4, 3, 6, 7]


def test_ranks_and_micro_batches_divide_the_global_batch() -> None:
    batch = list(range(8))
    parts = [rank_micro_batches(batch, rank=rank, world=2, micro=2) for rank in range(2)]
    assert parts == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


@pytest.mark.parametrize(("rows", "world", "micro"), [(8, 3, 2), (8, 3, 1), (7, 2, 4), (1, 4, 1), (8, 1, 3)])
def test_rows_that_do_not_divide_evenly_are_still_each_one_ranks(rows: int, world: int, micro: int) -> None:
    """All ranks have as many micro-batches, since they agree before each; some may be empty."""
    parts = [rank_micro_batches(list(range(rows)), rank=rank, world=world, micro=micro) for rank in range(world)]
    assert sorted(row for part in parts for members in part for row in members) == list(range(rows))
    assert len({len(part) for part in parts}) == 1
    assert max(len(members) for part in parts for members in part) <= micro


def test_epochs_become_steps() -> None:
    assert total_steps(None, 1.0, rows=10, batch=4) == 3
    assert total_steps(None, 2.0, rows=10, batch=4) == 5
    assert total_steps(7, None, rows=10, batch=4) == 7
    assert total_steps(None, 0.01, rows=10, batch=4) == 1
