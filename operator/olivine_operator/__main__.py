"""`python -m olivine_operator`."""

import asyncio
import logging
import sys

from olivine_operator.handlers.process import run_operator
from olivine_operator.handlers.resync import NotInSyncError
from olivine_operator.handlers.watching import KindGoneError
from olivine_operator.runtime.api import ApiError
from olivine_operator.runtime.config import ConfigurationError, load_settings
from olivine_operator.runtime.logs import configure


def main() -> int:
    """Runs the operator; returns the exit code."""
    configure("info")
    log = logging.getLogger("olivine_operator")
    try:
        settings = load_settings()
    except ConfigurationError as error:
        log.error("%s", error)
        return 2
    configure(settings.log_level)
    try:
        asyncio.run(run_operator(settings))
    except (ApiError, KindGoneError, NotInSyncError) as error:
        log.error("%s", error)
        return 1
    except Exception:
        log.exception("the operator ends")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
