"""The proof: a bundle's adapters against PyTorch, in an fp32 build and as shipped."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from olivine_api.adapterbundle import Verify
from olivine_api.reasons import Reason
from olivine_trainer.bundle.onnx_model import OnnxModel, stop_tokens
from olivine_trainer.bundle.parity import Expected, Parity, compare, effect, expect, switching_difference
from olivine_trainer.bundle.reference import Reference
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.errors import ModelError

ANSWER_TOKENS = 24
# Two runs of one graph over one text differ by nothing but the order of additions.
_SWITCHING_TOLERANCE = 1e-4
_PROMPTS = (
    "The capital of France is",
    "Message: my card has not arrived yet\nTopic:",
    "Once upon a time there was",
    "Question: How many legs has a spider?\nAnswer:",
)


@dataclass(frozen=True)
class Proven:
    """One adapter, or the base, measured in both builds."""

    exact: Parity
    shipped: Parity


class Verifier:
    """The fp32 build and the shipped one, both loaded, beside PyTorch."""

    def __init__(self, reference: Reference, *, exact: Path, shipped: Path, asked: Verify) -> None:
        self._reference = reference
        self._asked = asked
        self.shipped = OnnxModel(shipped)
        self._exact = self.shipped if exact == shipped else OnnxModel(exact)
        self.prompts = [self._encode(prompt) for prompt in asked.prompts or _PROMPTS]
        self._stops = stop_tokens(shipped)
        self._base = self._expect(reference.model)
        try:
            self.base = self._prove(self._base, None)
        except RuntimeError as error:
            raise ModelError(
                Reason.MODEL_UNSUPPORTED,
                f"onnxruntime cannot run the base's graph ({' '.join(str(error).split())[:300]}): take another model",
            ) from None

    def check_base(self) -> None:
        """Raises ModelError where the graph without an adapter is not the base: then nothing on it can be."""
        if missed := self._missed(self.base.exact):
            raise ModelError(
                Reason.PARITY_UNMET,
                f"the base's fp32 graph, with no adapter active, {missed}: onnxruntime-genai's builder has it wrong",
            )

    def prove(self, name: str, source: Path) -> Proven:
        """Measure an adapter. Raises RejectedError where it is not what PyTorch computes, with the number that tells."""
        try:
            model = self._reference.adapted(source)
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise RejectedError(f"PyTorch cannot load it ({' '.join(str(error).split())[:300]}): upload it again") from None
        proven = self._prove(self._expect(model), name)
        if missed := self._missed(proven.exact):
            raise RejectedError(f"its fp32 graph {missed}")
        limit = self._asked.max_logit_difference
        if (changed := effect(model, self._base)) <= limit:
            raise RejectedError(
                f"it changes no logit of the base by more than {changed:.2g}: it was not trained, or verify.prompts do not show what it does"
            )
        extra = proven.shipped.mean_kl - self.base.shipped.mean_kl
        if not extra <= self._asked.max_extra_kl:
            raise RejectedError(
                f"as shipped its mean KL divergence is {extra:.4f} above the base's own, verify.maxExtraKL is"
                f" {self._asked.max_extra_kl:g}: choose a higher onnx.precision, or allow more"
            )
        return proven

    def switch(self, adapters: list[str]) -> tuple[float, Mapping[str, float]]:
        """Switching on one generator, and the microseconds of each. Raises ModelError where one leaves traces in the next."""
        worst, took = switching_difference(self.shipped, self._base.texts[0], adapters)
        if not worst <= _SWITCHING_TOLERANCE:
            raise ModelError(
                Reason.PARITY_UNMET,
                f"switching adapters on one generator changes logits by {worst:.2g}: one leaves traces in the next",
            )
        return worst, took

    def _prove(self, expected: Expected, adapter: str | None) -> Proven:
        exact = compare(expected, self._exact, adapter)
        shipped = exact if self._exact is self.shipped else compare(expected, self.shipped, adapter)
        return Proven(exact, shipped)

    def _expect(self, model: object) -> Expected:
        return expect(model, self.prompts, ANSWER_TOKENS, self._stops)

    def _encode(self, prompt: str) -> list[int]:
        return [int(token) for token in self._reference.tokenizer.encode(prompt)]

    def _missed(self, parity: Parity) -> str | None:
        asked = self._asked
        if not parity.max_logit_difference <= asked.max_logit_difference:
            return (
                f"differs from PyTorch by {parity.max_logit_difference:.2g} in a logit,"
                f" verify.maxLogitDifference is {asked.max_logit_difference:g}"
            )
        if parity.greedy_agreement < asked.min_greedy_agreement:
            return (
                f"answers {parity.greedy_agreement:.1%} of the greedy tokens as PyTorch does,"
                f" verify.minGreedyAgreement is {asked.min_greedy_agreement:g}"
            )
        if parity.top1_agreement < asked.min_greedy_agreement:
            return f"agrees with PyTorch on the likeliest token at {parity.top1_agreement:.1%} of all, verify.minGreedyAgreement is {asked.min_greedy_agreement:g}"
        return None
