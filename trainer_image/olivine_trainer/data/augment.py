"""Other wordings of what a training row asks: words left out, letters in another case, the prompt put differently.

What becomes of a row in an epoch is a function of (seed, epoch, row): nothing is to be saved for a resume, and ranks agree
without a word. The answer is never touched.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from olivine_api.data import Augmentation, AugmentationName, CaseStyle
from olivine_trainer.data.making import Wording
from olivine_trainer.data.rows import Row
from olivine_trainer.data.template import RowTemplate, TextTemplate, parse_template

_WORD = re.compile(r"\S+\s*")
_STREAM = 1  # keeps these numbers apart from those that order an epoch


class Draws:
    """Numbers from 0 to below 1, for one augmentation of one row in one epoch (Philox 4x64, raw: the same in every numpy)."""

    def __init__(self, seed: int, epoch: int, row: int, which: int) -> None:
        key, counter = (np.array(words, dtype=np.uint64) for words in ([seed, epoch], [0, row, which, _STREAM]))
        self._generator = np.random.Philox(key=key, counter=counter)

    def next(self) -> float:
        """The next number."""
        return self.many(1)[0]

    def many(self, count: int) -> list[float]:
        """The next so many."""
        return [(int(word) >> 11) * 2.0**-53 for word in self._generator.random_raw(count)]

    def pick(self, count: int) -> int:
        """One of so many."""
        return int(self.next() * count)


def without_words(text: str, share: float, draws: Draws) -> str:
    """Each word is left out with the chance `share`; one always stays."""
    words = _WORD.findall(text)
    if not words:
        return text
    spared = draws.pick(len(words))
    kept = [
        word
        for place, (word, drawn) in enumerate(zip(words, draws.many(len(words)), strict=True))
        if drawn >= share or place == spared
    ]
    return text[: len(text) - len(text.lstrip())] + "".join(kept)


def in_another_case(text: str, style: CaseStyle, share: float, draws: Draws) -> str:
    """All of it in a style, or each letter's case swapped with the chance `share`."""
    if style is CaseStyle.SWAP:
        return "".join(
            letter.swapcase() if drawn < share else letter for letter, drawn in zip(text, draws.many(len(text)), strict=True)
        )
    return {CaseStyle.LOWER: str.lower, CaseStyle.UPPER: str.upper, CaseStyle.TITLE: str.title}[style](text)


@dataclass(frozen=True)
class Augmenter:
    """data.augmentation over the rows of a template with prompt and completion, or with messages."""

    template: RowTemplate
    wanted: Sequence[Augmentation]

    @cached_property
    def paraphrases(self) -> list[list[TextTemplate]]:
        """The prompts of each augmentation; raises ConfigurationError for one that cannot be read."""
        return [
            [parse_template(text, f"data.augmentation[{place}].templates[{at}]") for at, text in enumerate(one.templates or ())]
            for place, one in enumerate(self.wanted)
        ]

    @property
    def named_fields(self) -> dict[str, tuple[str, ...]]:
        """The fields of other prompts, by the place that names them."""
        return {
            f"data.augmentation[{place}].templates[{at}]": prompt.fields
            for place, prompts in enumerate(self.paraphrases)
            for at, prompt in enumerate(prompts)
        }

    def wording(self, row: Row, *, seed: int, epoch: int, index: int) -> Wording | None:
        """How the row with this index is put in this epoch; None: as it is."""
        changed: Wording | None = None
        for place, one in enumerate(self.wanted):
            draws = Draws(seed, epoch, index, place)
            if draws.next() >= one.probability:
                continue
            before = changed or Wording(self.template.prompt, row.fields)
            if one.name is AugmentationName.TEMPLATE_PARAPHRASE:
                prompts = self.paraphrases[place]
                changed = Wording(prompts[draws.pick(len(prompts))], before.fields)
            else:
                changed = Wording(before.prompt, self._changed(before, _change(one, draws)))
        return changed

    def _changed(self, before: Wording, change: Callable[[str], str]) -> dict[str, Any]:
        """The fields with the input's texts changed: those that the prompt names, or what the user says in a chat."""
        fields = dict(before.fields)
        chat = self.template.messages
        if chat is not None:
            turns = fields[chat] if isinstance(fields[chat], list) else []  # what is no chat is told when it is rendered
            fields[chat] = [{**turn, "content": change(turn["content"])} if _is_asked(turn) else turn for turn in turns] or fields[
                chat
            ]
        for name in dict.fromkeys(before.prompt.fields if before.prompt is not None else ()):
            if isinstance(fields[name], str):
                fields[name] = change(fields[name])
        return fields


def _is_asked(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "user" and isinstance(turn.get("content"), str)


def _change(one: Augmentation, draws: Draws) -> Callable[[str], str]:
    given = one.parameters or {}
    share = float(given.get("share", 0.1))
    if one.name is AugmentationName.WORD_DROPOUT:
        return lambda text: without_words(text, share, draws)
    styles = [CaseStyle(str(given["style"]))] if "style" in given else list(CaseStyle)
    style = styles[draws.pick(len(styles))]
    return lambda text: in_another_case(text, style, share, draws)
