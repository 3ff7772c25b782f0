"""What the outside learns: bounded messages, a snapshot that is always whole, POSTs that never hurt."""

import http.server
import json
import logging
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from olivine_api.exit_codes import Category
from olivine_api.names import TERMINATION_LOG_LIMIT
from olivine_api.status import (
    Artifact,
    Best,
    CheckpointStatus,
    CurvePoint,
    JobIdentity,
    Progress,
    Resolved,
    ResolvedData,
    ResolvedModel,
    Snapshot,
    Stage,
    TerminationMessage,
)
from olivine_trainer.reporting.board import Board, WorkerFiles, write_atomically
from olivine_trainer.reporting.logs import CONTEXT, LOGGER, _JsonFormatter, log
from olivine_trainer.reporting.metrics_log import JsonLines
from olivine_trainer.reporting.poster import Endpoint, Poster
from olivine_trainer.reporting.speed import Speed
from olivine_trainer.reporting.tensorboard import TensorBoard
from olivine_trainer.reporting.termination import fit_message, shorten, write_termination

IDENTITY = JobIdentity(namespace="team", name="tone", uid="u1", child="tone-123456")


def snapshot(points: int = 64, uri: str = "s3://bucket/runs/team/tone/u1") -> Snapshot:
    return Snapshot(
        attempt=3,
        pod="tone-123456-0-abcde",
        progress=Progress(stage=Stage.TRAINING, step=4711, total_steps=10_000, percent=47, last_update_time=datetime.now(UTC)),
        metrics={"trainLoss": 0.123456789, "evalLoss": 0.2, "accuracy": 0.9},
        baseline={"evalLoss": 9.1, "accuracy": 0.0},
        best=Best(step=1, metric="evalLoss", value=0.2),
        curve=[CurvePoint(step=10 * i, train_loss=i / 3, eval_loss=i / 7) for i in range(points)],
        resolved=Resolved(
            model=ResolvedModel(uri=uri, digest="d" * 64), data=ResolvedData(rows=1, validation_rows=1, digest="e" * 64)
        ),
        checkpoint=CheckpointStatus(
            uri=f"{uri}/checkpoints/step-00004711-a0003", step=4711, digest="f" * 64, saved_at=datetime.now(UTC)
        ),
        artifacts=[Artifact(kind="Adapter", uri=f"{uri}/artifacts/" + "a" * 64, digest="a" * 64, bytes=1)],
        storage_uri=uri,
    )


def test_a_usual_end_keeps_everything_but_points_of_the_curve() -> None:
    message = TerminationMessage(reason="Published", message="published", snapshot=snapshot())
    body = fit_message(message)
    assert len(body) <= TERMINATION_LOG_LIMIT
    kept = TerminationMessage.model_validate_json(body).snapshot
    assert kept is not None
    assert kept.model_copy(update={"curve": []}) == snapshot().model_copy(
        update={"curve": [], "progress": kept.progress, "checkpoint": kept.checkpoint}
    )
    assert 8 <= len(kept.curve) < 64
    assert (kept.curve[0].step, kept.curve[-1].step) == (0, 630)  # thinned, not cut


@pytest.mark.parametrize("uri", ["s3://b/" + "x" * 900, "s3://b/" + "é" * 1000, "s3://b/" + "x" * 1290])
@pytest.mark.parametrize("text", ["short", "é" * 1024], ids=["short", "long"])
def test_any_end_fits(uri: str, text: str) -> None:
    body = fit_message(
        TerminationMessage(category=Category.USER, reason="RowTooLong", message=text, step=3, snapshot=snapshot(64, uri))
    )
    assert len(body) <= TERMINATION_LOG_LIMIT
    kept = TerminationMessage.model_validate_json(body)
    assert (kept.category, kept.reason, kept.step) == (Category.USER, "RowTooLong", 3)


def test_metrics_and_artifacts_are_the_last_to_go() -> None:
    kept = TerminationMessage.model_validate_json(
        fit_message(TerminationMessage(reason="Published", message="", snapshot=snapshot(64, "s3://b/" + "x" * 900)))
    ).snapshot
    assert kept is not None
    assert kept.metrics["accuracy"] == 0.9
    assert kept.artifacts
    assert not kept.curve


def test_a_message_is_shortened_in_its_middle(tmp_path: Path) -> None:
    assert shorten("ab" * 1000, 21) == "ababababa … babababab"
    message = TerminationMessage(reason="Published", message="x")
    write_termination(message, tmp_path / "absent")  # a bare process has no termination log, and none is made
    assert not (tmp_path / "absent").exists()
    (tmp_path / "log").touch()
    write_termination(message, tmp_path / "log")
    assert json.loads((tmp_path / "log").read_text()) == {"reason": "Published", "message": "x"}


def test_the_board_is_readable_at_any_moment_and_always_json(tmp_path: Path) -> None:
    files = WorkerFiles(tmp_path, 0)
    clock = iter(range(1000))
    board = Board(files, pod="p", clock=lambda: float(next(clock)))
    board.update(metrics={"evalLoss": float("nan"), "trainLoss": 1.0})
    for step in range(200):
        board.point(step, train_loss=step)
        board.point(step, eval_loss=1.0 if step % 50 == 0 else None)
    board.offer_best(1, "evalLoss", 2.0)
    board.offer_best(2, "evalLoss", float("nan"))
    board.offer_best(3, "evalLoss", 3.0)
    board.progress(stage=Stage.TRAINING, stage_percent=3)
    seen = files.read_snapshot()
    assert seen == board.snapshot
    assert seen is not None
    assert seen.metrics == {"trainLoss": 1.0}
    assert len(seen.curve) == 64
    assert seen.best == Best(step=1, metric="evalLoss", value=2.0)
    assert len(board.curve) == 200


