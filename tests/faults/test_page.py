"""docs/faults.md shows the table as it is tested."""

from tests.faults.table import ROWS, render
from tests.support.cluster import ROOT


def test_the_page_shows_every_row_as_it_is_tested() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    assert render() in page, f"docs/faults.md is not up to date; its table must be:\n{render()}"
    assert page.count("| `") == len(ROWS)


def test_rows_are_named_once_and_like_resources() -> None:
    ids = [row.id for row in ROWS]
    assert len(set(ids)) == len(ids)
    assert all(len(name) <= 40 and name.replace("-", "").isalnum() for name in ids)
