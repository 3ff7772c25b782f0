"""Checkpoints on their way to storage, beside training: one at a time, by a thread; who comes with the next one waits."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from olivine_api.status import CheckpointStatus
from olivine_trainer.reporting.logs import warn
from olivine_trainer.world.world import World


@dataclass
class Uploads:
    """Rank 0's; the others have one that never uploads.

    A checkpoint is told only once its manifest is written. What goes wrong in the thread is raised by the next call, whichever it is.
    """

    world: World
    newest: CheckpointStatus | None = None
    """The newest that is whole."""
    _thread: threading.Thread | None = field(default=None, init=False)
    _error: BaseException | None = field(default=None, init=False)

    def begin(self, upload: Callable[[], CheckpointStatus]) -> None:
        """Upload beside what follows; nothing else may be on its way (`wait`)."""

        def work() -> None:
            try:
                with self.world.held():  # a lost peer does not cut it short
                    self.newest = upload()
            except BaseException as error:  # noqa: BLE001  (raised where it can be understood: in the main thread)
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong, without waiting."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until nothing is on its way; raise what went wrong."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Before the process ends for another reason: what is on its way may arrive, and what goes wrong changes nothing any more."""
        start = time.monotonic()
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001  (the reason to end is on its way already)
            warn(f"the newest checkpoint is not whole: {error}", seconds=round(time.monotonic() - start, 2))
