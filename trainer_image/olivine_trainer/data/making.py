"""From a row to an example: the template's form decides how; the row's number and label go along."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from olivine_api.finetunejob import Data
from olivine_trainer.data.chat import ChatRenderer
from olivine_trainer.data.labels import Labels
from olivine_trainer.data.rows import Row
from olivine_trainer.data.template import RowTemplate, TextTemplate, as_text
from olivine_trainer.data.tokens import completion_example, pair_example, text_example
from olivine_trainer.modeling.example import Example


@dataclass(frozen=True)
class Wording:
    """How the input of a row is put, where it differs from what the row and data.template say."""

    prompt: TextTemplate | None
    fields: dict[str, Any]


MakeExample = Callable[[Row, Wording | None], Example]


def example_maker(
    data: Data,
    template: RowTemplate,
    tokenizer: Any,
    *,
    stop_ids: frozenset[int],
    labels: Labels | None,
    source: str,
    for_head: bool = False,
) -> MakeExample:
    """What makes examples of the rows of `source` (data.train and such). `for_head`: of a classification head, see `for_a_head`."""
    bare = _bare_maker(data, template, tokenizer, stop_ids, source)
    read_from = data.extraction.text_field if data.extraction is not None else None

    def make(row: Row, wording: Wording | None) -> Example:
        label = labels.index(row, source) if labels is not None else None
        text = as_text(row.fields[read_from]) if read_from is not None else ""
        example = replace(bare(row, wording), number=row.number, label=label, source=text)
        return for_a_head(example) if for_head else example

    return make


def for_a_head(example: Example) -> Example:
    """The prompt, and behind it the label's index in the place of a token: what the head is to predict at the prompt's last one.

    No position that is learned sees it; as an input it is some token of the vocabulary.
    """
    if example.label is None:
        raise ValueError("an example for a head has a label")
    ids = np.append(example.prompt_ids, np.int32(example.label))
    return replace(example, ids=ids, learned=np.arange(len(ids)) == example.prompt_length)


def _bare_maker(data: Data, template: RowTemplate, tokenizer: Any, stop_ids: frozenset[int], source: str) -> MakeExample:
    if template.messages is not None:
        renderer = ChatRenderer(
            tokenizer, template.messages, tools=template.tools, stop_ids=stop_ids, loss_on=data.loss_on, source=source
        )
        return lambda row, wording: renderer.example(row if wording is None else replace(row, fields=wording.fields))
    if template.pair is not None:
        pair = template.pair
        return lambda row, wording: pair_example(
            tokenizer,
            pair.left.render(row.fields if wording is None else wording.fields),
            pair.right.render(row.fields if wording is None else wording.fields),
            pair.label_of(row, source),
        )
    if template.text is not None:
        text = template.text
        return lambda row, _: text_example(tokenizer, text.render(row.fields))
    prompt, completion = template.prompt, template.completion
    if prompt is None or completion is None:
        raise ValueError("a template has text, messages, pair, or prompt with completion")

    def make(row: Row, wording: Wording | None) -> Example:
        put = (wording.prompt or prompt).render(wording.fields) if wording is not None else prompt.render(row.fields)
        return completion_example(tokenizer, put, completion.render(row.fields), loss_on=data.loss_on)

    return make
