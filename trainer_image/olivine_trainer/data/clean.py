"""What is taken out of the training rows before they are split: repeats, empty rows, and rows that are measured on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from olivine_api.data import Clean
from olivine_api.reasons import Reason
from olivine_trainer.data.rows import Row
from olivine_trainer.data.template import RowTemplate
from olivine_trainer.errors import DataError


@dataclass(frozen=True)
class Removed:
    """How many training rows were taken out, and why."""

    duplicates: int = 0
    empty: int = 0
    leaked: int = 0


def clean_rows(
    rows: Sequence[Row], clean: Clean | None, template: RowTemplate, measured: Iterable[tuple[str, Sequence[Row]]]
) -> tuple[list[Row], Removed]:
    """The training rows that are left; of equal ones the first. Without data.clean only those that are measured on go.

    `measured`: the rows of data.validation and data.test, by field. Raises DataError where no row is left.
    """
    left = list(rows)
    if clean is not None and clean.drop_empty:
        left = [row for row in left if not template.is_empty(row)]
        if not left:
            raise DataError(
                Reason.DATA_EMPTY,
                f"data.clean.dropEmpty leaves no training row: in all {len(rows)} rows of data.train a side of data.template is empty",
            )
    empty = len(rows) - len(left)
    duplicates = len(left)
    if clean is not None and clean.deduplicate:
        first: dict[str, Row] = {}
        for row in left:
            first.setdefault(template.identity(row), row)
        left = list(first.values())
    duplicates -= len(left)
    leaked = len(left)
    for field, others in measured:
        known = {template.identity(row) for row in others}
        left = [row for row in left if template.identity(row) not in known]
        if not left:
            raise DataError(
                Reason.DATA_EMPTY,
                f"no training row is left: all rows of data.train are in {field} too, and what is measured on must not be trained on;"
                f" name other rows in {field}, or hold some back by data.validationFraction",
            )
    return left, Removed(duplicates=duplicates, empty=empty, leaked=leaked - len(left))
