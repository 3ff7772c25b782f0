"""hf:// by the hub's own client against a stand-in of the hub: pinned commits, verified files, sentences, and life without the hub."""

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_trainer.errors import DataError, ModelError, StorageUnavailableError, TrainerError
from olivine_trainer.loop.claim import fetch_sources
from olivine_trainer.reporting.board import Board
from olivine_trainer.storage.credentials import resolve_access
from olivine_trainer.storage.hub import HubAddress, HubRepository
from tests.support.hub import Hub, running_hub
from tests.unit.trainer.pid1 import Trainer
from tests.unit.trainer.support import adapter_bytes, make_job, run_job, tone_rows, write_rows

MODEL = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 64,
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny",
    "modeling_tiny.py": b"raise SystemExit",
    "onnx/model.onnx": b"no",
}
DATA = {"data/train-00000-of-00002.jsonl": b'{"phrase": "ha", "tone": "joy"}\n', "data/test.jsonl": b"{}\n"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", tone_rows(12))


def _job(hub: Hub, rows: Path, **changes: Any) -> Any:
    return make_job(
        Path("/none"),
        rows,
        f"file://{rows.parent}/runs",
        **{"model__uri": "hf://team/tiny", "model__endpoint": hub.endpoint} | changes,
    )


def _fetch(job: Any, scratch: Path, environ: dict[str, str] | None = None, *, commits: dict[str, str] | None = None) -> Any:
    return fetch_sources(job, environ or {}, scratch, Board(None), commits)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delays are measured elsewhere."""
    real = HubRepository.__init__
    monkeypatch.setattr(
        HubRepository, "__init__", lambda self, *a, **k: real(self, *a, **{"delays": (0.0, 0.0), "sleep": lambda _: None} | k)
    )


@pytest.mark.parametrize(
    ("uri", "dataset", "expected"),
    [
        ("hf://team/tiny", False, ("model", "team/tiny", "")),
        ("hf://team/rows/data/a.jsonl", True, ("dataset", "team/rows", "data/a.jsonl")),
        ("hf://datasets/team/rows/a.jsonl", True, ("dataset", "team/rows", "a.jsonl")),
    ],
)
def test_addresses(uri: str, dataset: bool, expected: tuple[Any, ...]) -> None:
    assert dataclasses.astuple(HubAddress.parse(uri, dataset=dataset)) == expected


def test_a_model_is_read_at_one_commit_without_code_or_other_formats(hub: Hub, rows: Path, tmp_path: Path) -> None:
    commit = hub.add("team/tiny", MODEL)
    sources = _fetch(_job(hub, rows), tmp_path / "scratch")
    found = {path.name: path.read_bytes() for path in sources.model.folder.iterdir()}
    assert found == {name: MODEL[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert (sources.model.revision, sources.model.license, sources.commits) == (commit, "apache-2.0", {"model": commit})


def test_a_later_attempt_reads_the_commit_that_the_run_began_with(hub: Hub, rows: Path, tmp_path: Path) -> None:
    first = hub.add("team/tiny", MODEL)
    pinned = _fetch(_job(hub, rows), tmp_path / "one").commits
    second = hub.repositories["team/tiny"].commit({**MODEL, "model.safetensors": b"other weights"})
    assert _fetch(_job(hub, rows), tmp_path / "two", commits=pinned).model.revision == first
    assert _fetch(_job(hub, rows), tmp_path / "three").model.revision == second
    assert _fetch(_job(hub, rows, model__revision=first), tmp_path / "four").model.revision == first


def test_a_pod_that_starts_again_in_place_downloads_nothing(hub: Hub, rows: Path, tmp_path: Path) -> None:
    hub.add("team/tiny", MODEL)
    before = _fetch(_job(hub, rows), tmp_path)
    hub.seen()
    hub.down = True
    after = _fetch(_job(hub, rows), tmp_path, commits=dict(before.commits))
    assert (after.model.digest, after.model.license) == (before.model.digest, "apache-2.0")
    assert hub.seen() == []


def test_a_shared_cache_serves_other_pods_and_outlives_the_hub(
    hub: Hub, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "MODEL_CACHE_DIR", str(tmp_path / "claim"))
    commit = hub.add("team/tiny", MODEL)
    job = _job(hub, rows, model__cache={"claimName": "models"})
    first = _fetch(job, tmp_path / "pod-1")
    assert first.model.folder.is_relative_to(tmp_path / "claim")
    hub.seen()
    second = _fetch(job, tmp_path / "pod-2")  # a job that begins asks what main is now, and nothing else
    assert (second.model.digest, len(hub.seen())) == (first.model.digest, 1)
    resumed = _fetch(job, tmp_path / "pod-3", commits={"model": commit})
    assert (resumed.model.digest, hub.seen()) == (first.model.digest, [])
    hub.down = True
    offline = _fetch(job, tmp_path / "pod-4")
    assert (offline.model.revision, offline.model.digest) == (commit, first.model.digest)


def test_a_hub_with_hiccups_is_asked_again_and_one_that_is_away_is_the_platforms(hub: Hub, rows: Path, tmp_path: Path) -> None:
    hub.add("team/tiny", MODEL)
    hub.failing = 2
    assert _fetch(_job(hub, rows), tmp_path / "one").model.bytes
    hub.down = True
    with pytest.raises(StorageUnavailableError, match=r"reading failed at model\.uri hf://team/tiny"):
        _fetch(_job(hub, rows), tmp_path / "two")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("asked", ["info", pytest.param("tree", marks=pytest.mark.full)])  # the client's own pauses: 23 s
def test_a_hub_that_takes_calls_and_says_nothing_is_not_waited_for(rows: Path, tmp_path: Path, asked: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        job = _job(Hub(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", cdn=""), rows)
        access = resolve_access(job.spec, "model", {})
        repository = HubRepository(access, revision=None, cache=tmp_path, offline=False, delays=(), silence=0.3)
        if asked == "tree":
            repository = repository.at("0" * 40)
        with pytest.raises(StorageUnavailableError, match="timed out"):
            _ = repository.commit if asked == "info" else repository.list()


def test_a_file_that_is_listed_and_not_given_out_is_the_sources_fault(hub: Hub, rows: Path, tmp_path: Path) -> None:
    """It ended as an unknown crash, again and again."""
    commit = hub.add("team/tiny", MODEL)
    access = resolve_access(_job(hub, rows).spec, "model", {})
    repository = HubRepository(access, revision=None, cache=tmp_path / "hub", offline=False)
    assert "tokenizer.json" in {item.key for item in repository.list()}
    del hub.repositories["team/tiny"].commits[commit]["tokenizer.json"]
    assert not repository.get_to_file("tokenizer.json", tmp_path / "tokenizer.json")
    assert repository.get_to_file("config.json", tmp_path / "config.json")


def test_a_byte_flipped_on_the_way_is_noticed_and_fetched_anew(hub: Hub, rows: Path, tmp_path: Path) -> None:
    hub.add("team/tiny", MODEL)
    hub.spoiled = {"model.safetensors"}
    sources = _fetch(_job(hub, rows), tmp_path / "scratch")
    assert (sources.model.folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert not hub.spoiled


@pytest.mark.parametrize(
    ("kind", "changes", "token", "told"),
    [
        (
            {},
            {"model__uri": "hf://team/tinny"},
            None,
            (Reason.MODEL_NOT_FOUND, r"knows no model 'team/tinny'.*or it is private: then put"),
        ),
        (
            {"private": True},
            {},
            "hf_other",
            (Reason.MODEL_NOT_FOUND, r"or the HF_TOKEN in the Secret of model\.secretRef may not see"),
        ),
        ({"gated": True}, {}, None, (Reason.STORAGE_ACCESS_DENIED, r"is gated: ask for access at .*, and put an HF_TOKEN of that")),
        (
            {"gated": True},
            {},
            "hf_other",
            (Reason.STORAGE_ACCESS_DENIED, r"is gated: its owner has not let in the account of the HF_"),
        ),
        (
            {},
            {"model__revision": "v9"},
            None,
            (Reason.MODEL_NOT_FOUND, r"has no revision 'v9': write a branch, a tag or a commit"),
        ),
        ({}, {}, "hf_bad", (Reason.STORAGE_ACCESS_DENIED, r"was denied: check the HF_TOKEN in the Secret of model\.secretRef")),
    ],
    ids=["missing", "private", "gated, no token", "gated, another token", "revision", "bad token"],
)
def test_what_cannot_be_read_is_told(  # noqa: PLR0917
    hub: Hub, rows: Path, tmp_path: Path, kind: Any, changes: Any, token: str | None, told: Any
) -> None:
    reason, sentence = told
    hub.add("team/tiny", MODEL, let_in=("hf_good",), **kind)
    job = _job(hub, rows, **changes, **({"model__secretRef": {"name": "hub"}} if token else {}))
    with pytest.raises(ModelError, match=sentence) as caught:
        _fetch(job, tmp_path / "scratch", {"OLIVINE_MODEL_HF_TOKEN": token} if token else {})
    assert caught.value.reason is reason
    assert caught.value.exit_code == 12
    assert len(caught.value.message) < 1024


def test_a_token_that_was_let_in_reads_what_is_gated_and_goes_to_no_cdn(hub: Hub, rows: Path, tmp_path: Path) -> None:
    hub.add("team/tiny", MODEL, gated=True, let_in=("hf_good",))
    job = _job(hub, rows, model__secretRef={"name": "hub"})
    assert _fetch(job, tmp_path / "scratch", {"OLIVINE_MODEL_HF_TOKEN": "hf_good"}).model.bytes
    access = resolve_access(job.spec, "model", {"OLIVINE_MODEL_HF_TOKEN": "hf_good"})
    assert "hf_good" not in repr(access)


def test_rows_come_from_a_dataset_by_split(hub: Hub, rows: Path, tmp_path: Path) -> None:
    hub.add("team/tiny", MODEL)
    shards = {
        "data/train-00000-of-00002.jsonl": "".join(json.dumps(row) + "\n" for row in tone_rows(12)[:6]).encode(),
        "data/train-00001-of-00002.jsonl": "".join(json.dumps(row) + "\n" for row in tone_rows(12)[6:]).encode(),
        "data/validation-00000-of-00001.jsonl": json.dumps({"phrase": "v", "tone": "joy"}).encode(),
    }
    commit = hub.add("datasets/team/rows", shards)
    uri = {"uri": "hf://team/rows", "endpoint": hub.endpoint}
    changes: dict[str, Any] = {"data__validationFraction": None, "data__stratifyBy": None}
    job = _job(hub, rows, **changes, data__train=uri | {"split": "train[2:50%]+train[-1:]"}, data__validation=uri)
    sources = _fetch(job, tmp_path / "scratch")
    assert [row.fields for row in sources.rows.split.train] == [tone_rows(12)[index] for index in (2, 3, 4, 5, 11)]
    assert [row.fields["phrase"] for row in sources.rows.split.validation] == ["v"]
    assert sources.commits["train"] == sources.commits["validation"] == commit
    assert not any("train-" in request for request in hub.seen() if "validation" in request)
    one_file = uri | {"uri": "hf://datasets/team/rows/data/train-00001-of-00002.jsonl"}
    job = _job(hub, rows, **changes, data__train=one_file)
    assert len(_fetch(job, tmp_path / "other").rows.split.train) == 6
    for wrong, sentence in (
        (uri | {"split": "dev"}, r"data\.train\.split asks for 'dev', but .* it has train, validation; name one of them"),
        (one_file | {"split": "test"}, r"names one file, which is all of the split 'train'"),
        (uri | {"uri": "hf://team/none"}, r"knows no dataset 'team/none'"),
        (uri | {"uri": "hf://team/rows/nothing"}, r"is no file of rows, nor a folder with any"),
        (uri | {"uri": "hf://team/rows/data/x.jsonl"}, r"x\.jsonl does not exist; beside it there are: train-00000"),
    ):
        with pytest.raises(DataError, match=sentence):
            _fetch(_job(hub, rows, **changes, data__train=wrong), tmp_path / "wrong")


def test_parquet_shards_come_as_large_files(hub: Hub, rows: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    hub.add("team/tiny", MODEL)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(tone_rows(10)), tmp_path / "shard")
    hub.add("datasets/team/rows", {"data/train-00000-of-00001.parquet": (tmp_path / "shard").read_bytes()})
    train = {"uri": "hf://team/rows", "endpoint": hub.endpoint, "split": "train[:40%]"}
    job = _job(hub, rows, data__train=train, data__validationFraction=None, data__stratifyBy=None)
    assert [row.fields for row in _fetch(job, tmp_path / "scratch").rows.split.train] == tone_rows(4)


def test_a_server_that_is_no_hub_is_told(rows: Path, tmp_path: Path) -> None:
    import http.server
    import threading

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Welcome</html>")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        job = make_job(Path("/none"), rows, f"file://{tmp_path}/runs", model__uri="hf://team/tiny", model__endpoint=endpoint)
        with pytest.raises(ModelError, match=r"does not answer as a hub does .*: correct model\.endpoint"):
            _fetch(job, tmp_path / "scratch")
    finally:
        server.shutdown()
        server.server_close()


def test_the_clients_own_cache_serves_who_may_not_ask_the_hub(hub: Hub, rows: Path, tmp_path: Path) -> None:
    """An air-gapped cluster: a volume with the hub's cache, HF_HUB_CACHE and HF_HUB_OFFLINE in pods.env."""
    from huggingface_hub import constants, snapshot_download

    commit = hub.add("team/tiny", MODEL)
    constants.HF_HUB_OFFLINE, before = False, constants.HF_HUB_OFFLINE
    try:
        snapshot_download("team/tiny", endpoint=hub.endpoint, cache_dir=tmp_path / "volume", token=False)
    finally:
        constants.HF_HUB_OFFLINE = before
    hub.seen()
    environ = {"HF_HUB_CACHE": str(tmp_path / "volume"), names.ENV_HUB_OFFLINE: "1"}
    sources = _fetch(_job(hub, rows), tmp_path / "scratch", environ)
    assert (sources.model.revision, sources.model.license, hub.seen()) == (commit, "apache-2.0", [])
    with pytest.raises(ModelError, match=r"'v9' is not in the hub's cache at .*volume, and HF_HUB_OFFLINE forbids"):
        _fetch(_job(hub, rows, model__revision="v9"), tmp_path / "other", environ)


def test_a_run_from_the_hub_resumes_on_its_commit_while_the_hub_is_away(
    hub: Hub, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.trainer.support import kill_in_step

    monkeypatch.setattr(names, "MODEL_CACHE_DIR", str(tmp_path / "claim"))
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()} | {"README.md": b"---\nlicense: mit\n---\n"}
    commit = hub.add("team/tiny", files)
    calm = run_job(_job(hub, rows, storage__uri=f"file://{tmp_path}/calm"), tmp_path / "calm-scratch")
    job = _job(hub, rows, model__cache={"claimName": "models"}, model__allowedLicenses=["MIT"])
    kill_in_step(job, 5, tmp_path / "pod-1")
    hub.repositories["team/tiny"].commit({**files, "model.safetensors": b"another"})
    hub.seen()
    hub.down = True
    published = run_job(job, tmp_path / "pod-2")
    assert hub.seen() == []
    assert published.snapshot.resumed_from_step == 3
    model = published.snapshot.resolved.model
    assert model is not None
    assert (model.revision, model.license) == (commit, "mit")
    assert adapter_bytes(published) == adapter_bytes(calm)


def test_a_whole_pod_trains_a_gated_model_on_a_dataset_of_the_hub(hub: Hub, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Through PID 1, whose workers forbid the hub to the libraries, and with the Secret's key as a pod finds it."""
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()} | {"README.md": b"---\nlicense: mit\n---\n"}
    commit = hub.add("team/tiny", files, gated=True, let_in=("hf_good",))
    hub.add("datasets/team/rows", {"train.jsonl": "".join(json.dumps(row) + "\n" for row in tone_rows(24)).encode()})
    job = _job(
        hub,
        rows,
        model__secretRef={"name": "hub"},
        model__allowedLicenses=["mit"],
        data__train={"uri": "hf://team/rows", "endpoint": hub.endpoint, "split": "train[:12]"},
        training__maxSteps=2,
    )
    pod = Trainer(tmp_path / "pod", job, HF_HUB_OFFLINE="", OLIVINE_MODEL_HF_TOKEN="hf_good")
    code, message = pod.end(120)
    assert code == 0, pod.log.read_text()
    assert message.snapshot is not None
    model = message.snapshot.resolved.model
    assert model is not None
    assert (model.revision, model.license) == (commit, "mit")
    assert "hf_good" not in pod.log.read_text()


def test_errors_are_trainer_errors() -> None:
    """Each has an exit code: what escapes would be an unknown crash."""
    from olivine_trainer.storage.hub_failures import EntryMissingError, HubUnavailableError

    assert issubclass(HubUnavailableError, StorageUnavailableError)
    assert issubclass(EntryMissingError, TrainerError)
