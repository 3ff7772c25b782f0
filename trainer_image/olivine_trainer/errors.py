"""Why a run ends: one class for each exit code, each with a stable reason and a sentence that says what to write instead."""

from collections.abc import Sequence
from typing import ClassVar

from olivine_api.exit_codes import Category, ExitCode, category_of
from olivine_api.reasons import Reason

_SHOWN_ROWS = 16


class TrainerError(Exception):
    """A run's end that is understood: it is logged as one line, without a traceback.

    `reason` is what conditions and Events show; `message` names the field, its value and what to write instead.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, reason: Reason, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.step = step

    @property
    def category(self) -> Category:
        """Who can mend it; derived from the exit code alone."""
        return category_of(self.exit_code)


class ConfigurationError(TrainerError):
    """The specification asks for something that cannot be."""

    exit_code = ExitCode.CONFIGURATION


class DataError(TrainerError):
    """The rows, or the template over them, are at fault."""

    exit_code = ExitCode.DATA


class ModelError(TrainerError):
    """The base model is at fault."""

    exit_code = ExitCode.MODEL


def _rows(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN_ROWS])
    more = f" and {len(numbers) - _SHOWN_ROWS} more" if len(numbers) > _SHOWN_ROWS else ""
    return f"{'row' if len(numbers) == 1 else 'rows'} {shown}{more}"


class NonFiniteLossError(TrainerError):
    """The loss or its gradient is no number any more."""

    exit_code = ExitCode.NON_FINITE_LOSS

    def __init__(self, step: int, what: str, learning_rate: float, rows: Sequence[int] = ()) -> None:
        """`rows`: numbers of the rows of data.train with which it happened."""
        with_rows = f", with {_rows(rows)} of data.train" if rows else ""
        super().__init__(
            Reason.NON_FINITE_LOSS,
            f"{what} of step {step} is not finite{with_rows}: lower training.learningRate (it is {learning_rate:g}),"
            " add training.warmupSteps, set training.precision to fp32, or look whether something is wrong with these rows",
            step=step,
        )
        self.rows = tuple(rows)


class GateUnmetError(TrainerError):
    """The tuned model does not reach what evaluation.gates asks for: it is kept, not published."""

    exit_code = ExitCode.GATE_UNMET

    def __init__(self, unmet: Sequence[str], artifact: str | None, *, step: int | None = None) -> None:
        kept = f"; the artifact is kept at {artifact}, not published" if artifact else ""
        super().__init__(
            Reason.GATE_UNMET,
            f"evaluation.gates: {'; '.join(unmet)}{kept}. Train longer or on more rows, or lower the gate, under a new name",
            step=step,
        )


class OutOfMemoryError(TrainerError):
    """Memory ran out, on the device or on the host."""

    exit_code = ExitCode.OUT_OF_MEMORY

    def __init__(self, detail: str, *, step: int | None = None, advice: str | None = None) -> None:
        smaller = "lower training.batchSize and raise training.gradientAccumulationSteps by the same factor"
        advice = advice or f"{smaller}, lower data.maxLength, or raise pods.resources.limits.memory"
        super().__init__(Reason.OUT_OF_MEMORY, f"{detail}; {advice}", step=step)


class StorageUnavailableError(TrainerError):
    """A store did not answer, in spite of retries."""

    exit_code = ExitCode.STORAGE

    def __init__(self, message: str) -> None:
        super().__init__(Reason.STORAGE_UNAVAILABLE, message)


class SupersededError(TrainerError):
    """A newer attempt owns the run: this one writes nothing more."""

    exit_code = ExitCode.STORAGE

    def __init__(self, message: str) -> None:
        super().__init__(Reason.SUPERSEDED, message)


class PeerLostError(TrainerError):
    """Another rank of this attempt is gone: nobody can go on without it."""

    exit_code = ExitCode.PEER_LOST

    def __init__(self, message: str) -> None:
        super().__init__(Reason.PEER_LOST, message)


class InterruptedRunError(TrainerError):
    """The platform asked the pod to go (SIGTERM)."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(Reason.INTERRUPTED, message, step=step)
