"""FineTuneJob: what a user writes. Field docstrings become the CRD's descriptions and the API reference."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule
from olivine_api.data import Data, LossOn, OnOverflow, Template
from olivine_api.evaluation import Evaluation, MetricName
from olivine_api.methods import Lora, Method, MethodType
from olivine_api.outputs import OUTPUT_RULES, OnnxOutput, Outputs
from olivine_api.parameters import Plugin
from olivine_api.pods import EnvVar, Pods
from olivine_api.search import Search
from olivine_api.sources import DataSource, LocalObjectReference, ModelSource, Source, Storage, Uri
from olivine_api.training import EarlyStopping, Optimizer, Precision, Scheduler, Training
from olivine_api.unserved import UNSERVED_FINETUNEJOB

__all__ = [
    "MUTABLE_FIELDS",
    "NAME_LIMIT",
    "NAME_PATTERN",
    "SUSPENDED_MUTABLE_PODS",
    "Data",
    "DataSource",
    "EarlyStopping",
    "EnvVar",
    "Evaluation",
    "FineTuneJobSpec",
    "LocalObjectReference",
    "Lora",
    "LossOn",
    "Method",
    "MethodType",
    "MetricName",
    "ModelSource",
    "OnOverflow",
    "OnnxOutput",
    "Optimizer",
    "Outputs",
    "Pods",
    "Precision",
    "Retries",
    "Scheduler",
    "Source",
    "Storage",
    "Task",
    "Template",
    "Training",
    "own_classes",
    "parse_spec",
]

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_LIMIT = 40  # room for the child's suffix and the pod's index in a 63-character label


class Task(StrEnum):
    """What the model is tuned for; decides the default metrics."""

    INSTRUCTION = "Instruction"
    CLASSIFICATION = "Classification"
    GENERATION = "Generation"
    EXTRACTION = "Extraction"
    SUMMARIZATION = "Summarization"


class Classification(ApiModel):
    """How a class is told."""

    head: Literal["Generative", "Sequence"] = "Generative"
    """Generative: the label as text; Sequence: a head over the last token, with an output for each of data.labels."""


class Checkpoint(ApiModel):
    """When state is saved for an exact resume, and what is kept."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] = 50
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """The newest so many are kept while training."""
    keep_after_success: Annotated[int, Field(ge=0, le=1000)] = 0


class Mlflow(ApiModel):
    """An MLflow server, or Azure ML."""

    uri: Uri
    experiment: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None
    secret_ref: LocalObjectReference | None = None
    """A Secret with MLFLOW_TRACKING_TOKEN."""


class Tracking(ApiModel):
    """Where curves are written beside status."""

    tensorboard: bool = True
    """TensorBoard event files under attempts/<attempt>/tensorboard/."""
    mlflow: Mlflow | None = None


