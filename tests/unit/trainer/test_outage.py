"""A real S3 server that goes away in the middle of a run, in each phase: one attempt survives it, with the calm run's bytes."""

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import obstore
import pytest

from olivine_trainer.errors import InterruptedRunError, StorageUnavailableError
from olivine_trainer.loop.stop import StopFlag
from olivine_trainer.storage.store import RETRY_DELAYS, Store
from tests.support.door import Door, door_before
from tests.unit.trainer.support import adapter_bytes, make_job, run_job, tone_rows, write_rows

RUN = "team/tone/u1"
# The key of the request that finds the door shut.
PHASES = {
    "claiming": "run/head.json",
    "fetching the model": "model/model.safetensors",
    "fetching the rows": "rows.jsonl",
    "noting the sources": "run/sources.json",
    "saving a checkpoint": "checkpoints/step-00000003-a0001/optimizer.safetensors",
    "sealing a checkpoint": "checkpoints/step-00000006-a0001/manifest.json",
    "uploading the artifact": "adapter_model.safetensors",
    "publishing": "run/published.json",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


@pytest.fixture(scope="module")
def calm(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("calm")
    return adapter_bytes(run_job(make_job(tiny_model, rows, f"file://{folder}/runs"), folder / "scratch"))


@pytest.fixture
def door(s3: Any) -> Generator[Door]:
    with door_before(s3.endpoint) as door:
        yield door


class Requests:
    """Calls `at` with the key of each request before it is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: Callable[[str], None] = lambda _: None
        for name in ("put", "get"):
            real: Any = getattr(obstore, name)
            monkeypatch.setattr(obstore, name, self._watched(real))

    def _watched(self, real: Any) -> Any:
        def request(store: Any, path: str, *arguments: Any, **options: Any) -> Any:
            self.at(path)
            return real(store, path, *arguments, **options)

        return request


def _stored_job(s3: Any, door: Door, tiny_model: Path, rows: Path, name: str) -> tuple[Any, dict[str, str], Store]:
    """A job whose sources and storage all lie behind the door."""
    storage = Store(s3.access(f"s3://bucket/{name}"))
    for path in tiny_model.iterdir():
        storage.put(f"model/{path.name}", path)
    storage.put("rows.jsonl", rows)
    uri = f"s3://bucket/{name}"
    job = make_job(tiny_model, rows, uri, model__uri=f"{uri}/model", data__train={"uri": f"{uri}/rows.jsonl"})
    return job, {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret, "AWS_ENDPOINT_URL": door.address}, storage


def _outage(monkeypatch: pytest.MonkeyPatch, door: Door, key: str, seconds: float) -> list[str]:
    requests, seen = Requests(monkeypatch), list[str]()

    def shut(path: str) -> None:
        if not seen and path.endswith(key):
            seen.append(path)
            door.shut_for(seconds)

    requests.at = shut
    return seen


@pytest.mark.parametrize("phase", PHASES)
def test_a_store_that_is_away_for_a_moment_costs_no_attempt(  # noqa: PLR0917
    s3: Any, door: Door, tiny_model: Path, rows: Path, calm: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    job, environ, storage = _stored_job(s3, door, tiny_model, rows, tmp_path.name)
    seen = _outage(monkeypatch, door, PHASES[phase], 2)
    published = run_job(job, tmp_path / "scratch", environ=environ)
    assert seen, f"nothing asked for {PHASES[phase]}"
    assert door.refused
    assert published.attempt == 1
    digest = published.snapshot.artifacts[0].digest
    found = storage.sub(f"{RUN}/artifacts/{digest}").get("adapter_model.safetensors")
    assert found is not None
    assert found.data == calm


@pytest.mark.full
@pytest.mark.parametrize("phase", PHASES)
def test_a_store_that_is_away_for_thirty_seconds_costs_no_attempt(  # noqa: PLR0917
    s3: Any, door: Door, tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    job, environ, _ = _stored_job(s3, door, tiny_model, rows, tmp_path.name)
    assert _outage(monkeypatch, door, PHASES[phase], 30) == []
    assert run_job(job, tmp_path / "scratch", environ=environ).attempt == 1
    assert door.refused


def test_the_delays_cover_thirty_seconds_and_stay_below_what_other_ranks_wait() -> None:
    assert 35 < sum(RETRY_DELAYS) < 60  # a collective waits 5 minutes


def test_a_store_that_stays_away_ends_the_attempt_soon_once_the_pod_is_to_go(  # noqa: PLR0917
    s3: Any, door: Door, tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint cannot be saved: the grace must not be spent on a store that is not there."""
    job, environ, _ = _stored_job(s3, door, tiny_model, rows, tmp_path.name)
    stop = StopFlag()
    requests = Requests(monkeypatch)
    asked: list[float] = []

    def go(path: str) -> None:
        if not asked and "checkpoints/step-00000003" in path:
            asked.append(time.monotonic())
            stop.requested = True
            door.shut_for(600)

    requests.at = go
    with pytest.raises((StorageUnavailableError, InterruptedRunError)):
        run_job(job, tmp_path / "scratch", environ=environ, stop=stop)
    assert time.monotonic() - asked[0] < 60  # the store stays away for 600
