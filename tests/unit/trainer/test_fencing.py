"""Two live writers of one run, on a real S3 server: wherever the old one is paused, one result stands, and the old one writes no more."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest

from olivine_trainer.errors import StorageUnavailableError, SupersededError
from olivine_trainer.loop.uploads import Uploads
from olivine_trainer.storage.index import look_up
from olivine_trainer.storage.manifest import download_verified
from olivine_trainer.storage.records import Published
from olivine_trainer.storage.store import Store
from tests.unit.trainer.support import KilledError, adapter_bytes, make_job, run_job, tone_rows, write_rows

RUN = "team/tone/u1"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


@pytest.fixture(scope="module")
def calm(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("calm")
    return adapter_bytes(run_job(make_job(tiny_model, rows, f"file://{folder}/runs"), folder / "scratch"))


@pytest.fixture(autouse=True)
def saved_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that falls asleep in the middle of a checkpoint sleeps as a whole: its steps wait for the thread that uploads."""
    begin = Uploads.begin

    def begin_and_wait(self: Uploads, upload: Any) -> None:
        begin(self, upload)
        self.wait()

    monkeypatch.setattr(Uploads, "begin", begin_and_wait)


class Writes:
    """Every request of this process that changes the store, in order; `at` is done before the one that it is for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        self.at: Callable[[str], None] = lambda _: None
        put: Any = obstore.put
        delete: Any = obstore.delete

        def watched_put(store: Any, path: str, *arguments: Any, **options: Any) -> Any:
            self._note(path)
            return put(store, path, *arguments, **options)

        def watched_delete(store: Any, path: str, *arguments: Any, **options: Any) -> Any:
            self._note(path)
            return delete(store, path, *arguments, **options)

        monkeypatch.setattr(obstore, "put", watched_put)
        monkeypatch.setattr(obstore, "delete", watched_delete)

    def _note(self, path: str) -> None:
        key = path.partition(f"{RUN}/")[2] or path
        self.at(key)
        self.keys.append(key)


def _environ(s3: Any) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret, "AWS_ENDPOINT_URL": s3.endpoint}


def _state(storage: Store) -> dict[str, bytes]:
    """What decides the run: everything but the attempts' own logs."""
    run = storage.sub(RUN)
    found = {item.key: run.get(item.key) for item in run.list()}
    return {key: one.data for key, one in found.items() if one is not None and not key.startswith("attempts/")}


# Before which of its writes the old attempt falls asleep: each kind of write, at its first or last time.
POINTS = (
    "run/spec.json",
    "run/sources.json",
    "run/baseline.json",
    "checkpoints/step-00000003-a0001/adapter",
    "checkpoints/step-00000003-a0001/manifest.json",
    "checkpoints/step-00000008-a0001/manifest.json",
    "artifacts/",
    "artifacts/…/manifest.json",
    "run/published.json",
)


def _is_at(point: str, key: str) -> bool:
    if "…" in point:
        start, end = point.split("…")
        return key.startswith(start) and key.endswith(end)
    return key.startswith(point)


