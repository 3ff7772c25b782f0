"""The rows: where they are, how they are split, and how they become text."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule
from olivine_api.parameters import Parameters
from olivine_api.sources import DataSource, FieldName

TemplateText = Annotated[str, StringConstraints(min_length=1, max_length=8192)]
Probability = Annotated[float, Field(ge=0, le=1)]


class PairTemplate(ApiModel):
    """Two texts and a label, for losses over pairs."""

    left: TemplateText
    right: TemplateText
    label: FieldName
    """The field with the pair's label."""


class Template(ApiModel):
    """How a row becomes text. {field} is replaced by the row's field; {{ and }} stand for braces."""

    rules = (
        Rule(
            cel="(has(self.text) ? 1 : 0) + (has(self.prompt) || has(self.completion) ? 1 : 0) + (has(self.messages) ? 1 : 0)"
            " + (has(self.pair) ? 1 : 0) == 1",
            holds=lambda t: (
                sum(
                    (
                        t.text is not None,
                        t.prompt is not None or t.completion is not None,
                        t.messages is not None,
                        t.pair is not None,
                    )
                )
                == 1
            ),
            message="data.template needs exactly one form: text, or prompt with completion, or messages, or pair",
        ),
        Rule(
            cel="has(self.prompt) == has(self.completion)",
            holds=lambda t: (t.prompt is None) == (t.completion is None),
            message="data.template.prompt and data.template.completion go together: write both, or use text",
        ),
        Rule(
            cel="!has(self.tools) || has(self.messages)",
            holds=lambda t: t.tools is None or t.messages is not None,
            message="data.template.tools goes with messages: it names the field with the tools of the chat",
        ),
    )

    text: TemplateText | None = None
    """The whole text, e.g. "User: {input}\\nAssistant: {output}"; every token of it is learned."""
    prompt: TemplateText | None = None
    """What the model is given."""
    completion: TemplateText | None = None
    """What the model is to answer."""
    messages: FieldName | None = None
    """The field that holds a chat: a list of {role, content}; rendered by the model's own chat template."""
    tools: FieldName | None = None
    """Beside messages: the field that holds the tools that the chat may call, a list of JSON schemas or its JSON."""
    pair: PairTemplate | None = None
    """Two texts and a label."""


class LossOn(StrEnum):
    """Which tokens are learned."""

    COMPLETION = "Completion"
    ALL = "All"


class OnOverflow(StrEnum):
    """What becomes of a row longer than maxLength."""

    FAIL = "Fail"
    DROP = "Drop"
    TRUNCATE = "Truncate"


class Labels(ApiModel):
    """The labels of a classification."""

    field: FieldName
    """The field with the row's label."""
    names: Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=1024)] | None = None
    """All labels, in their order. Default: those of the training rows, sorted."""


class Extraction(ApiModel):
    """Where the spans of an extraction stand in a row. data.template.prompt names textField, data.template.completion spansField alone, which is replaced by the spans as text."""

    format: Literal["Spans", "BIO"]
    """Spans: rows have a list of {label, start, end} (or text), or an object from label to text or {text, span}; the answer has a line `label: text` for each, or `none`. BIO: rows have tokens and as many tags, the answer has the tags."""
    text_field: FieldName
    spans_field: FieldName
    """A row without it has no spans."""


class Clean(ApiModel):
    """What is removed from the training rows before they are split; status counts it."""

    deduplicate: bool = True
    drop_empty: bool = True


class AugmentationName(StrEnum):
    """What may become of a training row's input."""

    WORD_DROPOUT = "word_dropout"
    CASE_NOISE = "case_noise"
    TEMPLATE_PARAPHRASE = "template_paraphrase"


class CaseStyle(StrEnum):
    """How case_noise writes a text."""

    LOWER = "lower"
    UPPER = "upper"
    TITLE = "title"
    SWAP = "swap"


def _augmentation_parameters_fit(one: "Augmentation") -> bool:
    known = {AugmentationName.WORD_DROPOUT: {"share"}, AugmentationName.CASE_NOISE: {"share", "style"}}.get(one.name, set())
    given = one.parameters or {}
    share, style = given.get("share", 0.1), given.get("style", "lower")
    return set(given) <= known and type(share) is float and 0 < share < 1 and style in tuple(CaseStyle)


class Augmentation(ApiModel):
    """One augmentation of training rows: of what they ask, never of the answer. Seeded, and another draw in every epoch."""

    rules = (
        Rule(
            cel="has(self.templates) == (self.name == 'template_paraphrase')",
            holds=lambda a: (a.templates is not None) == (a.name is AugmentationName.TEMPLATE_PARAPHRASE),
            message="data.augmentation: template_paraphrase needs templates, a list of prompts; the others have none",
        ),
        Rule(
            holds=_augmentation_parameters_fit,
            message="data.augmentation: parameters do not suit the name: word_dropout takes share (of words, above 0 and below 1), case_noise"
            " takes style (lower, upper, title or swap) and share (of letters to swap), template_paraphrase takes none",
        ),
    )

    name: AugmentationName
    """word_dropout leaves words out; case_noise writes letters in another case; template_paraphrase takes another prompt."""
    probability: Probability
    """The share of rows that it changes."""
    templates: Annotated[list[TemplateText], Field(min_length=1, max_length=32)] | None = None
    """Prompts like data.template.prompt, one of which is drawn in its place."""
    parameters: Parameters | None = None
    """word_dropout: share (default 0.1). case_noise: style (default: one is drawn) and share (default 0.1)."""


