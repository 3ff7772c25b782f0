"""What a run can do without: told as a warning where it fails."""

from collections.abc import Generator
from contextlib import contextmanager

from olivine_trainer.errors import SupersededError, TrainerError
from olivine_trainer.reporting.logs import warn


@contextmanager
def tolerated(consequence: str) -> Generator[None]:
    """Go on after a TrainerError, with a warning that begins with `consequence`; a superseded attempt still ends at once."""
    try:
        yield
    except SupersededError:
        raise
    except TrainerError as error:
        warn(f"{consequence}: {error.message}")
