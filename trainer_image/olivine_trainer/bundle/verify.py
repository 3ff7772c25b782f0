"""The proof: a bundle's adapters against PyTorch, in an fp32 build and as shipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from olivine_api.adapterbundle import Verify
from olivine_api.reasons import Reason
from olivine_trainer.bundle import reference
from olivine_trainer.bundle.base import Target
from olivine_trainer.bundle.onnx_model import OnnxModel, context_length, runs_here, stop_tokens
from olivine_trainer.bundle.parity import (
    Expected,
    Parity,
    ask,
    compare,
    effect,
    expect,
    mean_divergence,
    overhead_percent,
    shortfall,
    switching_difference,
)
from olivine_trainer.bundle.reference import Reference
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.report import BaseParity
from olivine_trainer.errors import ModelError
from olivine_trainer.faults import is_machine_fault

ANSWER_TOKENS = 24
PROMPT_LENGTH = 4096  # characters, as verify.prompts has it: the logits of a whole document do not fit into memory
# Two runs of one graph over one text differ by nothing but the order of additions.
_SWITCHING_TOLERANCE = 1e-4
PROMPTS = (
    "The capital of France is",
    "Message: my card has not arrived yet\nTopic:",
    "Once upon a time there was",
    "Question: How many legs has a spider?\nAnswer:",
)


@dataclass(frozen=True)
class Proven:
    """One adapter, measured in both builds."""

    exact: Parity
    shipped: Parity | None = None
    """None where it cannot be run here, as are the rest, which are of it."""
    base_mean_kl: float | None = None
    """The same texts with no adapter active, against PyTorch's base."""
    load_milliseconds: float | None = None
    overhead_percent: float | None = None


class Verifier:
    """The fp32 build and the shipped one, both loaded, beside PyTorch."""

    def __init__(self, model: Reference, *, exact: Path, shipped: Path, asked: Verify, target: Target = "cpu") -> None:
        self._reference = model
        self._asked = asked
        self._stops = stop_tokens(shipped)
        self._longest = max(1, context_length(shipped) - ANSWER_TOKENS - 1)
        try:
            self._not_verified = runs_here(shipped, target)
            self._shipped = OnnxModel(shipped) if self._not_verified is None else None
            self._exact = self._shipped if self._shipped is not None and exact == shipped else OnnxModel(exact)
        except RuntimeError as error:
            raise _cannot_run(error) from None

    def prove_base(self) -> BaseParity:
        """The graph with no adapter active. Raises ModelError where it is not the base: then nothing on it can be."""
        try:
            expected, exact = self._measure(self._reference.model, None, self._prompts(()))
            shipped = compare(expected, self._shipped, None) if self._shipped is not None else None
        except RuntimeError as error:
            raise _cannot_run(error) from None
        if missed := shortfall(exact, self._asked):
            raise ModelError(Reason.PARITY_UNMET, f"the base's fp32 graph, with no adapter active, {missed}")
        return BaseParity(
            max_logit_difference=exact.max_logit_difference,
            top1_agreement=exact.top1_agreement,
            greedy_agreement=exact.greedy_agreement,
            mean_kl=shipped.mean_kl if shipped is not None else None,
            shipped_top1_agreement=shipped.top1_agreement if shipped is not None else None,
            shipped_greedy_agreement=shipped.greedy_agreement if shipped is not None else None,
            not_verified=self._not_verified,
        )

    def prove(self, name: str, source: Path, prompts: Sequence[str] = ()) -> Proven:
        """Measure an adapter by verify.prompts, else by `prompts`, else by the built-in ones.

        Raises RejectedError where it is not what PyTorch computes, with the number that tells.
        """
        try:
            model = self._reference.adapted(source)
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            if is_machine_fault(error):  # a rejection is remembered
                raise
            raise RejectedError(f"PyTorch cannot load it ({' '.join(str(error).split())[:300]}): upload it again") from None
        expected, exact = self._measure(model, name, self._prompts(prompts))
        if missed := shortfall(exact, self._asked):
            raise RejectedError(f"its fp32 graph {missed}")
        texts = expected.texts
        base = [reference.logits(self._reference.model, text) for text in texts]
        if (changed := effect(expected.logits, base)) <= self._asked.max_logit_difference:
            raise RejectedError(
                f"it changes no logit of the base by more than {changed:.2g}: it was not trained, or verify.prompts do not show what it does"
            )
        if self._shipped is None:
            return Proven(exact=exact)
        shipped = compare(expected, self._shipped, name)
        base_mean_kl = mean_divergence(texts, base, self._shipped, None)
        if not (extra := shipped.mean_kl - base_mean_kl) <= self._asked.max_extra_kl:
            raise RejectedError(
                f"as shipped its mean KL divergence is {extra:.4f} above the base's own, verify.maxExtraKL is"
                f" {self._asked.max_extra_kl:g}: choose a higher onnx.precision, or allow more"
            )
        return Proven(
            exact=exact,
            shipped=shipped,
            base_mean_kl=base_mean_kl,
            load_milliseconds=self._shipped.load_milliseconds[name],
            # As long as a prompt may be: the tokens that are timed stand in the place of an answer.
            overhead_percent=overhead_percent(self._shipped, texts[0][-self._longest :], name),
        )

    def switch(self, adapters: list[str]) -> tuple[float, Mapping[str, float]]:
        """Switching on one generator, and the microseconds of each. Raises ModelError where one leaves traces in the next."""
        worst, took = switching_difference(self._shipped or self._exact, self._prompts(())[0], adapters)
        if not worst <= _SWITCHING_TOLERANCE:
            raise ModelError(
                Reason.PARITY_UNMET,
                f"switching adapters on one generator changes logits by {worst:.2g}: one leaves traces in the next",
            )
        return worst, took

    def _measure(self, model: object, adapter: str | None, prompts: list[list[int]]) -> tuple[Expected, Parity]:
        """The fp32 build."""
        answers = ask(self._exact, adapter, prompts, ANSWER_TOKENS)
        expected = expect(model, prompts, ANSWER_TOKENS, self._stops, answers)
        return expected, compare(expected, self._exact, adapter, answers)

    def _prompts(self, own: Sequence[str]) -> list[list[int]]:
        """As tokens; of one that is longer than the context, its end."""
        texts = self._asked.prompts or [text[-PROMPT_LENGTH:] for text in own] or PROMPTS
        encoded = ([int(token) for token in self._reference.tokenizer.encode(text)] for text in texts)
        return [ids[-self._longest :] for ids in encoded if ids]


def _cannot_run(error: RuntimeError) -> Exception:
    if is_machine_fault(error):
        return error
    return ModelError(
        Reason.MODEL_UNSUPPORTED,
        f"onnxruntime cannot run the base's graph ({' '.join(str(error).split())[:300]}): take another model",
    )
