"""Metrics and events of an attempt as JSON lines, in parts: an object store appends to nothing."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from olivine_trainer.reporting.logs import sayable


class JsonLines:
    """Lines that gather here until `flush` writes them as the next part, `<name>-000001.jsonl` and so on.

    One thread may add while another flushes.
    """

    def __init__(self, name: str, write: Callable[[str, bytes], None]) -> None:
        self._name = name
        self._write = write
        self._part = 0
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def add(self, **values: Any) -> None:
        """One line; the time is added. NaN and infinities, which JSON cannot say, are null."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **sayable(values)})
        with self._lock:
            self._lines.append(line)

    def flush(self) -> None:
        """Write what has gathered, if anything has; what cannot be written stays for the next time."""
        with self._lock:
            lines = list(self._lines)
        if not lines:
            return
        self._part += 1
        self._write(f"{self._name}-{self._part:06d}.jsonl", ("\n".join(lines) + "\n").encode())
        with self._lock:
            del self._lines[: len(lines)]
