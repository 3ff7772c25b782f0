"""PID 1 of a trainer pod as a real process, with a termination log of the test's own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from olivine_api.status import TerminationMessage

# A termination log of the test's own: /dev/termination-log is the pod's.
_MAIN = """
import sys
from pathlib import Path
from olivine_trainer.cli.manifest import Surroundings, read_manifest, read_mounted_overrides, read_mounted_world
from olivine_trainer.cli.supervisor import supervise
job = read_manifest(Path(sys.argv[1]), namespace=None, name=None, uid="u1")
mounted = Path(sys.argv[1]).parent
surroundings = Surroundings(lambda: read_mounted_world(mounted), lambda: read_mounted_overrides(mounted))
sys.exit(supervise(job, surroundings, Path(sys.argv[2])))
"""


class Trainer:
    """PID 1 of a pod as a process of its own; world.json and overrides.json in its folder are read as in a pod."""

    def __init__(self, tmp_path: Path, job: Any, **environ: str) -> None:
        tmp_path.mkdir(parents=True, exist_ok=True)
        self.log = tmp_path / "log"
        self.termination = tmp_path / "termination-log"
        self.termination.touch()
        self.manifest = tmp_path / "job.yaml"
        self.manifest.write_text(
            json.dumps(
                {
                    "apiVersion": "olivine.dev/v1alpha1",
                    "kind": "FineTuneJob",
                    "metadata": {"name": "tone", "namespace": "team"},
                    "spec": job.spec.to_json_dict(),
                }
            )
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(self.manifest), str(self.termination)],
                stderr=log,
                stdout=log,
                env={**os.environ, "OLIVINE_CPU_LIMIT": "1", "TMPDIR": str(tmp_path), **environ},
            )

    def wait_for(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def workers(self, count: int = 1) -> list[int]:
        """The pids of its children, in the order of ranks."""
        deadline = time.monotonic() + 20
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while len(found := children.read_text().split()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return sorted(int(pid) for pid in found)

    def end(self, seconds: float = 60) -> tuple[int, TerminationMessage]:
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        return code, TerminationMessage.model_validate_json(self.termination.read_bytes())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]
