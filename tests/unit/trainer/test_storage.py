"""The store's promises, on files and on a real S3 server: conditional writes have one winner, errors say what to change."""

import errno
import fcntl
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore.exceptions
import pytest

from olivine_api.exit_codes import Category
from olivine_api.finetunejob import parse_spec
from olivine_api.reasons import Reason
from olivine_api.status import Progress, Snapshot, Stage
from olivine_trainer.errors import ConfigurationError, DataError, ModelError, StorageUnavailableError, SupersededError, TrainerError
from olivine_trainer.storage import local
from olivine_trainer.storage.addresses import check_endpoint, check_uri
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.checkpoints import prune_checkpoints, restore_newest, save_checkpoint
from olivine_trainer.storage.credentials import resolve_access
from olivine_trainer.storage.failures import Place, explain
from olivine_trainer.storage.fetch import fetch_model, fetch_rows
from olivine_trainer.storage.head import Attempt, require_head, take_attempt
from olivine_trainer.storage.local import take_lock
from olivine_trainer.storage.records import RunRecords
from olivine_trainer.storage.store import Store
from tests.unit.trainer.support import local_access, local_store, make_job


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return local_store(tmp_path / "store")
    s3 = request.getfixturevalue("s3")
    return Store(s3.access(f"s3://bucket/{tmp_path.name}"))


def test_reads_what_was_written(store: Store) -> None:
    assert store.get("a/b") is None
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    store.put("ab/c", b"three")
    found = store.get("a/b")
    assert found is not None
    assert found.data == b"two"
    assert [(item.key, item.size) for item in store.list("a")] == [("a/b", 3)]  # ab/ is another folder
    assert [item.key for item in store.sub("a").list()] == ["b"]
    store.delete(["a/b", "a/b"])
    assert store.get("a/b") is None


def test_create_if_absent_has_one_winner(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.put_if_absent("once", b"%d" % number), range(8)))
    assert sum(won) == 1
    found = store.get("once")
    assert found is not None
    assert found.data == b"%d" % won.index(True)


def test_replace_if_match_has_one_winner(store: Store) -> None:
    store.put("head", b"old")
    found = store.get("head")
    assert found is not None
    etag = found.etag
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.put_if_match("head", b"new %d" % number, etag), range(8)))
    assert sum(won) == 1
    now = store.get("head")
    assert now is not None
    assert now.data == b"new %d" % won.index(True)
    assert not store.put_if_match("gone", b"", etag)


def test_attempts_count_up_and_fence(store: Store) -> None:
    first = take_attempt(store)
    second = take_attempt(store)
    assert (first.number, second.number) == (1, 2)
    require_head(store, second)
    with pytest.raises(SupersededError, match="attempt 1 stops and writes nothing more"):
        require_head(store, first)


