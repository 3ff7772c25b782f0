"""How often the workers of a pod start again in place: only the pod that was lost pays the Job controller's delay."""

from olivine_api.exit_codes import ExitCode

LIMIT = 3


class Restarts:
    """Restarts since the newest checkpoint; more than 3 end the pod."""

    def __init__(self) -> None:
        self.count = 0
        self._checkpoint = -1

    def allow(self, code: int, checkpoint: int | None) -> bool:
        """Whether to go on after an end with `code`, when `checkpoint` was the newest step saved."""
        if code != ExitCode.PEER_LOST:
            return False
        if checkpoint is not None and checkpoint > self._checkpoint:
            self._checkpoint, self.count = checkpoint, 0
        self.count += 1
        return self.count <= LIMIT
