"""Log lines."""

import json
import logging

from olivine_operator.runtime.logs import JsonFormatter, about
from tests.unit.operator.builders import UID, job


def test_a_line_is_json_and_names_the_job() -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonFormatter().format(record))  # type: ignore[method-assign]
    logger = logging.getLogger("test-a-line")
    logger.addHandler(handler)
    about(logger, job()).warning("%s is odd", "this\nline")
    entry = json.loads(lines[0])
    assert "\n" not in lines[0]
    assert (entry["namespace"], entry["job"], entry["uid"]) == ("team-a", "tone", UID)
    assert (entry["level"], entry["message"]) == ("warning", "this\nline is odd")