def test_two_threads_that_write_the_same_file_do_not_trip_over_each_other(tmp_path: Path) -> None:
    """The loop moves the snapshot while the worker is ended for a lost peer: one's rename took the other's file away."""
    path = tmp_path / "snapshot-0.json"

    def write(text: str) -> None:
        for _ in range(400):
            write_atomically(path, text)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write, text) for text in ("1" * 9000, "2" * 9000)]:
            done.result(60)
    assert path.read_text() in {"1" * 9000, "2" * 9000}
    assert list(tmp_path.iterdir()) == [path]


def test_a_change_of_stage_clears_its_percent() -> None:
    board = Board(None)
    board.progress(stage=Stage.EVALUATING, stage_percent=50)
    board.progress(stage=Stage.TRAINING)
    assert board.snapshot.progress.stage_percent is None


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[tuple[Endpoint, list[tuple[str, str | None, Snapshot]], Any]]:
    received: list[tuple[str, str | None, Snapshot]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers["Authorization"], Snapshot.model_validate_json(body)))
            self.send_response(getattr(self.server, "status", 202))
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            del format, args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (tmp_path / "token").write_text("one\n")
    yield Endpoint(f"http://127.0.0.1:{server.server_port}/", IDENTITY, tmp_path / "ca.crt", tmp_path / "token"), received, server
    server.shutdown()
    server.server_close()


def test_the_whole_snapshot_is_posted_with_the_newest_token(endpoint: Any, tmp_path: Path) -> None:
    there, received, _ = endpoint
    there.post(snapshot())
    (tmp_path / "token").write_text("two")
    there.post(snapshot())
    assert received[0][0] == "/v1/namespaces/team/finetunejobs/tone/snapshot"
    assert [token for _, token, _ in received] == ["Bearer one", "Bearer two"]
    assert len(received[0][2].curve) == 64


def test_an_endpoint_that_goes_and_comes_is_told_once_each(endpoint: Any, caplog: pytest.LogCaptureFixture) -> None:
    there, received, server = endpoint
    poster = Poster(there, snapshot, interval=60)
    with caplog.at_level(logging.INFO, "olivine"):
        for status in (202, 503, 503, 202, 202):
            server.status = status
            poster._post_once()
        gone = Poster(Endpoint("http://127.0.0.1:9", IDENTITY), snapshot)
        gone._post_once()
        gone._post_once()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
    assert len(received) == 5


def test_the_last_post_is_sent_when_the_poster_stops(endpoint: Any) -> None:
    there, received, _ = endpoint
    poster = Poster(there, snapshot, interval=60)
    poster.start()
    poster.stop()
    assert len(received) == 1


def test_log_lines_carry_the_job_and_the_step(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "olivine"):
        log("hello", loss=0.5)
    record = caplog.records[0]
    CONTEXT.fields |= {"name": "tone", "attempt": 2, "step": 7}
    try:
        CONTEXT.filter(record)
    finally:
        CONTEXT.fields.clear()
    line = json.loads(_JsonFormatter().format(record))
    assert (line["message"], line["level"], line["loss"]) == ("hello", "info", 0.5)
    assert (line["name"], line["attempt"], line["step"]) == ("tone", 2, 7)
    assert record.name == LOGGER.name


def test_metrics_come_in_numbered_parts() -> None:
    written: dict[str, bytes] = {}
    lines = JsonLines("metrics", written.__setitem__)
    lines.flush()
    lines.add(step=1, loss=2.0)
    lines.add(step=2, loss=1.0)
    lines.flush()
    lines.add(step=3, loss=0.5)
    lines.flush()
    assert sorted(written) == ["metrics-000001.jsonl", "metrics-000002.jsonl"]
    assert [json.loads(line)["step"] for line in written["metrics-000001.jsonl"].splitlines()] == [1, 2]


def test_numbers_that_json_cannot_say_are_null() -> None:
    """A step that fp16's scaler skips has an infinite gradient: `Infinity` made the whole part unreadable to strict readers."""

    def strict(constant: str) -> None:
        raise AssertionError(constant)

    written: dict[str, bytes] = {}
    lines = JsonLines("metrics", written.__setitem__)
    lines.add(step=1, gradNorm=math.inf, loss=1.5)
    lines.flush()
    line = json.loads(written["metrics-000001.jsonl"], parse_constant=strict)
    assert (line["gradNorm"], line["loss"]) == (None, 1.5)
    record = logging.makeLogRecord({"msg": "step 1", "values": {"gradNorm": math.nan}})
    assert json.loads(_JsonFormatter().format(record), parse_constant=strict)["gradNorm"] is None


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path / "tb")
    assert list(board.files()) == []
    board.add(1, {"train/loss": 2.0})
    board.add(2, {"train/loss": 1.0})
    assert len(list(board.files())) == 1
    board.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    tags: dict[str, Any] = events.Tags()
    found = [*tags["scalars"], *tags["tensors"]]
    assert found == ["train/loss"]


def test_speed_and_eta_follow_the_last_steps() -> None:
    speed = Speed(size=2)
    assert (speed.tokens_per_second, speed.eta_seconds(5)) == (None, None)
    for seconds in (100.0, 1.0, 1.0):
        speed = speed.after(50, seconds)
    assert (speed.tokens_per_second, speed.eta_seconds(5)) == (50.0, 5)
