"""Structured logs: JSON lines in pods, readable lines on a terminal; every line carries the job, the attempt and the step."""

import json
import logging
import math
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from olivine_api.status import JobIdentity

LOGGER: Final = logging.getLogger("olivine")


class LogContext(logging.Filter):
    """What every line carries; the loop moves `attempt` and `step`."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, Any] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the context onto the record."""
        record.context = dict(self.fields)
        return True


CONTEXT: Final = LogContext()


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "context", {}),
            **sayable(getattr(record, "values", {})),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = " ".join(f"{name}={_short(value)}" for name, value in getattr(record, "values", {}).items())
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        clock = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        text = f"{clock} {mark}{record.getMessage()}" + (f"  {values}" if values else "")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sayable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, null for NaN and infinities: JSON cannot say them, and who reads the line would choke on it."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}


def set_up_logging(identity: JobIdentity | None) -> None:
    """Log to stderr; libraries speak from warnings upward."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_HumanFormatter() if sys.stderr.isatty() else _JsonFormatter())
    handler.addFilter(CONTEXT)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    if identity is not None:
        CONTEXT.fields |= {"namespace": identity.namespace, "name": identity.name, "uid": identity.uid}
    logging.captureWarnings(capture=True)
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)


def log(message: str, **values: Any) -> None:
    """One line with values of its own."""
    LOGGER.info(message, extra={"values": values})


def warn(message: str, **values: Any) -> None:
    """One line for what the user should look at."""
    LOGGER.warning(message, extra={"values": values})


def fail(message: str, **values: Any) -> None:
    """One line for why the run ends."""
    LOGGER.error(message, extra={"values": values})
