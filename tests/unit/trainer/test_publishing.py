"""The second place of what is finished: a prefix of a store, or a repository of a hub; the same twice changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError, StorageUnavailableError, SupersededError
from olivine_trainer.loop.claim import open_run
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.hub_client import HubClient
from olivine_trainer.storage.model_card import ModelCard
from olivine_trainer.storage.publishing import publish_folder, require_writable
from olivine_trainer.storage.store import Store
from tests.support.hub import Hub, running_hub
from tests.unit.trainer.support import KilledError, StopFlag, local_access, make_job, run_job, tone_rows, write_rows
from tests.unit.trainer.test_outputs import job_of

TOKEN = "hf_writer"
REPOSITORY = "team/tone"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.members["team"] = (TOKEN,)
        yield hub


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delays are measured elsewhere."""
    real = HubClient.__init__
    monkeypatch.setattr(
        HubClient, "__init__", lambda self, *a, **k: real(self, *a, **k | {"delays": (0.0, 0.0), "sleep": lambda _: None})
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", tone_rows(12))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small one and a large one."""
    made = tmp_path / "finished"
    (made / "deep").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "deep" / "weights.safetensors").write_bytes(bytes(range(256)) * 8)
    return made


def hub_access(hub: Hub, token: str | None = TOKEN, repository: str = REPOSITORY) -> Access:
    return Access(
        "publish",
        f"hf://{repository}",
        hub.endpoint,
        None,
        None,
        None,
        region="",
        ca_bundle=None,
        keys={"HF_TOKEN": token} if token else {},
    )


def on_hub(hub: Hub, repository: str = REPOSITORY) -> dict[str, bytes]:
    found = hub.repositories[repository]
    return found.commits[found.refs["main"]]


def test_a_folder_becomes_the_repository_with_one_commit_and_the_second_time_with_none(hub: Hub, folder: Path) -> None:
    access = hub_access(hub)
    placed = publish_folder(access, folder, "ns/name", {"kind": "Adapter"}, card=b"# Tone")
    found = on_hub(hub)
    assert sorted(found) == [".gitattributes", "README.md", "config.json", "deep/weights.safetensors", "manifest.json"]
    assert found["deep/weights.safetensors"] == bytes(range(256)) * 8
    assert json.loads(found["manifest.json"])["kind"] == "Adapter"
    assert placed.commit == hub.repositories[REPOSITORY].refs["main"]
    assert hub.repositories[REPOSITORY].private  # made by us: who may see it is the owner's choice
    before = len(hub.repositories[REPOSITORY].commits)
    assert publish_folder(access, folder, "ns/name", {"kind": "Adapter"}, card=b"# Tone") == placed
    assert len(hub.repositories[REPOSITORY].commits) == before


def test_what_is_not_part_of_it_any_more_leaves_the_repository(hub: Hub, folder: Path) -> None:
    hub.add(REPOSITORY, {"old.bin": b"x", "README.md": b"mine", ".gitattributes": b"y"}, writers=(TOKEN,))
    publish_folder(hub_access(hub), folder, "ns/name", {})
    assert sorted(on_hub(hub)) == [".gitattributes", "README.md", "config.json", "deep/weights.safetensors", "manifest.json"]
    assert on_hub(hub)["README.md"] == b"mine"  # without a card of ours, theirs stays


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: Hub, folder: Path) -> None:
    hub.lost_answers = 1
    placed = publish_folder(hub_access(hub), folder, "ns/name", {})
    assert len(hub.repositories[REPOSITORY].commits) == 2  # the first is that of the new repository
    assert placed.commit == hub.repositories[REPOSITORY].refs["main"]


def test_a_hub_that_is_away_for_a_moment_is_asked_again_and_one_that_stays_away_is_infrastructure(hub: Hub, folder: Path) -> None:
    hub.failing = 1
    publish_folder(hub_access(hub), folder, "ns/name", {})
    hub.down = True
    with pytest.raises(
        StorageUnavailableError, match=r"making the repository failed at outputs\.publish\.uri hf://team/tone"
    ) as caught:
        publish_folder(hub_access(hub), folder, "ns/name", {})
    assert caught.value.exit_code == 30


