"""Chats, rendered by the model's own chat template; the assistant's turns and their stop tokens are learned.

Where a turn begins and ends is found by rendering ever longer beginnings of the chat: each must be, token by token, the beginning
of the next. A template that rewrites earlier turns (some drop their reasoning) breaks that and is refused, not guessed at.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError

from olivine_api.finetunejob import LossOn
from olivine_api.reasons import Reason
from olivine_trainer.data.rows import Row
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
        whole = self._tokens(row, messages, prompt=False)
        learned = np.full(len(whole), self._loss_on is LossOn.ALL, dtype=np.bool_)
        start = end = 0
        for index in turns:
            before = self._tokens(row, messages[:index], prompt=True)
            until = self._tokens(row, messages[: index + 1], prompt=False)
            if until[: len(before)] != before or whole[: len(until)] != until:
                raise self._fault(
                    row,
                    f"cannot be masked: the model's chat template renders message {index + 1} differently once more of the chat"
                    " follows; keep one assistant message a row, or write data.template.prompt with completion",
                )
            start, end = len(before), self._turn_end(until, len(before))
            learned[start:end] = True
        # What the template writes after the last stop token (a line break) is no part of the answer.
        ids = whole[:end]
        if ids[-1] not in self._stop_ids:
            ids = [*ids, self._tokenizer.eos_token_id]
        mask = np.append(learned[:end], np.ones(len(ids) - end, dtype=np.bool_))
        return Example(
            ids=np.asarray(ids, dtype=np.int32),
            learned=mask,
            prompt_length=start,
            prompt=self._render(row, messages[:-1], prompt=True),
            expected=messages[-1]["content"],
        )

    def _turn_end(self, until: Sequence[int], start: int) -> int:
        """One past the turn's last stop token; the whole turn where it has none."""
        ends = [position + 1 for position in range(start, len(until)) if until[position] in self._stop_ids]
        return ends[-1] if ends else len(until)

    def _tokens(self, row: Row, messages: Sequence[dict[str, str]], *, prompt: bool) -> list[int]:
        text = self._render(row, messages, prompt=prompt)
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
        return DataError(Reason.DATA_UNREADABLE, f"row {row.number} of {self._source} {what}")