class Data(ApiModel):
    """The rows, how they are split, and how they become text."""

    rules = (
        Rule(
            cel="!(has(self.validation) && has(self.validationFraction))",
            holds=lambda d: d.validation is None or d.validation_fraction is None,
            message="data.validation and data.validationFraction exclude each other: name a validation file, or take a fraction of train",
        ),
        Rule(
            cel="!has(self.stratifyBy) || has(self.validationFraction)",
            holds=lambda d: d.stratify_by is None or d.validation_fraction is not None,
            message="data.stratifyBy needs data.validationFraction: it says how the fraction is drawn",
        ),
        Rule(
            cel="!self.streaming || !(has(self.validationFraction) || has(self.stratifyBy) || has(self.clean) && self.clean.deduplicate)",
            holds=lambda d: (
                not d.streaming
                or (d.validation_fraction is None and d.stratify_by is None and not (d.clean is not None and d.clean.deduplicate))
            ),
            message="data.streaming excludes validationFraction, stratifyBy and clean.deduplicate, which need all rows at once",
        ),
        Rule(
            cel="!self.streaming || self.onOverflow != 'Drop'",
            holds=lambda d: not d.streaming or d.on_overflow is not OnOverflow.DROP,
            message="data.onOverflow Drop needs all rows at once, which data.streaming excludes: write Fail or Truncate",
        ),
        Rule(
            cel="!self.streaming || !has(self.train.split) || !self.train.split.contains('[')",
            holds=lambda d: not d.streaming or "[" not in (d.train.split or ""),
            message="data.train.split with data.streaming must name whole splits: leave the slice out, or data.streaming",
        ),
        Rule(
            cel="!(has(self.packing) && self.packing && has(self.template.pair))",
            holds=lambda d: not (d.packing and d.template.pair is not None),
            message="data.packing is not for data.template.pair, whose rows are compared whole: leave data.packing out",
        ),
        Rule(
            cel="!has(self.augmentation) || size(self.augmentation) == 0 || has(self.template.prompt) || has(self.template.messages)",
            holds=lambda d: not d.augmentation or d.template.prompt is not None or d.template.messages is not None,
            message="data.augmentation needs data.template.prompt with completion, or messages: it changes the input, and a text is all answer",
        ),
        Rule(
            cel="!has(self.augmentation) || has(self.template.prompt) || !self.augmentation.exists(a, a.name == 'template_paraphrase')",
            holds=lambda d: (
                d.template.prompt is not None
                or all(a.name is not AugmentationName.TEMPLATE_PARAPHRASE for a in d.augmentation or ())
            ),
            message="data.augmentation template_paraphrase needs data.template.prompt: it puts another prompt in its place",
        ),
        Rule(
            cel="!has(self.extraction) || !has(self.augmentation) || size(self.augmentation) == 0",
            holds=lambda d: d.extraction is None or not d.augmentation,
            message="data.augmentation is not for data.extraction: its spans are places in the text, which must stay where they are",
        ),
        Rule(
            cel="!has(self.template.text) || self.lossOn == 'All'",
            holds=lambda d: d.template.text is None or d.loss_on is LossOn.ALL,
            message="data.lossOn must be All with data.template.text, which has no completion; or write prompt with completion",
        ),
    )

    train: DataSource
    validation: DataSource | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training rows that is held back; seeded; equal rows stay on one side."""
    stratify_by: FieldName | None = None
    """Draw the same share of every value of this field."""
    test: DataSource | None = None
    """Rows that are measured once, at the end."""
    streaming: bool = False
    """Read the training rows while training, from JSON lines or Parquet; for data that one pod cannot hold."""
    template: Template
    labels: Labels | None = None
    """For task Classification."""
    extraction: Extraction | None = None
    """For task Extraction."""
    loss_on: LossOn = LossOn.COMPLETION
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    """Tokens a row may have, its stop token included."""
    on_overflow: OnOverflow = OnOverflow.FAIL
    """Truncate cuts a prompt at its start and never the completion; status.resolved.data counts what happened."""
    packing: bool | None = None
    """Lay the rows of a micro-batch into common sequences, isolated from one another: the same training without padding.

    Absent: where the model keeps them apart, and the loss is built in and over tokens.
    """
    clean: Clean | None = None
    augmentation: Annotated[list[Augmentation], Field(max_length=16)] | None = None
