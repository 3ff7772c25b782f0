"""Where the settings come from."""

import json
import os
from pathlib import Path

from pydantic import ValidationError

from olivine_operator.plan.settings import OperatorSettings

ENV_SETTINGS = "OLIVINE_SETTINGS"


class ConfigurationError(Exception):
    """The settings cannot be read; the message says what to change."""


def load_settings() -> OperatorSettings:
    """The settings from the JSON file that OLIVINE_SETTINGS names; the chart writes it."""
    path = os.environ.get(ENV_SETTINGS)
    if not path:
        raise ConfigurationError(f"{ENV_SETTINGS} must name the settings file")
    try:
        return OperatorSettings.model_validate(json.loads(Path(path).read_text()))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        findings = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigurationError(f"{path}: {findings}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
