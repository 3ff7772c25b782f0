"""Chats, rendered by the model's own chat template; the assistant's turns and their stop tokens are learned.

Where a turn begins and ends is found by rendering ever longer beginnings of the chat: each must be the beginning of the next.
A template that rewrites earlier turns (some drop their reasoning) breaks that and is refused, not guessed at.
"""

import json
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
_OF_TOOLS = ("tool_calls", "tool_call_id", "name")


def _content(value: Any) -> str | None:
    """A message's text; parts of type text are joined. None where it is something else."""
    if isinstance(value, list):
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        return None if None in texts else "".join(str(text) for text in texts)
    return value if isinstance(value, str) else None


def _call(given: Any) -> dict[str, Any] | None:
    """A call as templates read it: its arguments are an object, not the JSON that APIs send. None where it is no call."""
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments") or {}
    arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
    return {**given, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else None


def _parsed(text: str) -> Any:
    """What a text is as JSON; None where it is none."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None


class ChatRenderer:
    """Turns the chats of one field into examples.

    `stop_ids`: the tokens that end generation; a turn is learned up to the last of them in it.
    """

    def __init__(
        self, tokenizer: Any, field: str, *, stop_ids: frozenset[int], loss_on: LossOn, source: str, tools: str | None = None
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                Reason.MODEL_UNSUPPORTED,
                "data.template.messages needs a model whose tokenizer has a chat template, which this one lacks:"
                " use an instruction-tuned model, or write data.template.prompt with completion",
            )
        self._tokenizer = tokenizer
        self._field = field
        self._tools = tools
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
            # A call is written by the template: what was generated is compared with that.
            expected=self._decode(ids[start:end]) if "tool_calls" in messages[-1] else messages[-1]["content"],
        )

    def _cuts(self, row: Row, messages: Sequence[dict[str, Any]], turns: Sequence[int], text: str) -> list[int]:
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

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _render(self, row: Row, messages: Sequence[dict[str, Any]], *, prompt: bool) -> str:
        tools = self._tools_of(row)
        try:
            return str(
                self._tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt)
            )
        except (TemplateError, ValueError, TypeError, IndexError, KeyError) as error:
            raise self._fault(row, f"is refused by the model's chat template: {error}") from None

    def _messages(self, row: Row) -> list[dict[str, Any]]:
        value = row.fields[self._field]
        if not isinstance(value, list) or not value:
            raise self._fault(row, f"has no chat in the field {self._field}: it must be a list of {{role, content}}")
        return [self._message(row, number, message) for number, message in enumerate(value, start=1)]

    def _message(self, row: Row, number: int, given: Any) -> dict[str, Any]:
        """One message: role, content, and what a template may ask for of tools. Absent members are null in Parquet."""
        message = {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else {}
        kept = {key: message[key] for key in _OF_TOOLS if message.get(key)}
        if calls := kept.get("tool_calls"):
            kept["tool_calls"] = [_call(one) for one in calls] if isinstance(calls, list) else None
        content = _content(message.get("content", "" if calls else None))
        if not isinstance(message.get("role"), str) or content is None or (calls and None in (kept["tool_calls"] or [None])):
            raise self._fault(
                row,
                f"has a message {number} that is not {{role, content}} with two strings (or parts of type text), or with tool_calls"
                " of {function: {name, arguments}}",
            )
        return {"role": message["role"], "content": content, **kept}

    def _tools_of(self, row: Row) -> list[Any] | None:
        """The tools that this chat may call."""
        value = row.fields[self._tools] if self._tools is not None else None
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            return None
        value = _parsed(value) if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self._fault(row, f"has no tools in the field {self._tools}: it must be a list of JSON schemas, or its JSON")
        return value

    def _fault(self, row: Row, what: str) -> DataError:
        return DataError(Reason.DATA_UNREADABLE, f"{row.of(self._source)} {what}")
