"""Checkpoints on their way beside training: steps go on, order holds, errors surface, nothing is told before its manifest is written."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest

from olivine_trainer.errors import InterruptedRunError, PeerLostError, StorageUnavailableError
from olivine_trainer.loop.claim import open_run
from olivine_trainer.loop.stop import StopFlag
from olivine_trainer.reporting.board import Board
from olivine_trainer.storage.checkpoints import restore_newest
from olivine_trainer.world.peers import GRACE, Peers
from tests.unit.trainer.support import adapter_bytes, make_job, run_job, tone_rows, write_rows

PATIENCE = 60  # seconds; only a failing test waits so long


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


class Steps(Board):
    """Lets others wait for a step."""

    def __init__(self) -> None:
        super().__init__(None)
        self._moved = threading.Condition()

    def point(self, step: int, **values: Any) -> None:
        super().point(step, **values)
        with self._moved:
            self._moved.notify_all()

    def wait_for(self, step: int) -> None:
        with self._moved:
            assert self._moved.wait_for(lambda: self.snapshot.progress.step >= step, PATIENCE), f"step {step} does not come"


@pytest.fixture
def before_put(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], list[str]]:
    """Do something before each write of a checkpoint; returns the list in which the keys that were written gather."""

    def install(act: Callable[[str], None]) -> list[str]:
        real: Any = obstore.put
        written: list[str] = []

        def put(store: Any, path: str, *arguments: Any, **options: Any) -> Any:
            key = path.partition("checkpoints/")[2]
            if key:
                act(key)
            result = real(store, path, *arguments, **options)
            if key:
                written.append(key)
            return result

        monkeypatch.setattr(obstore, "put", put)
        return written

    return install


def test_steps_go_on_while_a_checkpoint_is_on_its_way(tiny_model: Path, rows: Path, tmp_path: Path, before_put: Any) -> None:
    """The upload of step 3 ends only once step 6 is done; what was saved is the moment after step 3 all the same."""
    calm = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/calm"), tmp_path / "calm-scratch")
    board, told = Steps(), list[int]()

    def slow(key: str) -> None:
        if key == "step-00000003-a0001/manifest.json":
            board.wait_for(6)
            told.append(board.snapshot.checkpoint.step if board.snapshot.checkpoint else 0)

    written = before_put(slow)
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", checkpoint__keep=9, checkpoint__keepAfterSuccess=9)
    published = run_job(job, tmp_path / "scratch", board=board)
    assert told == [0]  # not told before it is whole
    assert adapter_bytes(published) == adapter_bytes(calm)
    # One at a time: the next one's first part comes after the manifest.
    assert written.index("step-00000003-a0001/manifest.json") < min(written.index(key) for key in written if "00000006" in key)
    for newer in ("step-00000006-a0001", "step-00000008-a0001"):
        (tmp_path / "runs/team/tone/u1/checkpoints" / newer / "manifest.json").unlink()
    (tmp_path / "runs/team/tone/u1/run/published.json").unlink()
    resumed = run_job(job, tmp_path / "second")
    assert resumed.snapshot.resumed_from_step == 3
    assert adapter_bytes(resumed) == adapter_bytes(calm)


def test_how_long_training_stood_still_is_told_not_how_long_the_upload_took(
    tiny_model: Path, rows: Path, tmp_path: Path, before_put: Any
) -> None:
    board = Steps()
    before_put(lambda key: board.wait_for(5) if key.startswith("step-00000003") else None)
    run_job(make_job(tiny_model, rows, f"file://{tmp_path}/runs"), tmp_path / "scratch", board=board)
    folder = tmp_path / "runs/team/tone/u1/attempts/0001"
    lines = [json.loads(line) for path in sorted(folder.glob("events-*")) for line in path.read_text().splitlines()]
    saved = [line for line in lines if line["event"] == "CheckpointSaved"]
    assert [line["step"] for line in saved] == [3, 6, 8]
    steps = {
        line["step"]: line["time"]
        for path in sorted(folder.glob("metrics-*"))
        for line in map(json.loads, path.read_text().splitlines())
    }
    assert saved[0]["time"] > steps[4]  # the share was counted to there, the upload beside not
    assert saved[0]["share"] > 0


def test_what_goes_wrong_beside_is_raised_by_the_next_step(tiny_model: Path, rows: Path, tmp_path: Path, before_put: Any) -> None:
    board = Steps()

    def fail(key: str) -> None:
        if "manifest" in key:
            board.wait_for(4)
            raise StorageUnavailableError("no room")

    before_put(fail)
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=200)
    with pytest.raises(StorageUnavailableError, match="no room"):
        run_job(job, tmp_path / "scratch", board=board)
    assert 4 <= board.snapshot.progress.step <= 6  # at the latest where the next checkpoint is due
    assert board.snapshot.checkpoint is None
    restored = restore_newest(open_run(job, {}).run, tmp_path / "look", spec_digest=job.spec_digest)
    assert restored.status is None


def test_a_pod_that_is_asked_to_go_waits_for_what_is_on_its_way(
    tiny_model: Path, rows: Path, tmp_path: Path, before_put: Any
) -> None:
    """Asked in the middle of the upload of step 3: it arrives, then the step that was reached is saved too."""
    stop, board = StopFlag(), Steps()

    def ask(key: str) -> None:
        if key == "step-00000003-a0001/optimizer.safetensors":
            board.wait_for(4)
            stop.requested = True

    before_put(ask)
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=200)
    with pytest.raises(InterruptedRunError) as caught:
        run_job(job, tmp_path / "scratch", stop=stop, board=board)
    assert caught.value.step is not None
    assert caught.value.step >= 4
    names = sorted(path.parent.name for path in (tmp_path / "runs/team/tone/u1/checkpoints").glob("*/manifest.json"))
    assert names == ["step-00000003-a0001", f"step-{caught.value.step:08d}-a0001"]
    assert board.snapshot.checkpoint is not None
    assert board.snapshot.checkpoint.step == caught.value.step


def test_a_lost_peer_ends_the_process_only_after_what_is_on_its_way() -> None:
    """Two threads hold; the abrupt end waits for both."""
    ended, release = threading.Event(), [threading.Event(), threading.Event()]
    peers = Peers([], leads=True, end_abruptly=lambda _: ended.set())
    inside = threading.Barrier(3)

    def hold(until: threading.Event) -> None:
        with peers.held():
            inside.wait(PATIENCE)
            assert until.wait(PATIENCE)

    threads = [threading.Thread(target=hold, args=(one,)) for one in release]
    for thread in threads:
        thread.start()
    inside.wait(PATIENCE)
    peers._note("rank 1 is lost")
    release[0].set()
    assert not ended.wait(GRACE + 1)
    release[1].set()
    assert ended.wait(PATIENCE)
    with pytest.raises(PeerLostError):
        peers.check()
