"""How a classification's answers are got: the labels that rows may have, as tokens behind a prompt."""

import torch

from olivine_api.finetunejob import FineTuneJobSpec, Task
from olivine_api.reasons import Reason
from olivine_trainer.data.prepare import LoadedRows
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.evaluation.heads import HeadScorer
from olivine_trainer.evaluation.labels import LabelScorer, make_scorer
from olivine_trainer.loop.engine import Engine
from olivine_trainer.modeling.loading import Tokenizer


def label_scorer(
    spec: FineTuneJobSpec, rows: LoadedRows, engine: Engine, tokenizer: Tokenizer, *, longest: int, device: torch.device
) -> LabelScorer | HeadScorer | None:
    """For task Classification; None for the others."""
    if spec.task is not Task.CLASSIFICATION:
        return None
    texts = label_texts(rows)
    if has_head(spec):
        return HeadScorer(engine.causal, texts, pad_id=tokenizer.pad_id, device=device)
    ids = [[*tokenizer.backend.encode(text, add_special_tokens=False), tokenizer.eos_id] for text in texts]
    return make_scorer(
        engine.causal, texts, ids, split_head=engine.loss.split_head, pad_id=tokenizer.pad_id, device=device, longest=longest
    )


def label_texts(rows: LoadedRows) -> tuple[str, ...]:
    """The labels as answers, in their order: data.labels', else every completion of the training rows, sorted.

    Raises ConfigurationError where only data.labels.names could tell.
    """
    if rows.labels is not None:
        return rows.labels.completions
    completion = rows.template.completion
    if completion is None or not rows.split.train:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            "task Classification reads its rows while training (data.streaming), so the labels are not known: write data.labels with field and names",
        )
    return tuple(sorted({completion.render(row.fields) for row in rows.split.train}))


def has_head(spec: FineTuneJobSpec) -> bool:
    """Whether the labels are outputs of a head, and not text."""
    return spec.classification is not None and spec.classification.head == "Sequence"