@pytest.mark.parametrize("point", POINTS)
def test_an_attempt_that_wakes_up_after_another_has_published_writes_nothing_more(  # noqa: PLR0917
    s3: Any, tiny_model: Path, rows: Path, calm: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    uri = f"s3://bucket/{tmp_path.name}"
    job = make_job(tiny_model, rows, uri)
    storage = Store(s3.access(uri))
    writes = Writes(monkeypatch)
    other: list[Published] = []
    left: list[dict[str, bytes]] = []
    before: list[int] = []

    def fall_asleep(key: str) -> None:
        if not other and _is_at(point, key):
            writes.at = lambda _: None
            before.append(len(writes.keys))
            other.append(run_job(job, tmp_path / "other", environ=_environ(s3)))
            before.append(len(writes.keys))
            left.append(_state(storage))

    writes.at = fall_asleep
    with pytest.raises(SupersededError):
        run_job(job, tmp_path / "zombie", environ=_environ(s3))
    assert other, f"the run never wrote {point}"
    published = other[0]
    assert published.attempt == 2
    # The request that was on its way when it fell asleep may land; it changes nothing that counts.
    state = _state(storage)
    strays = {key for key in state if state[key] != left[0].get(key)}
    woken = writes.keys[before[1] :]
    assert len([key for key in woken if not key.startswith("attempts/")]) <= 1, woken
    assert all(key.startswith(("checkpoints/step-", "artifacts/")) for key in strays), strays
    found = storage.sub(RUN).get("run/published.json")
    assert found is not None
    assert Published.model_validate_json(found.data) == published
    assert json.loads(left[0]["run/head.json"])["attempt"] == 2
    folder = tmp_path / "artifact"
    download_verified(storage.sub(RUN), f"artifacts/{published.snapshot.artifacts[0].digest}", folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == calm


DRAWS = [*range(3), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(3, 15))]


@pytest.mark.parametrize("seed", DRAWS)
def test_of_three_attempts_asleep_killed_and_alive_one_result_stands(  # noqa: PLR0917
    s3: Any, tiny_model: Path, rows: Path, calm: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The first sleeps before a drawn write, the second is killed before one, the first wakes up, the third ends the run."""
    draw = random.Random(seed)
    asleep, killed = draw.randrange(2, 28), draw.randrange(2, 28)
    uri = f"s3://bucket/{tmp_path.name}"
    job = make_job(tiny_model, rows, uri)
    writes = Writes(monkeypatch)
    woken_at: list[int] = []

    def die_at(count: int) -> Callable[[str], None]:
        start = len(writes.keys)

        def die(_: str) -> None:
            if len(writes.keys) - start >= count:
                writes.at = lambda _: None
                raise KilledError

        return die

    def fall_asleep(_: str) -> None:
        if len(writes.keys) < asleep:
            return
        writes.at = die_at(killed)
        with pytest.raises(KilledError):
            run_job(job, tmp_path / "second", environ=_environ(s3))
        woken_at.append(len(writes.keys))

    writes.at = fall_asleep
    with pytest.raises(SupersededError):
        run_job(job, tmp_path / "first", environ=_environ(s3))
    woken = [key for key in writes.keys[woken_at[0] :] if not key.startswith("attempts/")]
    assert len(woken) <= 1, (asleep, killed, woken)
    published = run_job(job, tmp_path / "third", environ=_environ(s3))
    assert published.attempt == (2 if "run/published.json" in writes.keys[: woken_at[0]] else 3)
    found = Store(s3.access(uri)).sub(f"{RUN}/artifacts/{published.snapshot.artifacts[0].digest}").get("adapter_model.safetensors")
    assert found is not None
    assert found.data == calm, (asleep, killed)


def test_whoever_asks_after_the_end_gets_the_same_end(s3: Any, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    uri = f"s3://bucket/{tmp_path.name}"
    job = make_job(tiny_model, rows, uri, training__maxSteps=2)
    first = run_job(job, tmp_path / "one", environ=_environ(s3))
    again = run_job(job, tmp_path / "two", environ=_environ(s3))
    assert again == first
    assert first.input_digest is not None
    entry = look_up(Store(s3.access(uri)).sub("team"), first.input_digest)
    assert entry is not None
    assert (entry.artifact, entry.job.name) == (first.snapshot.artifacts[0], "tone")


def test_the_index_knows_equal_inputs_wherever_they_lie(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

    changes: dict[str, Any] = {"training__maxSteps": 2}
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", **changes)
    first = run_job(job, tmp_path / "one")
    elsewhere = shutil.copytree(tiny_model, tmp_path / "copy")
    other = make_job(elsewhere, Path(shutil.copy(rows, tmp_path / "same.jsonl")), f"file://{tmp_path}/runs", **changes)
    other = replace(other, identity=other.identity.model_copy(update={"name": "again", "uid": "u2"}))
    second = run_job(other, tmp_path / "two")
    assert second.input_digest == first.input_digest
    assert adapter_bytes(second) == adapter_bytes(first)
    index = list((tmp_path / "runs" / "team" / "index").iterdir())
    assert [path.name for path in index if not path.name.startswith(".lock-")] == [f"{first.input_digest}.json"]
    assert json.loads((tmp_path / "runs" / "team" / "index" / f"{first.input_digest}.json").read_text())["job"]["name"] == "again"
    third = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=3)
    third = replace(third, identity=third.identity.model_copy(update={"uid": "u3"}))
    assert run_job(third, tmp_path / "three").input_digest != first.input_digest


def test_an_index_that_was_not_written_is_filled_in_by_the_next_pod(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Killed between the run's end and the index."""
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=2)
    with pytest.MonkeyPatch.context() as patch:

        def die(*_: Any, **__: Any) -> None:
            raise KilledError

        patch.setattr("olivine_trainer.loop.claim.point_to", die)
        with pytest.raises(KilledError):
            run_job(job, tmp_path / "one")
    assert not (tmp_path / "runs" / "team" / "index").exists()
    published = run_job(job, tmp_path / "two")
    assert (tmp_path / "runs" / "team" / "index" / f"{published.input_digest}.json").exists()


def test_an_index_that_cannot_be_written_does_not_undo_the_end(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise StorageUnavailableError("no")

    monkeypatch.setattr("olivine_trainer.loop.claim.point_to", refuse)
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=2)
    assert run_job(job, tmp_path / "one").attempt == 1