def test_racing_pods_get_different_attempts(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        attempts = list(pool.map(lambda _: take_attempt(store), range(4)))
    assert sorted(attempt.number for attempt in attempts) == [1, 2, 3, 4]


def test_a_store_without_conditional_writes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = local_store(tmp_path)
    # What a store does that ignores If-None-Match: it writes.
    monkeypatch.setattr(store, "put_if_absent", lambda key, data, **_: (store.put(key, data), True)[1])
    with pytest.raises(ConfigurationError, match="ignores conditional writes") as caught:
        take_attempt(store)
    assert caught.value.reason is Reason.STORAGE_UNSUPPORTED


@pytest.mark.parametrize(
    ("changes", "uri", "reason"),
    [
        ({}, "s3://nowhere/x", Reason.STORAGE_NOT_FOUND),
        ({"secret_access_key": "wrong"}, "s3://bucket/x", Reason.STORAGE_ACCESS_DENIED),
        ({"access_key_id": "nobody"}, "s3://bucket/x", Reason.STORAGE_ACCESS_DENIED),
    ],
    ids=["no such bucket", "wrong secret", "unknown key"],
)
def test_the_users_mistakes_are_told_at_the_first_request(s3: Any, changes: dict[str, str], uri: str, reason: Reason) -> None:
    store = Store(s3.access(uri, **changes), delays=())
    # No PUT: SeaweedFS makes a bucket that is missing, so it must be a read that comes first.
    for request in (lambda: store.get("run/published.json"), lambda: take_attempt(store), store.list):
        with pytest.raises(ConfigurationError) as caught:
            request()
        assert caught.value.reason is reason
        assert uri in caught.value.message
        assert caught.value.category is Category.USER


def test_an_unreachable_store_is_tried_again_then_infrastructure(s3: Any) -> None:
    slept: list[float] = []
    store = Store(s3.access(endpoint="http://127.0.0.1:9"), delays=(0.1, 0.2), sleep=slept.append)
    with pytest.raises(StorageUnavailableError) as caught:
        store.get("x")
    assert caught.value.category is Category.INFRASTRUCTURE
    assert caught.value.exit_code == 30
    assert slept == [0.1, 0.2]


def test_a_lost_answer_does_not_lose_the_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write arrived, its answer did not: the second try finds its own content and must count as the winner."""
    import obstore

    store = local_store(tmp_path, delays=(0.0,))
    real_put: Callable[..., Any] = obstore.put
    calls = 0

    def put(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real_put(*arguments, **options)
        if calls == 1:
            raise obstore.exceptions.GenericError("connection reset")
        return result

    monkeypatch.setattr(obstore, "put", put)
    assert store.put_if_absent("once", b"mine")
    assert not store.put_if_absent("once", b"other")


def test_a_lost_answer_is_no_proof_against_a_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe writes the content that stands there already: one hiccup ended the job as the user's fault."""
    import obstore

    real_put: Callable[..., Any] = obstore.put
    failed: set[str] = set()

    def put(*arguments: Any, **options: Any) -> Any:
        mode = str(options.get("mode"))
        if mode not in failed:
            failed.add(mode)
            raise obstore.exceptions.GenericError("connection reset")
        return real_put(*arguments, **options)

    store.put("head", b"mine")
    monkeypatch.setattr(store, "_delays", (0.0,))
    monkeypatch.setattr(obstore, "put", put)
    store.require_conditional_writes("head", b"mine")
    assert failed


def test_a_large_download_goes_on_where_it_was_cut_off(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    content = bytes(range(256)) * 10
    store.put("large", content)
    store.put("empty", b"")
    real_get: Callable[..., Any] = obstore.get
    asked: list[tuple[int, int]] = []

    def get(*arguments: Any, **options: Any) -> Any:
        asked.append(options["options"]["range"])
        if len(asked) == 2:
            raise obstore.exceptions.GenericError("connection reset")
        return real_get(*arguments, **options)

    monkeypatch.setattr("olivine_trainer.storage.store.PIECE", 1000)
    monkeypatch.setattr(store, "_delays", (0.0,))
    monkeypatch.setattr(obstore, "get", get)
    assert store.get_to_file("large", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == content
    assert asked == [(0, 1000), (1000, 2000), (1000, 2000), (2000, 2560)]
    assert store.get_to_file("empty", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b""


def test_an_object_that_changes_while_it_is_read_is_not_mixed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    store.put("rows", b"a" * 2000)
    real_get: Callable[..., Any] = obstore.get

    def get(*arguments: Any, **options: Any) -> Any:
        if options["options"]["range"][0]:
            monkeypatch.setattr(obstore, "get", real_get)
            store.put("rows", b"b" * 2001)
        return real_get(*arguments, **options)

    monkeypatch.setattr("olivine_trainer.storage.store.PIECE", 1000)
    monkeypatch.setattr(obstore, "get", get)
    with pytest.raises(StorageUnavailableError, match="reading rows failed"):
        store.get_to_file("rows", tmp_path / "here")


@pytest.mark.parametrize(
    "error",
    [
        obstore.exceptions.GenericError("error sending request for url (http://169.254.169.254/latest/api/token)"),
        obstore.exceptions.PermissionDeniedError("status: 403 <Code>RequestTimeTooSkewed</Code>"),
        obstore.exceptions.GenericError("status: 400 <Code>ExpiredToken</Code>"),
    ],
    ids=["metadata service", "clock", "expired token"],
)
def test_refusals_that_pass_are_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """They ended a job for good that the next try would have let in."""
    slept: list[float] = []
    store = local_store(tmp_path, "model", delays=(0.1, 0.2), sleep=slept.append)
    monkeypatch.setattr("obstore.get", _raising(error))
    with pytest.raises(StorageUnavailableError) as caught:
        store.get("x")
    assert slept == [0.1, 0.2]
    assert ("model.secretRef" in caught.value.message) == ("169.254" in str(error))  # who gave no keys is told so


def test_a_denial_after_the_claim_is_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Secret that is rotated reaches only the next pod: the old keys' denial must not end the job."""
    store = local_store(tmp_path, delays=())
    folder = store.sub("run")
    monkeypatch.setattr("obstore.get", _raising(obstore.exceptions.PermissionDeniedError("AccessDenied")))
    with pytest.raises(ConfigurationError):
        store.get("x")
    folder.grant()
    with pytest.raises(StorageUnavailableError):
        store.get("x")


def test_a_pod_that_is_to_go_waits_for_few_retries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    store = local_store(tmp_path, delays=(1.0, 2.0, 3.0, 4.0), sleep=slept.append)
    store.hurry_when(lambda: True)
    monkeypatch.setattr("obstore.get", _raising(obstore.exceptions.GenericError("connection reset")))
    with pytest.raises(StorageUnavailableError):
        store.sub("run").get("x")
    assert slept == [1.0, 2.0]


def _raising(error: Exception) -> Callable[..., Any]:
    def request(*_: Any, **__: Any) -> Any:
        raise error

    return request


@pytest.mark.parametrize(
    "endpoint", ["minio:9000", "http://", "http:///x", "http://h:99999", "http://[::1", "ftp://h", "http://a b"]
)
def test_an_endpoint_that_is_none_is_told_with_its_field(endpoint: str) -> None:
    """obstore panics over these at the first request, past every except."""
    with pytest.raises(ConfigurationError, match=r"storage\.endpoint is .*: write http:// or https:// and a host"):
        check_endpoint(Place("storage", "s3://b", None), endpoint, "storage.endpoint")
    environ = {**STORAGE_ENV, "OLIVINE_STORAGE_AWS_ENDPOINT_URL": endpoint}
    with pytest.raises(ModelError, match=r"AWS_ENDPOINT_URL in the Secret of storage\.secretRef is"):
        resolve_access(_spec(), "model", environ)


@pytest.mark.parametrize("uri", ["s3://my bucket/x", "s3:///x", "s3://b/a//c", "s3://b/../c", "file:///a/../b"])
def test_a_place_that_cannot_be_is_told(uri: str) -> None:
    with pytest.raises(ModelError, match=r"model\.uri is .*: write (s3|file)://") as caught:
        check_uri(Place("model", uri, None))
    assert caught.value.reason is Reason.INVALID_SPEC


def test_rows_need_a_file_in_the_bucket() -> None:
    with pytest.raises(DataError, match="it names no file"):
        check_uri(Place("train", "s3://bucket", None))


def test_certificates_that_are_none_are_told() -> None:
    access = replace(local_access("s3://bucket/x", "train"), ca_bundle="garbage")
    with pytest.raises(DataError, match=r"CA_BUNDLE in the Secret of data\.train\.secretRef must hold certificates"):
        Store(access)


def test_a_key_that_is_no_path_is_the_users(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"correct model\.uri"):
        local_store(tmp_path, "model").get("a//b")


def test_a_model_folder_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is nothing at model\.uri"):
        fetch_model(local_store(tmp_path / "none", "model"), FileCache(tmp_path / "cache"))
    folder = tmp_path / "models"
    (folder / "smol").mkdir(parents=True)
    (folder / "smol" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no config\.json.*it holds: smol/"):
        fetch_model(local_store(folder, "model"), FileCache(tmp_path / "cache"))
    with pytest.raises(ModelError, match="has no weights"):
        fetch_model(local_store(folder / "smol", "model"), FileCache(tmp_path / "cache"))


def test_a_model_folder_comes_from_s3(s3: Any, tmp_path: Path) -> None:
    store = Store(s3.access("s3://bucket/model", role="model"))
    for name, content in {
        "config.json": b"{}",
        "model.safetensors": b"\0" * 4096,
        "model.onnx": b"no",
        "sub/x.json": b"no",
    }.items():
        store.put(name, content)
    cache = FileCache(tmp_path / "cache")
    fetched = fetch_model(store, cache)
    assert sorted(path.name for path in fetched.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert fetched.bytes == 4098
    with pytest.raises(
        DataError, match=r"data.train.uri s3://bucket/model/row.jsonl does not exist; beside it there are: config.json"
    ):
        fetch_rows(Store(s3.access("s3://bucket/model", role="train")), "row.jsonl", None, cache)


def test_what_is_not_there_is_told_without_a_walk_through_the_tree(tmp_path: Path) -> None:
    """A typo in a bucket of millions of objects took many minutes; a folder that cannot be walked became the platform's fault."""
    store = local_store(tmp_path, "train")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path / "deep", target_is_directory=True)
    (tmp_path / "rows.jsonl").write_text("")
    assert ([item.key for item in store.list_here().objects], store.list_here().folders) == (["rows.jsonl"], ["deep"])
    with pytest.raises(DataError, match=r"row\.jsonl does not exist; beside it there are: rows\.jsonl"):
        fetch_rows(store, "row.jsonl", None, FileCache(tmp_path / "cache"))


def test_a_file_that_the_trainer_may_not_read_is_the_users_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    monkeypatch.setattr(Path, "open", refuse)  # tests may run as root, whom nothing is refused
    with pytest.raises(DataError, match=r"data\.train\.uri: .*config\.json cannot be read by the trainer, which runs as user"):
        fetch_rows(local_store(tmp_path, "train"), "config.json", None, FileCache(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"model\.uri: .*config\.json cannot be read"):
        fetch_model(local_store(tmp_path, "model"), FileCache(tmp_path / "cache"))


def _spec(**changes: Any) -> Any:
    job = make_job(Path("/m"), Path("/r.jsonl"), "s3://bucket/runs", model__uri="s3://models/m", **changes)
    return parse_spec(job.spec.to_json_dict())


STORAGE_ENV = {
    "OLIVINE_STORAGE_AWS_ACCESS_KEY_ID": "storage-key",
    "OLIVINE_STORAGE_AWS_SECRET_ACCESS_KEY": "storage-secret",
    "OLIVINE_STORAGE_AWS_ENDPOINT_URL": "http://storage:8333",
}


def test_a_source_borrows_storages_means() -> None:
    access = resolve_access(_spec(), "model", STORAGE_ENV)
    assert (access.access_key_id, access.endpoint) == ("storage-key", "http://storage:8333")
    assert "storage-secret" not in repr(access)
    other_scheme = resolve_access(_spec(), "train", STORAGE_ENV)  # file:// takes nothing
    assert (other_scheme.access_key_id, other_scheme.endpoint) == (None, None)


def test_a_source_with_a_secret_of_its_own_uses_it() -> None:
    environ = {
        **STORAGE_ENV,
        "OLIVINE_MODEL_AWS_ACCESS_KEY_ID": "model-key",
        "OLIVINE_MODEL_AWS_SECRET_ACCESS_KEY": "model-secret",
        "OLIVINE_MODEL_AWS_ENDPOINT_URL": "http://models:1/",
    }
    access = resolve_access(_spec(model__secretRef={"name": "m"}), "model", environ)
    assert (access.access_key_id, access.secret_access_key, access.endpoint) == ("model-key", "model-secret", "http://models:1")


def test_a_secret_without_keys_borrows_nothing() -> None:
    with pytest.raises(ModelError, match=r"the Secret 'm' of model\.secretRef has no AWS_ACCESS_KEY_ID and no AWS_SECRET"):
        resolve_access(_spec(model__secretRef={"name": "m"}), "model", STORAGE_ENV)
    half = {**STORAGE_ENV, "OLIVINE_MODEL_AWS_ACCESS_KEY_ID": "model-key"}
    with pytest.raises(ModelError, match="has no AWS_SECRET_ACCESS_KEY"):
        resolve_access(_spec(model__secretRef={"name": "m"}), "model", half)
    certificates = {**STORAGE_ENV, "OLIVINE_MODEL_CA_BUNDLE": "PEM"}  # the keys are the platform's (workload identity)
    access = resolve_access(_spec(model__secretRef={"name": "m"}), "model", certificates)
    assert (access.access_key_id, access.ca_bundle) == (None, "PEM")


def test_storages_keys_go_to_no_other_endpoint() -> None:
    foreign = resolve_access(_spec(model__endpoint="https://elsewhere.example"), "model", STORAGE_ENV)
    assert (foreign.access_key_id, foreign.secret_access_key, foreign.endpoint) == (None, None, "https://elsewhere.example")
    same = resolve_access(_spec(model__endpoint="http://storage:8333/"), "model", STORAGE_ENV)
    assert same.access_key_id == "storage-key"


def test_the_specs_endpoint_wins_and_the_plain_environment_is_last() -> None:
    assert resolve_access(_spec(storage__endpoint="http://spec:1"), "storage", STORAGE_ENV).endpoint == "http://spec:1"
    plain = {"AWS_ACCESS_KEY_ID": "plain", "AWS_ENDPOINT_URL": "http://plain:1", "AWS_REGION": "eu-1"}
    access = resolve_access(_spec(), "model", plain)
    assert (access.access_key_id, access.endpoint, access.region) == ("plain", "http://plain:1", "eu-1")


def test_denied_access_is_told_by_role(tmp_path: Path) -> None:
    told = explain(PermissionError("no"), Place("train", "file:///x", None))
    assert isinstance(told, TrainerError)
    assert told.exit_code == 11
    assert Store(local_access(f"file://{tmp_path}", "train")).list() == []


def test_a_lock_that_is_held_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """By a machine that was lost, or hangs: its lease ends at some time."""
    store = local_store(tmp_path, delays=())
    take_attempt(store)
    with (tmp_path / "run" / ".lock-head.json").open("ab") as held, (tmp_path / "run" / ".lock-head.json").open("ab") as mine:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            take_lock(mine.fileno(), seconds=0.2)
        fcntl.flock(held, fcntl.LOCK_UN)
        take_lock(mine.fileno(), seconds=0.2)


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended as infrastructure, again and again: NFS without its lock service says ENOLCK."""

    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(local, "take_lock", functools.partial(local.take_lock, flock=flock))
    with pytest.raises(ConfigurationError, match=r"without locks .*: mount it with locks .* into storage\.uri") as caught:
        take_attempt(local_store(tmp_path))
    assert caught.value.reason is Reason.STORAGE_UNSUPPORTED


def test_an_end_of_ones_own_whose_answer_was_lost_below_is_ones_own(store: Store) -> None:
    """obstore's client tries a PUT again by itself after a 5xx, and is then told that the object exists."""
    records = RunRecords(store)
    mine = take_attempt(store)
    end: dict[str, Any] = {"spec_digest": "d", "input_digest": "i", "samples": []}
    snapshot = Snapshot(progress=Progress(stage=Stage.PUBLISHING), metrics={"evalLoss": 0.1})
    real = store.put_if_absent
    store.put_if_absent = lambda key, data, **_: real(key, data) and False  # written, and then not recognised
    published = records.publish(mine, snapshot=snapshot, **end)
    assert records.published() == published
    with pytest.raises(SupersededError):
        records.publish(mine, snapshot=snapshot.model_copy(update={"metrics": {"evalLoss": 0.2}}), **end)


def test_a_damaged_checkpoint_further_on_does_not_push_out_the_newest_attempts_own(tmp_path: Path) -> None:
    """checkpoint.keep 1: attempt 2 went on from step 6, as step 12 was damaged; its step 9 was deleted as the older one."""
    run, state = local_store(tmp_path / "run"), tmp_path / "state"
    state.mkdir()
    about = {"specDigest": "d"}

    def save(attempt: Attempt, step: int) -> None:
        (state / "weights").write_text(f"{attempt.number} {step}")
        save_checkpoint(run, attempt, step, state, about)

    first = take_attempt(run)
    save(first, 6)
    save(first, 12)
    run.put("checkpoints/step-00000012-a0001/weights", b"cut")
    second = take_attempt(run)
    assert [str(one.name) for one in restore_newest(run, tmp_path / "a", spec_digest="d").skipped] == ["step-00000012-a0001"]
    save(second, 9)
    prune_checkpoints(run, second, keep=1)
    restored = restore_newest(run, tmp_path / "b", spec_digest="d")
    assert restored.status is not None
    assert (restored.status.step, restored.skipped) == (9, ())
