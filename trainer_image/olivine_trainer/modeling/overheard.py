"""What transformers logs while it loads a model: where weights cannot be converted, its exception only points to that report."""

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^\w+(?:Error|Exception): .+$", re.MULTILINE)
_POINTER = "above report"


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(_STYLE.sub("", record.getMessage()))


@contextmanager
def overheard() -> Generator[list[str]]:
    """The warnings of transformers, kept instead of shown."""
    logger = logging.getLogger("transformers")
    handlers, level = list(logger.handlers), logger.level
    collector = _Collector()
    logger.handlers = [collector]
    logger.setLevel(logging.WARNING)
    try:
        yield collector.texts
    finally:
        logger.handlers = handlers
        logger.setLevel(level)


def complaint(error: Exception, texts: list[str]) -> Exception:
    """The error, or the first one in the report that it points to."""
    report = "\n".join(texts)
    if _POINTER not in str(error) or not report:
        return error
    if (first := _EXCEPTION.search(report)) is not None:
        return RuntimeError(first.group())
    rows = [" ".join(line.split()) for line in report.splitlines() if "MISMATCH" in line]
    return RuntimeError(rows[0]) if rows else error
