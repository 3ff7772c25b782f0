"""The cache of fetched files: whole or absent, verified when read, shared by pods that start together, never a reason to fail."""

import errno
import logging
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from olivine_api import names
from olivine_trainer.errors import StorageUnavailableError
from olivine_trainer.loop.claim import fetch_sources
from olivine_trainer.reporting.board import Board
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.store import Store
from tests.unit.trainer.support import make_job, tone_rows, write_rows

FILES = {"config.json": b"{}", "deep/model.safetensors": b"weights" * 100}


class Download:
    """Writes FILES and counts how often it was asked to."""

    def __init__(self, *, before: Callable[[], Any] = lambda: None) -> None:
        self.asked = 0
        self._before = before

    def __call__(self, target: Path) -> Mapping[str, Any]:
        self.asked += 1
        self._before()
        for name, content in FILES.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        return {"license": "mit"}


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_is_found_again_with_what_was_noted(tmp_path: Path) -> None:
    cache, download = FileCache(tmp_path), Download()
    assert cache.find("state") is None
    made = cache.fill("state", download, needs=10)
    found = FileCache(tmp_path).find("state")
    assert found is not None
    assert (found.digest, found.bytes, found.about) == (made.digest, 702, {"license": "mit"})
    assert _content(found.folder) == FILES
    same = cache.fill("another state", download, needs=10)  # of the same content: kept once
    assert same.folder == found.folder


def test_a_fetch_that_is_cut_off_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def cut(target: Path) -> Mapping[str, Any]:
        (target / "config.json").write_bytes(b"{}")
        raise StorageUnavailableError("gone")

    cache = FileCache(tmp_path)
    with pytest.raises(StorageUnavailableError):
        cache.fill("state", cut, needs=1)
    assert cache.find("state") is None
    assert cache.fill("state", Download(), needs=1).bytes == 702


def _flip(place: Path) -> None:
    path = place / "files" / "deep" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_flip, r"deep/model\.safetensors is damaged \(sha256 differs\)"),
        (lambda place: (place / "files" / "config.json").write_bytes(b"{"), r"config\.json is missing or cut"),
        (lambda place: (place / "files" / "config.json").unlink(), r"config\.json is missing or cut"),
        (lambda place: (place / "manifest.json").write_text('{"files'), "its manifest is unreadable"),
    ],
    ids=["flipped byte", "cut", "missing", "manifest"],
)
def test_what_is_damaged_is_told_and_fetched_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], Any], sentence: str
) -> None:
    cache, download = FileCache(tmp_path), Download()
    damage(cache.fill("state", download, needs=1).folder.parent)
    with caplog.at_level(logging.WARNING, "olivine"):
        assert cache.find("state") is None
    assert [r.getMessage() for r in caplog.records if "fetched anew" in r.getMessage()]
    assert re.search(sentence, caplog.text)
    again = cache.fill("state", download, needs=1)
    assert (_content(again.folder), download.asked) == (FILES, 2)
    assert cache.find("state") is not None


def test_pods_that_start_together_fetch_once(tmp_path: Path) -> None:
    started = threading.Event()

    def slow() -> None:
        started.set()
        time.sleep(0.7)

    download = Download(before=slow)
    with ThreadPoolExecutor(4) as pods:
        found = list(pods.map(lambda _: FileCache(tmp_path).fill("state", download, needs=1), range(4)))
    assert download.asked == 1
    assert {one.digest for one in found} == {found[0].digest}


def _hold(root: str, ready: Any) -> None:
    def hang(_: Path) -> Mapping[str, Any]:
        ready.set()
        time.sleep(600)
        return {}

    FileCache(Path(root)).fill("state", hang, needs=1)


def test_a_holder_that_dies_holds_nobody_up(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    try:
        assert ready.wait(60)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: FileCache(tmp_path).fill("state", Download(), needs=1))
            time.sleep(0.3)
            assert not waiting.done()
            os.kill(holder.pid or 0, signal.SIGKILL)
            assert _content(waiting.result(30).folder) == FILES
    finally:
        holder.kill()
        holder.join()


def test_a_holder_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both then fetch: whoever renames first wins, and both have it."""
    release = threading.Event()
    slow, fast = Download(before=lambda: release.wait(60)), Download()
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING, "olivine"):
        hanging = pool.submit(lambda: FileCache(tmp_path).fill("state", slow, needs=1))
        while not slow.asked:
            time.sleep(0.01)
        quick = FileCache(tmp_path, turn_seconds=0.2).fill("state", fast, needs=1)
        release.set()
        late = hanging.result(30)
    assert "another pod has been fetching the same files for 0.2 s" in caplog.text
    assert (_content(quick.folder), _content(late.folder)) == (FILES, FILES)
    assert quick.folder == late.folder


@pytest.mark.parametrize("fault", ["full before", "full meanwhile", "read-only"])
def test_a_cache_that_cannot_be_written_costs_a_download_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    root = Path("/sys/olivine") if fault == "read-only" else tmp_path / "claim"
    own = FileCache(tmp_path / "own")
    cache = FileCache(root, fallback=own)
    download = Download()
    if fault == "full before":
        real = shutil.disk_usage
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9) if path == root else real(path))
    full_once = iter([OSError(errno.ENOSPC, "No space left on device")] if fault == "full meanwhile" else [])

    def fetch(target: Path) -> Mapping[str, Any]:
        for error in full_once:
            raise error
        return download(target)

    with caplog.at_level(logging.WARNING, "olivine"):
        found = cache.fill("state", fetch, needs=702)
    assert found.folder.is_relative_to(tmp_path / "own")
    assert f"the cache at {root} cannot be written" in caplog.text
    assert cache.find("state") is not None  # the pod's own, when it starts again in place
    assert download.asked == 1


def test_a_scratch_volume_that_is_full_is_the_platforms(tmp_path: Path) -> None:
    def full(_: Path) -> Mapping[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageUnavailableError, match=r"cannot be kept at .*No space left"):
        FileCache(tmp_path).fill("state", full, needs=1)


def test_remains_of_pods_that_were_killed_are_removed_after_a_day(tmp_path: Path) -> None:
    cache = FileCache(tmp_path)
    cache.fill("one", Download(), needs=1)
    old, young = (tmp_path / "v1" / "staging" / name for name in ("old", "young"))
    for folder in (old, young):
        (folder / "files").mkdir(parents=True)
    os.utime(old, (0.0, time.time() - 90_000))
    cache.fill("two", Download(), needs=1)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_model_that_changed_in_its_bucket_is_fetched_and_one_that_did_not_is_not(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    monkeypatch.setattr(names, "MODEL_CACHE_DIR", str(tmp_path / "claim"))
    store = Store(s3.access(f"s3://bucket/{tmp_path.name}/m", role="model"))
    store.put("config.json", b"{}")
    store.put("model.safetensors", b"first" * 100)
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(8))
    environ = {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret, "AWS_ENDPOINT_URL": s3.endpoint}
    job = make_job(tmp_path, rows, f"file://{tmp_path}/runs", model__uri=store.uri, model__cache={"claimName": "models"})
    gets: list[str] = []
    real: Any = obstore.get
    monkeypatch.setattr(obstore, "get", lambda s, path, **k: (gets.append(path), real(s, path, **k))[1])

    def fetch(pod: str) -> Any:
        gets.clear()
        return fetch_sources(job, environ, tmp_path / pod, Board(None)).model

    first = fetch("pod-1")
    assert len(gets) == 2
    assert (fetch("pod-2").digest, gets) == (first.digest, [])
    store.put("model.safetensors", b"other" * 100)
    assert fetch("pod-3").digest != first.digest