DENIED: dict[str, tuple[str | None, str, str, Reason]] = {
    "no token": (
        None,
        "team/tone",
        r"write access .* was denied: put an HF_TOKEN that may write there",
        Reason.STORAGE_ACCESS_DENIED,
    ),
    "a reader's token": ("hf_reader", "team/tone", "write access .* was denied: check the HF_TOKEN", Reason.STORAGE_ACCESS_DENIED),
    "another's organisation": (TOKEN, "other/tone", "write access .* was denied: check the HF_TOKEN", Reason.STORAGE_ACCESS_DENIED),
    "another's repository": (TOKEN, "other/there", "write access .* was denied: check the HF_TOKEN", Reason.STORAGE_ACCESS_DENIED),
    "a bad token": ("hf_bad", "team/tone", "denied", Reason.STORAGE_ACCESS_DENIED),
}


@pytest.mark.parametrize("case", DENIED)
def test_who_may_not_write_is_told_before_training(hub: Hub, case: str) -> None:
    token, repository, told, reason = DENIED[case]
    hub.add("other/there", {"x": b"y"})
    with pytest.raises(ConfigurationError, match=told) as caught:
        require_writable(hub_access(hub, token, repository), "ns/name")
    assert (caught.value.reason, caught.value.exit_code) == (reason, 10)
    assert "outputs.publish" in caught.value.message


def test_what_the_hub_does_not_take_is_told_in_its_own_words(hub: Hub, folder: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r'does not take what goes to outputs.publish.uri .*"license" must be one of a list'
    ):
        publish_folder(hub_access(hub), folder, "ns/name", {}, card=b"---\nlicense: nonsense\n---\n")


def test_a_hub_that_must_not_be_asked_is_told(hub: Hub) -> None:
    with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE forbids to ask it"):
        require_writable(hub_access(hub), "ns/name", hub_offline=True)
    assert hub.seen() == []


def test_a_folder_in_a_store_is_replaced_manifest_last(folder: Path, tmp_path: Path) -> None:
    access = local_access(f"file://{tmp_path}/second", "publish")
    placed = publish_folder(access, folder, "ns/name", {"kind": "Adapter"})
    target = tmp_path / "second/ns/name"
    assert placed.uri == f"file://{target}"
    assert json.loads((target / "manifest.json").read_text())["kind"] == "Adapter"
    written = (target / "config.json").stat().st_mtime_ns
    publish_folder(access, folder, "ns/name", {"kind": "Adapter"})
    assert (target / "config.json").stat().st_mtime_ns == written  # the same again: nothing is written

    (folder / "config.json").rename(folder / "settings.json")
    asked: list[bool] = []

    def look() -> None:
        asked.append((target / "manifest.json").exists())
        if len(asked) == 3:
            raise SupersededError("another attempt")

    with pytest.raises(SupersededError):
        publish_folder(access, folder, "ns/name", {}, may_write=look)
    assert asked == [True, False, False]  # half a folder is none
    publish_folder(access, folder, "ns/name", {})
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert files == ["deep/weights.safetensors", "manifest.json", "settings.json"]


def test_a_missing_bucket_is_told_before_training(s3: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"outputs\.publish\.uri s3://nowhere/x .* does not exist: create it") as caught:
        require_writable(s3.access("s3://nowhere/x", role="publish"), "ns/name")
    assert caught.value.reason is Reason.STORAGE_NOT_FOUND


