"""The process's exit code, and its last words."""

import logging

import pytest

from olivine_operator import __main__ as module
from olivine_operator.handlers.resync import NotInSyncError
from olivine_operator.runtime.config import ConfigurationError
from tests.unit.operator.builders import SETTINGS


@pytest.mark.parametrize(
    ("error", "traceback"),
    {
        "a known end": (NotInSyncError("the watch of pods does not tell of 1 objects"), False),
        "a bug": (KeyError("metadata"), True),
        "a task's bug": (ExceptionGroup("unhandled errors", [KeyError("metadata")]), True),
    }.values(),
)
def test_whatever_ends_the_operator_is_one_record_and_exit_code_1(
    error: Exception, traceback: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(_: object) -> None:
        raise error

    monkeypatch.setattr(module, "configure", lambda _: None)
    monkeypatch.setattr(module, "load_settings", lambda: SETTINGS)
    monkeypatch.setattr(module, "run_operator", run)
    with caplog.at_level(logging.ERROR):
        assert module.main() == 1
    assert [record.exc_info is not None for record in caplog.records] == [traceback]


def test_settings_that_cannot_be_read_are_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ConfigurationError("no settings")

    monkeypatch.setattr(module, "configure", lambda _: None)
    monkeypatch.setattr(module, "load_settings", load)
    assert module.main() == 2
