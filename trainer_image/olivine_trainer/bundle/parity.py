"""How far the graph is from PyTorch: the numbers, and who may judge by them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from olivine_trainer.bundle import reference
from olivine_trainer.bundle.onnx_model import OnnxModel
from olivine_trainer.bundle.slots import Floats

_SWITCHES = 9


@dataclass(frozen=True)
class Expected:
    """What PyTorch says: its answers to prompts, and its logits at every token of prompt and answer."""

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[Floats]
    count: int
    stops: frozenset[int]

    @property
    def texts(self) -> list[list[int]]:
        """Prompts with their answers."""
        return [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]


@dataclass(frozen=True)
class Parity:
    """The graph's distance from that."""

    max_logit_difference: float
    top1_agreement: float
    """Share of the tokens where both find the same one likeliest."""
    greedy_agreement: float
    """Share of the answers' tokens before the first that differs."""
    mean_kl: float
    """Of the graph's distribution from PyTorch's, over all tokens."""


def expect(model: Any, prompts: Sequence[Sequence[int]], count: int, stops: frozenset[int]) -> Expected:
    """Ask PyTorch."""
    asked = [list(prompt) for prompt in prompts]
    answers = [reference.answer(model, prompt, count, stops) for prompt in asked]
    logits = [reference.logits(model, prompt + answer) for prompt, answer in zip(asked, answers, strict=True)]
    return Expected(asked, answers, logits, count, stops)


def compare(expected: Expected, onnx: OnnxModel, adapter: str | None) -> Parity:
    """Ask the graph the same."""
    differences: list[float] = []
    same: list[Floats] = []
    divergence: list[Floats] = []
    for text, wanted in zip(expected.texts, expected.logits, strict=True):
        found = onnx.logits(text, adapter)
        differences.append(_worst(wanted, found))
        same.append((wanted.argmax(-1) == found.argmax(-1)).astype(np.float32))
        divergence.append(_kl(wanted, found))
    greedy = [
        _agreement(wanted, onnx.answer(prompt, adapter, expected.count), expected.stops)
        for prompt, wanted in zip(expected.prompts, expected.answers, strict=True)
    ]
    return Parity(
        max_logit_difference=max(differences),
        top1_agreement=float(np.concatenate(same).mean()),
        greedy_agreement=sum(greedy) / len(greedy),
        mean_kl=float(np.concatenate(divergence).mean()),
    )


def effect(model: Any, base: Expected) -> float:
    """By how much an adapter changes any of the base's logits."""
    pairs = zip(base.texts, base.logits, strict=True)
    return max(_worst(logits, reference.logits(model, text)) for text, logits in pairs)


def switching_difference(onnx: OnnxModel, text: Sequence[int], adapters: Sequence[str]) -> tuple[float, dict[str, float]]:
    """One generator through all adapters, each followed by the base, against fresh ones; the worst difference, and microseconds by adapter."""
    shared = onnx.generator(len(text) + 1)
    fresh = {name: onnx.logits(text, name) for name in (*adapters, None)}
    worst = 0.0
    for name in [*adapters, *(one for adapter in reversed(adapters) for one in (adapter, None))]:
        worst = max(worst, _worst(fresh[name], onnx.logits(text, name, generator=shared)))
    return worst, {name: _switch_microseconds(onnx, shared, text[-1], name) for name in adapters}


def _switch_microseconds(onnx: OnnxModel, generator: Any, token: int, adapter: str) -> float:
    """What a switch costs: the call, and what the next token takes longer, since the engine puts off most of the work till then."""
    calls: list[float] = []
    first: list[float] = []
    later: list[float] = []
    for _ in range(_SWITCHES):
        onnx.logits([token], None, generator=generator)
        generator.rewind_to(0)
        calls.append(onnx.activate(generator, adapter))
        for taken in (first, later):
            generator.rewind_to(0)
            start = time.perf_counter()
            generator.append_tokens(np.array([[token]], np.int32))
            taken.append(1e6 * (time.perf_counter() - start))
    return float(np.median(calls) + max(0.0, np.median(first) - np.median(later)))


def _worst(one: Floats, other: Floats) -> float:
    # NaN compares as larger than anything.
    difference = float(np.abs(one - other).max())
    return difference if np.isfinite(difference) else float("inf")


def _kl(wanted: Floats, found: Floats) -> Floats:
    log_p, log_q = _log_softmax(wanted), _log_softmax(found)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _agreement(wanted: list[int], found: list[int], stops: frozenset[int]) -> float:
    one, other = ([token for token in answer if token not in stops] for answer in (wanted, found))
    longest = max(len(one), len(other))
    if longest == 0:
        return 1.0
    differs = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other)))
    return differs / longest
