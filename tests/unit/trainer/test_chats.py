"""Chats with tools, parts and system messages."""

import copy
import json
from typing import Any

import pytest

from olivine_api.finetunejob import LossOn
from olivine_trainer.data.chat import ChatRenderer
from olivine_trainer.data.rows import Row
from olivine_trainer.errors import DataError
from olivine_trainer.modeling.example import Example

STOP = 1
# As Qwen's and others': tools before all, calls as JSON, results as messages of the role tool.
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def render(tokenizer: Any, chat: Any, *, template: str = TEMPLATE, **fields: Any) -> Example:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    renderer = ChatRenderer(
        changed,
        "chat",
        tools="tools" if "tools" in fields else None,
        stop_ids=frozenset({STOP}),
        loss_on=LossOn.COMPLETION,
        source="data.train",
    )
    return renderer.example(Row(4, {"chat": chat, **fields}))


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["a list", "its JSON"])
@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'], ids=["an object", "its JSON"])
def test_calls_and_answers_are_learned_and_results_are_not(tokenizer: Any, tools: Any, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    chat = [
        say("system", "be brief"),
        say("user", "1 and 1"),
        say("assistant", None, tool_calls=[call]),
        say("tool", "2", tool_call_id="x", name="add"),
        say("assistant", "two"),
    ]
    example = render(tokenizer, chat, tools=tools)
    assert tokenizer.decode(example.ids[example.learned]) == '<call>add {"a": 1}</call><|im_end|>two<|im_end|>'
    assert example.prompt.startswith('<|im_start|>tools\n{"type": "function"')
    assert "<|im_start|>tool\n2<|im_end|>" in example.prompt
    assert example.expected == "two"


def test_a_call_at_the_end_is_the_expected_answer(tokenizer: Any) -> None:
    """Generated text is compared with what the template writes, since no content is there."""
    example = render(tokenizer, [say("user", "1 and 1"), {"role": "assistant", "tool_calls": [CALL]}], tools=TOOLS)
    assert example.expected == '<call>add {"a": 1}</call>'


def test_members_that_parquet_fills_with_null_are_absent(tokenizer: Any) -> None:
    nothing = {"tool_calls": None, "tool_call_id": None, "name": None}
    chat = [say("user", "hi", **nothing), say("assistant", "ho", **nothing)]
    plain = render(tokenizer, [say("user", "hi"), say("assistant", "ho")])
    for tools in (None, "", []):
        example = render(tokenizer, chat, tools=tools)
        assert example.ids.tolist() == plain.ids.tolist()


def test_parts_of_text_are_joined(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "hi "}, {"type": "text", "text": "there"}]
    example = render(tokenizer, [say("user", parts), say("assistant", "ho")])
    assert "<|im_start|>user\nhi there<|im_end|>" in example.prompt


@pytest.mark.parametrize(
    ("chat", "fields", "says"),
    [
        ([say("user", [{"type": "image", "url": "x"}]), say("assistant", "a")], {}, "has a message 1 that is not"),
        ([say("user", None), say("assistant", "a")], {}, "has a message 1 that is not"),
        ([say("user", "u"), say("assistant", "", tool_calls=["add"])], {}, "has a message 2 that is not .* with tool_calls"),
        (
            [say("user", "u"), say("assistant", "", tool_calls=[{"function": {"name": "add", "arguments": "{"}}])],
            {},
            "has a message 2 that is not",
        ),
        ([say("user", "u"), say("assistant", "a")], {"tools": "add"}, "has no tools in the field tools"),
        ([say("user", "u"), say("assistant", "a")], {"tools": {"add": 1}}, "has no tools in the field tools"),
        ([{"from": "human", "value": "u"}], {}, "has a message 1 that is not"),
    ],
    ids=["an image", "no content", "a call without a function", "broken arguments", "tools as text", "tools as object", "ShareGPT"],
)
def test_what_cannot_be_rendered_is_named(tokenizer: Any, chat: Any, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=r"row 4 of data\.train " + says):
        render(tokenizer, chat, **fields)


def test_a_model_without_system_messages_says_so(tokenizer: Any) -> None:
    """As Gemma's template does."""
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
    with pytest.raises(DataError, match=r"row 4 of data\.train is refused by the model's chat template: System role not supported"):
        render(tokenizer, [say("system", "s"), say("user", "u"), say("assistant", "a")], template=template)
