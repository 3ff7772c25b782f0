"""Where the settings come from."""

import json
import os
import secrets
from pathlib import Path

from pydantic import ValidationError

from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.runtime.forwarding import Replica

ENV_SETTINGS = "OLIVINE_SETTINGS"
# The pod's own name and address, told by the chart; without them the process is alone on its machine.
ENV_POD_NAME, ENV_POD_IP = "OLIVINE_POD_NAME", "OLIVINE_POD_IP"


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


def this_replica(settings: OperatorSettings) -> Replica:
    """This process as the others know it: a container that starts again in the same pod is another one."""
    name = f"{os.environ.get(ENV_POD_NAME) or 'operator'}-{secrets.token_hex(4)}"
    return Replica(name=name, host=os.environ.get(ENV_POD_IP) or "127.0.0.1", port=settings.status_endpoint.port)
