"""The labels of a classification: which there are, which one a row has, and how each is written as an answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from olivine_api.finetunejob import Data
from olivine_api.reasons import Reason
from olivine_trainer.data.rows import Row
from olivine_trainer.data.template import RowTemplate, as_text
from olivine_trainer.errors import ConfigurationError, DataError

_SHOWN = 12


@dataclass(frozen=True)
class Labels:
    """The labels that data.labels tells of."""

    field: str
    names: tuple[str, ...]
    completions: tuple[str, ...]
    """What data.template.completion makes of each."""
    given: bool
    """data.labels.names has them; else they are those of the training rows."""

    def index(self, row: Row, source: str) -> int:
        """Which label a row has. Raises DataError naming row, label and the known ones."""
        label = as_text(row.fields[self.field])
        try:
            return self.names.index(label)
        except ValueError:
            where = "data.labels.names does not have" if self.given else "no training row has"
            raise DataError(
                Reason.DATA_UNREADABLE,
                f"{row.of(source)} has the label {label!r} in the field {{{self.field}}}, which {where}: known are"
                f" {_some(self.names)}; correct the row, or {'add the label there' if self.given else 'train on rows with it'}",
            ) from None


def find_labels(data: Data, template: RowTemplate, train: Iterable[str]) -> Labels | None:
    """The labels, in their order; None without data.labels. `train`: those of the training rows.

    Raises DataError where there are too few, ConfigurationError for names or a completion that cannot be.
    """
    if data.labels is None:
        return None
    field = data.labels.field
    completion = template.completion
    if completion is None or set(completion.fields) != {field}:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"data.labels.field is {field!r}, so data.template.completion must name {{{field}}} and no other field: the answer is the label",
        )
    names = data.labels.names
    if names is not None and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigurationError(Reason.INVALID_SPEC, f"data.labels.names has {twice!r} twice: write each label once")
    found = tuple(names) if names else tuple(sorted(set(train)))
    if len(found) < 2:
        raise DataError(
            Reason.DATA_UNREADABLE,
            f"there is one label only, {', '.join(found)!r} (data.labels, field {{{field}}}): a classification needs at least two",
        )
    completions = tuple(completion.render({field: name}) for name in found)
    return Labels(field=field, names=found, completions=completions, given=bool(names))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", … ({len(names)} in all)" if len(names) > _SHOWN else "")