def test_a_run_is_published_to_another_prefix_of_s3(tiny_model: Path, rows: Path, tmp_path: Path, s3: Any) -> None:
    publish = {"uri": "s3://bucket/second", "endpoint": s3.endpoint, "secretRef": {"name": "keys"}}
    environ = {"OLIVINE_PUBLISH_AWS_ACCESS_KEY_ID": s3.key, "OLIVINE_PUBLISH_AWS_SECRET_ACCESS_KEY": s3.secret}
    job = job_of(tiny_model, rows, tmp_path / "runs", outputs={"merged": True, "publish": publish})
    published: Any = run_job(job, tmp_path / "scratch", environ=environ)
    store = Store(s3.access("s3://bucket/second/team/tone"))
    assert sorted({item.key.partition("/")[0] for item in store.list()}) == ["adapter", "model"]
    for one in published.snapshot.artifacts:
        told = store.get(f"{one.kind.lower()}/manifest.json")
        assert told is not None
        assert told.data == (Path(one.uri.removeprefix("file://")) / "manifest.json").read_bytes()


def test_a_run_is_published_to_a_hub_with_a_card_and_only_then_is_over(
    hub: Hub, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    publish = {"uri": f"hf://{REPOSITORY}", "endpoint": hub.endpoint, "secretRef": {"name": "hub"}}
    environ = {"OLIVINE_PUBLISH_HF_TOKEN": TOKEN}
    job = job_of(tiny_model, rows, tmp_path / "runs", outputs={"merged": True, "publish": publish})

    class Dies(StopFlag):
        """Before the merged model is made: nothing is on the hub yet but the repository."""

        def check(self) -> None:
            if list(tmp_path.glob("runs/team/tone/u1/artifacts/*/manifest.json")):
                raise KilledError

    with pytest.raises(KilledError):
        run_job(job, tmp_path / "first", stop=Dies(), environ=environ)
    assert list(on_hub(hub)) == [".gitattributes"]
    run_job(job, tmp_path / "second", environ=environ)
    found = on_hub(hub)
    assert {"adapter_config.json", "adapter_model.safetensors", "manifest.json"} < found.keys()
    assert {"model/config.json", "model/model.safetensors", "model/manifest.json"} < found.keys()
    front = yaml.safe_load(found["README.md"].decode().split("---")[1])
    assert front == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["olivine", "lora"]}
    assert b"| evalLoss |" in found["README.md"] or b"| eval_loss |" in found["README.md"]
    assert len(hub.repositories[REPOSITORY].commits) == 2


def test_a_place_that_refuses_in_the_end_costs_nothing_of_what_was_trained(
    hub: Hub, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    publish = {"uri": f"hf://{REPOSITORY}", "endpoint": hub.endpoint, "secretRef": {"name": "hub"}}
    job = job_of(tiny_model, rows, tmp_path / "runs", outputs={"publish": publish})

    class Revoked(StopFlag):
        def check(self) -> None:
            hub.repositories[REPOSITORY].writers = ()

    with pytest.raises(ConfigurationError, match=r"write access .* was denied") as caught:
        run_job(job, tmp_path / "scratch", stop=Revoked(), environ={"OLIVINE_PUBLISH_HF_TOKEN": TOKEN})
    kept = Path(caught.value.message.partition("what was trained is kept at file://")[2])
    assert (kept / "adapter_model.safetensors").exists()
    assert open_run(job, {}).published() is None


def test_where_a_copy_goes_is_no_input_of_the_training(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    from olivine_api.status import Resolved

    one = make_job(tiny_model, rows, "file:///a", outputs={"merged": True})
    two = make_job(tiny_model, rows, "file:///a", outputs={"merged": True, "publish": {"uri": "s3://b/c"}})
    three = make_job(tiny_model, rows, "file:///a", outputs={"merged": False})
    assert one.input_digest(Resolved()) == two.input_digest(Resolved()) != three.input_digest(Resolved())


@pytest.mark.parametrize(
    ("told", "front"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("My Own Terms", {"license": "other", "license_name": "my own terms"}),
        (None, {}),
    ],
)
def test_a_card_names_base_and_licence_as_the_hub_reads_them(told: str | None, front: dict[str, str]) -> None:
    card = ModelCard(title="tone", base_uri="hf://org/base", method="LoRA", library="peft", license=told)
    found = yaml.safe_load(card.render().decode().split("---")[1])
    assert found["base_model"] == "org/base"
    assert {key: value for key, value in found.items() if key.startswith("license")} == front