class Retries(ApiModel):
    """How many incidents are survived."""

    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Incidents within the window; one more fails the job. An evicted or drained pod costs none."""
    window_seconds: Annotated[int, Field(ge=1, le=31_536_000)] = 3600


_BUILT_IN = "[" + ", ".join(f"'{name}'" for name in MetricName) + "]"
_MEASURED_ON_BENCHMARKS = "[" + ", ".join(f"'{name}'" for name in ("eval_loss", *MetricName)) + "]"
_OWN_LOSS = "(has(self.training.loss) && has(self.training.loss.configMap))"


def _own_loss(spec: "FineTuneJobSpec") -> bool:
    return spec.training.loss is not None and spec.training.loss.config_map is not None


_HAS_HEAD = "has(self.classification) && self.classification.head == 'Sequence'"
_HAS_VALIDATION = "has(self.data.validation) || has(self.data.validationFraction)"


def _has_validation(spec: "FineTuneJobSpec") -> bool:
    return spec.data.validation is not None or spec.data.validation_fraction is not None


def _stops_by_test_rows(spec: "FineTuneJobSpec") -> bool:
    stopping = spec.training.early_stopping
    if stopping is None or re.search(r"^test(_|[A-Z])", stopping.metric) is None:
        return False
    return all(metric.name != stopping.metric for metric in spec.evaluation.metrics or ())


class FineTuneJobSpec(ApiModel):
    """A fine-tuning run."""

    rules = (
        Rule(
            cel="self.task != 'Classification' || has(self.data.template.prompt)",
            holds=lambda s: s.task is not Task.CLASSIFICATION or s.data.template.prompt is not None,
            message="task Classification needs data.template.prompt and data.template.completion: the completion is the label",
        ),
        Rule(
            cel="!has(self.classification) || self.task == 'Classification'",
            holds=lambda s: s.classification is None or s.task is Task.CLASSIFICATION,
            message="classification is for task Classification: leave it out, or change the task",
            field_path=".classification",
        ),
        Rule(
            cel=f"!({_HAS_HEAD}) || has(self.data.labels) && self.data.lossOn == 'Completion'",
            holds=lambda s: (
                s.classification is None
                or s.classification.head != "Sequence"
                or (s.data.labels is not None and s.data.loss_on is LossOn.COMPLETION)
            ),
            message="classification.head Sequence needs data.labels with the field of the label, and data.lossOn Completion:"
            " the head has an output for each label, and learns the label alone",
            field_path=".data",
        ),
        Rule(
            cel=f"!({_HAS_HEAD}) || !has(self.evaluation.metrics)"
            " || self.evaluation.metrics.all(m, !(m.name in ['exact_match', 'bleu', 'rouge']))",
            holds=lambda s: (
                s.classification is None
                or s.classification.head != "Sequence"
                or all(m.name not in ("exact_match", "bleu", "rouge") for m in s.evaluation.metrics or ())
            ),
            message="evaluation.metrics exact_match, bleu and rouge judge generated text, and a classification head generates none:"
            " write accuracy, f1, macro_f1 or micro_f1",
            field_path=".evaluation.metrics",
        ),
        Rule(
            cel="!has(self.data.labels) || self.task == 'Classification'",
            holds=lambda s: s.data.labels is None or s.task is Task.CLASSIFICATION,
            message="data.labels is for task Classification: leave it out, or change the task",
            field_path=".data.labels",
        ),
        Rule(
            cel="has(self.data.extraction) == (self.task == 'Extraction')",
            holds=lambda s: (s.data.extraction is not None) == (s.task is Task.EXTRACTION),
            message="data.extraction and task Extraction go together: write both or neither",
            field_path=".data",
        ),
        Rule(
            cel="!has(self.evaluation.metrics) || has(self.data.template.prompt) || has(self.data.template.messages)"
            " || self.evaluation.metrics.all(m, m.name == 'perplexity')",
            holds=lambda s: (
                s.data.template.prompt is not None
                or s.data.template.messages is not None
                or all(m.name == "perplexity" for m in s.evaluation.metrics or ())
            ),
            message="evaluation.metrics other than perplexity need data.template.prompt with completion, or messages: they compare answers",
        ),
        Rule(
            cel="self.task != 'Extraction' || has(self.data.template.prompt)",
            holds=lambda s: s.task is not Task.EXTRACTION or s.data.template.prompt is not None,
            message="task Extraction needs data.template.prompt with completion: the completion is the spans field",
        ),
        Rule(
            cel="!has(self.evaluation.metrics) || self.evaluation.metrics.all(m,"
            " self.task == 'Extraction' ? !(m.name in ['f1', 'macro_f1', 'micro_f1']) : m.name != 'seqeval')",
            holds=lambda s: all(
                m.name not in ("f1", "macro_f1", "micro_f1") if s.task is Task.EXTRACTION else m.name != "seqeval"
                for m in s.evaluation.metrics or ()
            ),
            message="evaluation.metrics f1, macro_f1 and micro_f1 are over whole answers, seqeval is over entities:"
            " write seqeval for task Extraction, and only there",
        ),
        Rule(
            cel=f"!has(self.evaluation.metrics) || self.evaluation.metrics.all(m, !has(m.configMap) || !(m.name in {_BUILT_IN}))",
            holds=lambda s: all(m.config_map is None or m.name not in tuple(MetricName) for m in s.evaluation.metrics or ()),
            message="evaluation.metrics has a class of your own under the name of a built-in metric: give it another name",
        ),
        Rule(
            holds=lambda s: all(m.config_map is not None or not m.parameters for m in s.evaluation.metrics or ()),
            message="evaluation.metrics[].parameters are those of a class of your own: a built-in metric takes none, leave them out",
        ),
        Rule(
            cel=f"!has(self.evaluation.benchmarks) || self.evaluation.benchmarks.all(b, b.metric in {_MEASURED_ON_BENCHMARKS}"
            " || has(self.evaluation.metrics) && self.evaluation.metrics.exists(m, m.name == b.metric))",
            holds=lambda s: all(
                b.metric in ("eval_loss", *MetricName) or any(m.name == b.metric for m in s.evaluation.metrics or ())
                for b in s.evaluation.benchmarks or ()
            ),
            message="the metric of evaluation.benchmarks must be eval_loss, a built-in metric, or the name of one of evaluation.metrics",
        ),
        Rule(
            cel="!has(self.evaluation.benchmarks) || has(self.data.template.prompt) || has(self.data.template.messages)"
            " || self.evaluation.benchmarks.all(b, b.metric in ['eval_loss', 'perplexity'])",
            holds=lambda s: (
                s.data.template.prompt is not None
                or s.data.template.messages is not None
                or all(b.metric in ("eval_loss", "perplexity") for b in s.evaluation.benchmarks or ())
            ),
            message="evaluation.benchmarks with a metric other than eval_loss and perplexity need data.template.prompt with completion,"
            " or messages: they compare answers",
        ),
        Rule(
            cel="self.task != 'Summarization' || has(self.data.template.prompt) || has(self.data.template.messages)",
            holds=lambda s: (
                s.task is not Task.SUMMARIZATION or s.data.template.prompt is not None or s.data.template.messages is not None
            ),
            message="task Summarization needs data.template.prompt with completion (the summary), or messages",
        ),
        Rule(
            cel=f"!has(self.evaluation.metrics) || self.evaluation.metrics.all(m, has(m.configMap) || m.name in {_BUILT_IN})",
            holds=lambda s: all(m.config_map is not None or m.name in tuple(MetricName) for m in s.evaluation.metrics or ()),
            message=f"evaluation.metrics knows {', '.join(MetricName)}: write one of them, or a class of your own with configMap, key and class",
        ),
        Rule(
            cel=f"!has(self.data.template.pair) || {_OWN_LOSS}",
            holds=lambda s: s.data.template.pair is None or _own_loss(s),
            message="data.template.pair needs a loss over pairs: give a class of your own in training.loss by configMap, key and class",
        ),
        Rule(
            cel=f"!{_OWN_LOSS} || !has(self.evaluation.metrics) || !self.evaluation.metrics.exists(m, m.name == 'perplexity')",
            holds=lambda s: not _own_loss(s) or all(m.name != "perplexity" for m in s.evaluation.metrics or ()),
            message="metric perplexity needs a built-in loss: eval_loss is that of your own class, no likelihood; leave the metric out",
        ),
        Rule(
            cel=f"!has(self.evaluation.everySteps) || {_HAS_VALIDATION}",
            holds=lambda s: s.evaluation.every_steps is None or _has_validation(s),
            message="evaluation.everySteps needs data.validation or data.validationFraction: there are no rows to evaluate on",
        ),
        Rule(
            cel=f"!has(self.evaluation.metrics) || {_HAS_VALIDATION} || has(self.data.test)",
            holds=lambda s: s.evaluation.metrics is None or _has_validation(s) or s.data.test is not None,
            message="evaluation.metrics needs data.validation, data.validationFraction or data.test: there are no rows to measure on",
        ),
        Rule(
            cel="!has(self.training.earlyStopping) || has(self.evaluation.everySteps)",
            holds=lambda s: s.training.early_stopping is None or s.evaluation.every_steps is not None,
            message="training.earlyStopping needs evaluation.everySteps: it follows the evaluations",
        ),
        Rule(
            cel="!has(self.training.earlyStopping) || !self.training.earlyStopping.metric.matches('^test(_|[A-Z])') ||"
            " (has(self.evaluation.metrics) && self.evaluation.metrics.exists(m, m.name == self.training.earlyStopping.metric))",
            holds=lambda s: not _stops_by_test_rows(s),
            message="training.earlyStopping.metric must be of the validation rows, not of data.test: training that ends by it has seen"
            " them; write eval_loss or a name of evaluation.metrics, and put the test metric into evaluation.gates",
            field_path=".training.earlyStopping",
        ),
        Rule(
            cel="!(has(self.data.packing) && self.data.packing && has(self.training.loss) && has(self.training.loss.configMap))",
            holds=lambda s: not (s.data.packing and s.training.loss is not None and s.training.loss.config_map is not None),
            message="data.packing is not for a loss of your own, which sees whole rows: leave data.packing out, or write a built-in loss",
            field_path=".data.packing",
        ),
        *OUTPUT_RULES,
        *UNSERVED_FINETUNEJOB,
        Rule(cel="!oldSelf.cancel || self.cancel", message="cancel is final: use a new name, or kubectl replace --force"),
        # The spec may change until the child exists; the rule over status is at the root of the resource.
    )

    task: Task
    model: ModelSource
    data: Data
    classification: Classification | None = None
    method: Method
    training: Training
    evaluation: Evaluation = Evaluation()
    storage: Storage
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    search: Search | None = None
    outputs: Outputs | None = None
    """Default: the adapter."""
    reuse: Literal["Never", "Adopt"] = "Never"
    """Adopt: take over the finished artifact of the same specification, data and base instead of training again."""
    pods: Pods = Pods()
    suspend: bool = False
    """Pause: the pods save a checkpoint and go; false resumes from there."""
    cancel: bool = False
    """End for good, suspended or not; checkpoints stay."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """Seconds that pods may run, summed over attempts and suspensions; then the job fails."""
    queue_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """Seconds that the job may wait for its first pod to run; then it fails. Time while suspended does not count."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = None
    """Delete the pods and the Job so long after the end; the FineTuneJob itself stays."""
    retries: Retries = Retries()


# What a user may change once the child exists; everything else is part of what was trained.
MUTABLE_FIELDS = (
    "suspend",
    "cancel",
    "retries",
    "activeDeadlineSeconds",
    "queueDeadlineSeconds",
    "ttlSecondsAfterFinished",
)
# And of pods, while the job is suspended.
SUSPENDED_MUTABLE_PODS = ("count", "resources")


def own_classes(spec: FineTuneJobSpec) -> list[tuple[str, Plugin]]:
    """The classes of one's own that a specification names, each with its field."""
    named: list[tuple[str, Plugin | None]] = [("training.loss", spec.training.loss)]
    named += [(f"evaluation.metrics[{index}]", metric) for index, metric in enumerate(spec.evaluation.metrics or ())]
    return [(field, plugin) for field, plugin in named if plugin is not None and plugin.config_map is not None]


def parse_spec(raw: dict[str, Any]) -> FineTuneJobSpec:
    """The spec of a resource or manifest. Raises pydantic.ValidationError, whose messages name the fields."""
    return FineTuneJobSpec.model_validate(raw)
