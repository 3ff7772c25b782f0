"""How far the graph is from PyTorch: the numbers, and who may judge by them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from olivine_api.adapterbundle import Verify
from olivine_trainer.bundle import reference
from olivine_trainer.bundle.onnx_model import OnnxModel
from olivine_trainer.bundle.slots import Floats

_SWITCHES = 9
_DECODED = 24  # tokens, at most, by which the overhead is measured
_ENOUGH = 4


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


def ask(onnx: OnnxModel, adapter: str | None, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The graph's greedy answers."""
    return [onnx.answer(prompt, adapter, count) for prompt in prompts]


def expect(
    model: Any, prompts: Sequence[Sequence[int]], count: int, stops: frozenset[int], guesses: Sequence[Sequence[int]]
) -> Expected:
    """Ask PyTorch. `guesses`: the graph's answers; one whose every token PyTorch finds likeliest is PyTorch's own, by induction, at a fraction of the cost."""
    asked = [list(prompt) for prompt in prompts]
    answers: list[list[int]] = []
    logits: list[Floats] = []
    for prompt, guess in zip(asked, guesses, strict=True):
        likely = _until_stop(guess, stops)
        found = reference.logits(model, prompt + likely)
        if _greedy_share(found[len(prompt) - 1 :], likely, count, stops) < 1.0:
            likely = reference.answer(model, prompt, count, stops)
            found = reference.logits(model, prompt + likely)
        answers.append(likely)
        logits.append(found)
    return Expected(asked, answers, logits, count, stops)


def _until_stop(answer: Sequence[int], stops: frozenset[int]) -> list[int]:
    end = next((at for at, token in enumerate(answer) if token in stops), len(answer))
    return list(answer[:end])


def _greedy_share(logits: Floats, answer: Sequence[int], count: int, stops: frozenset[int]) -> float:
    """Of an answer without its stop token: the share of its tokens, its end among them, before the first that is not the likeliest after those before it.

    `logits`: [tokens, vocabulary], from the prompt's last token on.
    """
    likeliest = [int(token) for token in logits.argmax(-1)]
    likely = [one == other for one, other in zip(likeliest, answer, strict=False)]
    if len(answer) < count:
        likely.append(likeliest[len(answer)] in stops)
    return (*likely, False).index(False) / max(1, len(likely))


def compare(expected: Expected, onnx: OnnxModel, adapter: str | None, answers: Sequence[Sequence[int]] | None = None) -> Parity:
    """Ask the graph for its logits; `answers`: what it said to the prompts, where it was asked for them, too.

    Without them the greedy agreement is told by the logits: up to the first token that differs, a graph's greedy answer is PyTorch's.
    """
    differences: list[float] = []
    same: list[Floats] = []
    divergence: list[Floats] = []
    greedy: list[float] = []
    given = answers if answers is not None else [None] * len(expected.prompts)
    for prompt, answer, wanted, said in zip(expected.prompts, expected.answers, expected.logits, given, strict=True):
        found = onnx.logits(prompt + answer, adapter)
        differences.append(_worst(wanted, found))
        same.append((wanted.argmax(-1) == found.argmax(-1)).astype(np.float32))
        divergence.append(_kl(wanted, found))
        greedy.append(
            _agreement(answer, list(said), expected.stops)
            if said is not None
            else _greedy_share(found[len(prompt) - 1 :], _until_stop(answer, expected.stops), expected.count, expected.stops)
        )
    return Parity(
        max_logit_difference=max(differences),
        top1_agreement=float(np.concatenate(same).mean()),
        greedy_agreement=sum(greedy) / len(greedy),
        mean_kl=float(np.concatenate(divergence).mean()),
    )


def shortfall(parity: Parity, asked: Verify) -> str | None:
    """What an fp32 graph misses of `asked`, as the end of a sentence whose subject is the graph; None where it misses nothing."""
    if not parity.max_logit_difference <= asked.max_logit_difference:
        return (
            f"differs from PyTorch by {parity.max_logit_difference:.2g} in a logit,"
            f" verify.maxLogitDifference is {asked.max_logit_difference:g}: allow it there if it is rounding, as in large models;"
            " otherwise onnxruntime computes another model"
        )
    agreed = min(parity.greedy_agreement, parity.top1_agreement)
    if agreed < asked.min_greedy_agreement:
        return (
            f"answers {parity.greedy_agreement:.1%} of the greedy tokens as PyTorch does, and finds the same token likeliest at"
            f" {parity.top1_agreement:.1%} of all, verify.minGreedyAgreement is {asked.min_greedy_agreement:g}; as no logit differs by"
            f" more than {parity.max_logit_difference:.2g}, two tokens are as good as equally likely where they part: give other"
            " verify.prompts, or lower verify.minGreedyAgreement"
        )
    return None


def mean_divergence(texts: Sequence[Sequence[int]], wanted: Sequence[Floats], onnx: OnnxModel, adapter: str | None) -> float:
    """Mean KL of the graph's distribution from PyTorch's logits, over all tokens."""
    pairs = zip(texts, wanted, strict=True)
    return float(np.concatenate([_kl(logits, onnx.logits(text, adapter)) for text, logits in pairs]).mean())


def effect(adapted: Sequence[Floats], base: Sequence[Floats]) -> float:
    """By how much an adapter changes any of the base's logits of the same texts."""
    return max(_worst(one, other) for one, other in zip(adapted, base, strict=True))


def overhead_percent(onnx: OnnxModel, text: Sequence[int], adapter: str, *, seconds: float = 0.5) -> float:
    """How much longer a token takes with the adapter than without any: medians, taken in turns so that a busy machine slows both."""
    generators = {name: onnx.generator(len(text) + _DECODED + 1) for name in (adapter, None)}
    took: dict[str | None, list[float]] = {adapter: [], None: []}
    for name, generator in generators.items():
        if name is not None:
            onnx.activate(generator, name)
        generator.append_tokens(np.array([list(text)], np.int32))
    start = time.perf_counter()
    for at in range(_DECODED):
        for name, generator in generators.items():
            begun = time.perf_counter()
            generator.append_tokens(np.array([[text[-1]]], np.int32))
            if at:  # the first token pays for the switch
                took[name].append(time.perf_counter() - begun)
        if at >= _ENOUGH and time.perf_counter() - start > seconds:
            break
    return 100 * float(np.median(took[adapter]) / np.median(took[None]) - 1)


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
    # In pairs: a machine that gets busy slows both.
    return float(np.median(calls) + max(0.0, np.median(np.array(first) - np.array(later))))


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
