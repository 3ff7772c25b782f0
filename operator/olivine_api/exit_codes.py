"""Exit codes of a trainer pod's PID 1, and what each means for the job."""

from enum import IntEnum, StrEnum


class Category(StrEnum):
    """Who can mend a failure: the user by changing something, or the platform by trying again."""

    USER = "User"
    INFRASTRUCTURE = "Infrastructure"


class ExitCode(IntEnum):
    """The trainer's exit codes; anything else is an infrastructure failure of unknown cause."""

    DONE = 0
    CONFIGURATION = 10
    DATA = 11
    MODEL = 12
    GATE_UNMET = 13
    OUT_OF_MEMORY = 20
    NON_FINITE_LOSS = 21
    STORAGE = 30
    PEER_LOST = 31
    INTERRUPTED = 40


# A failure with one of these ends the job at once: the same pod would fail the same way again.
USER_EXIT_CODES = (
    ExitCode.CONFIGURATION,
    ExitCode.DATA,
    ExitCode.MODEL,
    ExitCode.GATE_UNMET,
    ExitCode.NON_FINITE_LOSS,
)


def category_of(code: int) -> Category:
    """The category of a non-zero exit code; unknown codes count as infrastructure."""
    return Category.USER if code in tuple(USER_EXIT_CODES) else Category.INFRASTRUCTURE
