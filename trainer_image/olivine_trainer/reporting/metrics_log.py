"""Metrics and events of an attempt as JSON lines, in parts: an object store appends to nothing."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from olivine_trainer.reporting.logs import sayable


class JsonLines:
    """Lines that gather here until `flush` writes them as the next part, `<name>-000001.jsonl` and so on."""

    def __init__(self, name: str, write: Callable[[str, bytes], None]) -> None:
        self._name = name
        self._write = write
        self._part = 0
        self._lines: list[str] = []

    def add(self, **values: Any) -> None:
        """One line; the time is added. NaN and infinities, which JSON cannot say, are null."""
        self._lines.append(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **sayable(values)}))

    def flush(self) -> None:
        """Write what has gathered, if anything has."""
        if not self._lines:
            return
        self._part += 1
        self._write(f"{self._name}-{self._part:06d}.jsonl", ("\n".join(self._lines) + "\n").encode())
        self._lines.clear()
