"""Greedy answers in batches: left padding, key-value cache, until the stop token."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from olivine_trainer.evaluation.loss import Tick
from olivine_trainer.evaluation.sharing import answered
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.loading import Tokenizer
from olivine_trainer.world.world import World, alone

_MARGIN = 2  # tokens beyond the longest answer: a longer answer is wrong, however it goes on


def answer_limit(examples: Sequence[Example]) -> int:
    """Tokens that the longest expected answer needs, its stop token included, and a small margin."""
    return max(len(example.ids) - example.prompt_length for example in examples) + _MARGIN


def _room(causal: Any, width: int, limit: int) -> int:
    """New tokens after `width`: at most `limit`, and none beyond the positions that the model has."""
    positions = getattr(causal.config, "max_position_embeddings", None)
    return max(1, min(limit, positions - width)) if isinstance(positions, int) else limit


@contextmanager
def _plain(causal: Any, settings: GenerationConfig) -> Generator[None]:
    """Hide the model's own settings (repetition_penalty and such): generate() fills in from them what is not given."""
    kept = causal.generation_config
    causal.generation_config = settings
    try:
        yield
    finally:
        causal.generation_config = kept


@torch.no_grad()
def greedy_answers(
    causal: Any,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    limit: int,
    device: torch.device,
    tick: Tick,
    world: World | None = None,
) -> list[str]:
    """The model's answer to each prompt as text without special tokens, in the order of `examples`; all ranks get all of them."""
    causal.eval()
    return answered(
        examples,
        batch_size,
        lambda members: _batch_answers(causal, members, tokenizer, limit, device),
        tick=tick,
        world=world or alone(),
    )


def _batch_answers(causal: Any, examples: Sequence[Example], tokenizer: Tokenizer, limit: int, device: torch.device) -> list[str]:
    """Answers to one batch, whose first prompt is the longest."""
    width = examples[0].prompt_length
    ids = torch.full((len(examples), width), tokenizer.pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        prompt = torch.from_numpy(example.prompt_ids.astype("int64"))
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=_room(causal, width, limit),
        use_cache=True,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=sorted(tokenizer.stop_ids),
    )
    with _plain(causal, settings):
        made = causal.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    return [tokenizer.backend.decode(row[width:], skip_special_tokens=True) for row in made]
