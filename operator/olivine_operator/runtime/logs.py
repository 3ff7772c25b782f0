"""Logging: one JSON object a line, with namespace, name and uid of the job it is about."""

import json
import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

from olivine_operator.plan.observed import JobView, Key

_ABOUT = ("namespace", "job", "uid")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: getattr(record, name) for name in _ABOUT if hasattr(record, name)}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _About(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": self.extra}


def about(logger: logging.Logger, subject: JobView | Key) -> logging.LoggerAdapter[logging.Logger]:
    """A logger whose lines name a FineTuneJob."""
    if isinstance(subject, JobView):
        return _About(logger, {"namespace": subject.namespace, "job": subject.name, "uid": subject.uid})
    return _About(logger, {"namespace": subject[0], "job": subject[1]})


def configure(level: str) -> None:
    """Sends every log line of the process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf tells of every event that it passes on; aiohttp of every request.
    for name in ("kopf", "aiohttp.access", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
