"""gs:// and az:// through the code of s3://: conditional writes by each cloud's own headers, and their absence refused."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError, SupersededError
from olivine_trainer.storage.checkpoints import restore_newest, save_checkpoint
from olivine_trainer.storage.head import require_head, take_attempt
from olivine_trainer.storage.store import Store
from tests.support.clouds import Cloud, running_cloud


@pytest.fixture(params=["s3", "gs", "az"])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    with running_cloud(request.param) as cloud:
        yield cloud


@pytest.fixture
def store(cloud: Cloud) -> Store:
    return Store(cloud.access("prefix"), delays=())


def test_objects_are_read_and_listed(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"one")
    store.put("c", b"two")
    found = store.get("a/b")
    assert found is not None
    assert (found.data, store.get("none")) == (b"one", None)
    assert [(item.key, item.size) for item in store.list()] == [("a/b", 3), ("c", 3)]
    assert ([item.key for item in store.list_here().objects], store.list_here().folders) == (["c"], ["a"])
    assert store.get_to_file("c", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"two"
    if store.uri.startswith("gs://"):  # the stand-in takes no batches of deletions
        store.delete(["c", "c"])
        assert store.get("c") is None


def test_conditional_writes_have_one_winner(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: store.put_if_absent("head", b"%d" % number), range(8)))
        found = store.get("head")
        assert found is not None
        replaced = list(pool.map(lambda number: store.put_if_match("head", b"new %d" % number, found.etag), range(8)))
    assert (sum(created), sum(replaced)) == (1, 1)
    assert not store.put_if_match("none", b"", found.etag)


def test_attempts_fence_and_checkpoints_come_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights").write_bytes(b"w" * 1000)
    first = take_attempt(store)
    saved = save_checkpoint(store, first, 5, tmp_path / "state", {"specDigest": "d"})
    second = take_attempt(store)
    with pytest.raises(SupersededError):
        require_head(store, first)
    restored = restore_newest(store, tmp_path / "restored", spec_digest="d")
    assert restored.status is not None
    assert (second.number, restored.status.digest) == (2, saved.digest)


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_a_store_without_conditional_writes_is_refused_before_anything_else(cloud: Cloud, conditions: Any) -> None:
    cloud.conditions = conditions
    store = Store(cloud.access("prefix"), delays=(0.0,), sleep=lambda _: None)
    with pytest.raises(
        ConfigurationError, match=r"without which two writers could overwrite each other: use a store that"
    ) as caught:
        take_attempt(store)
    assert caught.value.reason is Reason.STORAGE_UNSUPPORTED
    assert caught.value.exit_code == 10
    assert set(cloud.objects) <= {"prefix/run/head.json"}
