"""Each row of the table in real pods: the job is brought to the moment, the fault is played, and what must hold is held.

All rows that are selected are queued at once and share the machine; one that harms everybody waits until the others are over.
The drawn steps come from a seed, which a failure shows: OLIVINE_FAULT_SEED=<seed> plays the same ones again.
"""

import json
import os
import random
import secrets
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from olivine_api.status import FineTuneJobStatus, Phase
from tests.faults.scene import NAMESPACE, Scene
from tests.faults.table import CALM_EVENTS, ROWS, Lost, Result, Row
from tests.support.cluster import ROOT, Cluster
from tests.support.trainings import CHECKPOINT_STEPS, TOTAL_STEPS, put_tiny_model, short_training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

# Each takes some 700 MiB; more of them than twice the cores only wait for one another.
_PODS_AT_ONCE = 4
_ENDED_WITHIN = 600


@dataclass(frozen=True)
class Played:
    """A row's job after its end."""

    scene: Scene
    status: FineTuneJobStatus


@dataclass
class Stage:
    """Plays rows beside one another, as many as the machine has room for."""

    cluster: Cluster
    seed: int
    calm: dict[int, Future[Played]] = field(default_factory=dict[int, "Future[Played]"])
    """By number of pods."""
    rows: dict[str, Future[Played]] = field(default_factory=dict[str, "Future[Played]"])
    _free: int = _PODS_AT_ONCE
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def start(self, pool: ThreadPoolExecutor, selected: list[Row]) -> None:
        """Queue the calm runs, then the rows; those that harm everybody go last."""
        for pods in sorted({row.pods for row in selected}):
            calm = Row(id=f"calm-{pods}", fault="", moment="", play=lambda _: None, pods=pods)
            self.calm[pods] = pool.submit(self._play, calm)
        for row in sorted(selected, key=lambda row: row.alone):
            self.rows[row.id] = pool.submit(self._play, row)

    def _play(self, row: Row) -> Played:
        with self._room(_PODS_AT_ONCE if row.alone else row.pods):
            scene = Scene(self.cluster, row.id, random.Random(f"{self.seed}-{row.id}"), pods=row.pods)
            self.cluster.apply(short_training(row.id, NAMESPACE, count=row.pods, **row.spec))
            try:
                row.play(scene)
            finally:
                if scene.held is not None:
                    scene.held.release()
            return Played(scene, self.cluster.wait_ended(row.id, _ENDED_WITHIN))

    @contextmanager
    def _room(self, pods: int) -> Generator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pods)
            self._free -= pods
        try:
            yield
        finally:
            with self._changed:
                self._free += pods
                self._changed.notify_all()


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Every selected row, queued."""
    subprocess.run([sys.executable, "-m", "devcluster", "grant", NAMESPACE], cwd=ROOT, check=True)
    put_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
    wanted = {row.id for item in request.session.items if (row := _row_of(item)) is not None}
    seed = int(os.environ.get("OLIVINE_FAULT_SEED") or secrets.randbelow(1_000_000))
    stage = Stage(Cluster(NAMESPACE), seed)
    pool = ThreadPoolExecutor(len(ROWS) + 2)
    stage.start(pool, [row for row in ROWS if row.id in wanted])
    yield stage
    pool.shutdown(wait=True, cancel_futures=True)
    stage.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true")


def _row_of(item: pytest.Item) -> Row | None:
    row = item.callspec.params.get("row") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    return row if isinstance(row, Row) else None


def _parameters() -> list[object]:
    return [pytest.param(row, id=row.id, marks=() if row.core else (pytest.mark.full,)) for row in ROWS]


@pytest.mark.parametrize("row", _parameters())
def test_after_the_fault_the_job_ends_as_the_table_says(stage: Stage, row: Row) -> None:
    print(f"OLIVINE_FAULT_SEED={stage.seed}")
    calm = stage.calm[row.pods].result()
    assert calm.status.phase is Phase.SUCCEEDED, calm.status.last_failure
    played = stage.rows[row.id].result()
    scene, status = played.scene, played.status
    print(f"{row.id}: {scene.notes}, lastFailure {status.last_failure}")

    assert (status.phase, _reason(status)) == _END[row.result], status.conditions
    assert row.restarts[0] <= status.restarts <= row.restarts[1]
    assert row.attempt[0] <= status.attempt <= row.attempt[1]
    assert (status.last_failure.reason if status.last_failure is not None else "") in row.failure, status.last_failure
    _check_lost_steps(row, scene, status)
    _check_result(row, scene, status, calm.status)
    events = [f"{event['reason']}: {event['message']}" for event in scene.cluster.events(row.id)]
    assert len(events) <= row.events, events
    assert len(json.dumps(scene.cluster.get("ftj", row.id))) < 64 * 1024
    scene.wait_no_pod_runs()


_END = {
    Result.SAME: (Phase.SUCCEEDED, "Completed"),
    Result.HALVED: (Phase.SUCCEEDED, "Completed"),
    Result.CANCELLED: (Phase.FAILED, "Cancelled"),
}


def _reason(status: FineTuneJobStatus) -> str:
    """Why the job is over: the reason of Complete or Failed."""
    return next((c.reason for c in status.conditions if c.type in ("Complete", "Failed") and c.status == "True"), "")


def _check_lost_steps(row: Row, scene: Scene, status: FineTuneJobStatus) -> None:
    if row.lost is Lost.NONE:
        assert status.lost_steps == 0
        return
    restored = scene.saved if scene.restored is None else scene.restored
    # A killed pod's last steps may not have been noted yet; what was saved, and could not be used, was.
    assert scene.saved - restored <= status.lost_steps <= scene.step - restored, scene.notes


def _check_result(row: Row, scene: Scene, status: FineTuneJobStatus, calm: FineTuneJobStatus) -> None:
    if row.result is Result.CANCELLED:
        assert not scene.published()
        assert not status.artifacts
        whole = scene.whole_checkpoints()
        assert max(whole, default=0) >= scene.saved
        assert status.checkpoint is None or status.checkpoint.step in whole
        return
    assert status.progress is not None
    assert status.progress.step == TOTAL_STEPS
    assert status.resolved is not None
    assert calm.resolved is not None
    assert status.resolved.effective_batch_size == calm.resolved.effective_batch_size
    if row.result is Result.SAME:
        assert [a.digest for a in status.artifacts] == [a.digest for a in calm.artifacts]
        assert status.metrics == calm.metrics
        assert status.baseline == calm.baseline


@pytest.mark.parametrize("pods", [1, pytest.param(2, marks=pytest.mark.full)])
def test_the_calm_run_has_no_incident_and_few_events(stage: Stage, pods: int) -> None:
    if pods not in stage.calm:
        pytest.skip(f"no row with {pods} pods is selected")
    status = stage.calm[pods].result().status
    assert (status.phase, status.restarts, status.attempt, status.lost_steps) == (Phase.SUCCEEDED, 0, 1, 0)
    assert len(stage.cluster.events(f"calm-{pods}")) <= CALM_EVENTS
    assert TOTAL_STEPS % CHECKPOINT_STEPS == 0, "the last step is saved by the rule, too"
