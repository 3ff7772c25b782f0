"""Chats, rendered by the model's own chat template; the assistant's turns and their stop tokens are learned.

Where a turn begins and ends is found by rendering ever longer beginnings of the chat: each must be the beginning of the next.
A template that rewrites earlier turns (some drop their reasoning) breaks that and is refused, not guessed at.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from jinja2 import TemplateError

from olivine_api.finetunejob import LossOn
from olivine_api.reasons import Reason
from olivine_trainer.data.rows import Row
from olivine_trainer.data.tokens import leading_tokens
from olivine_trainer.errors import DataError, ModelError
from olivine_trainer.modeling.example import Example

_ASSISTANT = "assistant"


class ChatRenderer:
    """Turns the chats of one field into examples.

    `stop_ids`: the tokens that end generation; a turn is learned up to the last of them in it.
    """

    def __init__(self, tokenizer: Any, field: str, *, stop_ids: frozenset[int], loss_on: LossOn, source: str) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                Reason.MODEL_UNSUPPORTED,
                "data.template.messages needs a model whose tokenizer has a chat template, which this one lacks:"
                " use an instruction-tuned model, or write data.template.prompt with completion",
            )
        self._tokenizer = tokenizer
        self._field = field
        self._stop_ids = stop_ids
        self._loss_on = loss_on
        self._source = source

    def example(self, row: Row) -> Example:
        """The chat of a row. Raises DataError naming the row where it is no chat or the template cannot be followed."""
        messages = self._messages(row)
        turns = [index for index, message in enumerate(messages) if message["role"] == _ASSISTANT]
        if not turns:
            raise self._fault(row, "has no message of the role assistant, so there is nothing to learn")
        messages = messages[: turns[-1] + 1]
        text = self._render(row, messages, prompt=False)
        cuts = self._cuts(row, messages, turns, text)
        ids, marks = self._tokens(text, cuts)
        learned = np.full(len(ids), self._loss_on is LossOn.ALL, dtype=np.bool_)
        start = end = 0
        for start, until in zip(marks[::2], marks[1::2], strict=True):
            end = self._turn_end(ids[:until], start)
            learned[start:end] = True
        # What the template writes after the last stop token (a line break) is no part of the answer.
        ids = ids[:end]
        if ids[-1] not in self._stop_ids:
            ids = [*ids, self._tokenizer.eos_token_id]
        mask = np.append(learned[:end], np.ones(len(ids) - end, dtype=np.bool_))
        return Example(
            ids=np.asarray(ids, dtype=np.int32),
            learned=mask,
            prompt_length=start,
            leading=leading_tokens(self._tokenizer, ids),
            prompt=text[: cuts[-2]],
            expected=messages[-1]["content"],
        )

    def _cuts(self, row: Row, messages: Sequence[dict[str, str]], turns: Sequence[int], text: str) -> list[int]:
        """Where the turns begin and end in the text of all messages, in turn. Raises DataError where they cannot be told."""
        cuts: list[int] = []
        for index in turns:
            before = self._render(row, messages[:index], prompt=True)
            until = self._render(row, messages[: index + 1], prompt=False)
            if not (until.startswith(before) and text.startswith(until)) or len(before) < max(cuts, default=0):
                raise self._fault(
                    row,
                    f"cannot be masked: the model's chat template renders message {index + 1} differently once more of the chat"
                    " follows; keep one assistant message a row, or write data.template.prompt with completion",
                )
            cuts += [len(before), len(until)]
        return cuts

    def _turn_end(self, until: Sequence[int], start: int) -> int:
        """One past the turn's last stop token; the whole turn where it has none."""
        ends = [position + 1 for position in range(start, len(until)) if until[position] in self._stop_ids]
        return ends[-1] if ends else len(until)

    def _tokens(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
        """The tokens of a text that ends with the last cut, and how many lie before each cut: none straddles one."""
        ids = self._encode(text)
        heads = [self._encode(text[:cut]) for cut in cuts]
        if all(ids[: len(head)] == head for head in heads):
            return ids, [len(head) for head in heads]
        # A prompt's last line break and an answer's first may be one token, which generation after the prompt never makes.
        pieces = [self._encode(text[start:end]) for start, end in pairwise([0, *cuts])]
        return [token for piece in pieces for token in piece], list(accumulate(len(piece) for piece in pieces))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _render(self, row: Row, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
        except (TemplateError, ValueError, TypeError, IndexError, KeyError) as error:
            raise self._fault(row, f"is refused by the model's chat template: {error}") from None

    def _messages(self, row: Row) -> list[dict[str, str]]:
        value = row.fields[self._field]
        if not isinstance(value, list) or not value:
            raise self._fault(row, f"has no chat in the field {self._field}: it must be a list of {{role, content}}")
        for number, message in enumerate(value, start=1):
            if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise self._fault(row, f"has a message {number} that is not {{role, content}} with two strings")
        return [{"role": message["role"], "content": message["content"]} for message in value]

    def _fault(self, row: Row, what: str) -> DataError:
        return DataError(Reason.DATA_UNREADABLE, f"{row.of(self._source)} {what}")
