"""Rows and models by scheme: which files, which splits, which rows; licences and code of a model's own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_trainer.data.selection import parse_selection
from olivine_trainer.errors import ConfigurationError, DataError, ModelError, TrainerError
from olivine_trainer.loop.claim import fetch_sources
from olivine_trainer.reporting.board import Board
from olivine_trainer.storage.addresses import check_uri
from olivine_trainer.storage.card import license_of, read_card, require_license
from olivine_trainer.storage.failures import Place, Role
from olivine_trainer.storage.fetch import parent_of_rows
from olivine_trainer.storage.splits import AmbiguousFilesError, files_by_split
from olivine_trainer.storage.store import Store
from tests.unit.trainer.support import make_job, run_job, tone_rows, write_rows

TEN = {"train": list(range(10)), "test": list("abc")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", list(range(10))),
        ("train[:4]", [0, 1, 2, 3]),
        ("train[8:]", [8, 9]),
        ("train[-3:]", [7, 8, 9]),
        ("train[-3:-1]", [7, 8]),
        ("train[10%:20%]", [1]),
        ("train[:33%]", [0, 1, 2]),
        ("train[-20%:]", [8, 9]),
        ("train[8:99]", [8, 9]),
        ("train[:2] + test[1:]", [0, 1, "b", "c"]),
        ("train[:1]+train[:1]", [0, 0]),
    ],
)
def test_a_selection_takes_the_rows_that_datasets_would(text: str, expected: list[Any]) -> None:
    assert parse_selection(text, "data.train").take(TEN, "data.train") == expected


def test_percentages_cut_without_gap_or_overlap() -> None:
    rows = {"train": list(range(37))}
    cut = [parse_selection(f"train[{low}%:{low + 10}%]", "f").take(rows, "f") for low in range(0, 100, 10)]
    assert [row for part in cut for row in part] == rows["train"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train[4]", r"is 'train\[4\]', which is no selection of rows: write train, train\[:4096\]"),
        ("", "which is no selection"),
        ("train+", "which is no selection"),
        ("train[a:b]", "which is no selection"),
        ("train[:101%]", "101% is more than all"),
        ("train[20:30]", r"but train\[20:30\] has no rows: train has 10"),
        ("train[:5]+test[3:]", r"but test\[3:\] has no rows: test has 3"),
    ],
)
def test_a_selection_that_cannot_be_is_told(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        parse_selection(text, "data.train").take(TEN, "data.train")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["train.jsonl", "test.jsonl"], {"train": ["train.jsonl"], "test": ["test.jsonl"]}),
        (["data/train-00000-of-00001.parquet", "data/extra-00000-of-00001.parquet"], {"train": 0, "extra": 1}),
        (["b.jsonl", "a.jsonl", "README.md", ".hidden.jsonl", "dataset_infos.json"], {"train": ["a.jsonl", "b.jsonl"]}),
        (["training/x.csv", "dev/y.csv"], {"train": ["training/x.csv"], "validation": ["dev/y.csv"]}),
        (["my_val.json", "eval-2.json"], {"validation": ["my_val.json"], "test": ["eval-2.json"]}),
        (["strain.jsonl"], {"train": ["strain.jsonl"]}),  # no keyword by itself: all files are train
        (["train.jsonl", "notes.json"], {"train": ["train.jsonl"]}),
        (["notes.txt"], {}),
    ],
)
def test_files_are_split_by_their_names(paths: list[str], expected: dict[str, Any]) -> None:
    wanted = {split: [paths[one]] if isinstance(one, int) else one for split, one in expected.items()}
    assert files_by_split(paths, {}) == wanted


def test_a_card_that_names_files_is_followed() -> None:
    paths = ["en/a.jsonl", "en/b.jsonl", "de/a.jsonl", "en/deep/c.jsonl"]
    card = {
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "en/*.jsonl"}, {"split": "x", "path": ["de/**"]}]}
        ]
    }
    assert files_by_split(paths, card) == {"train": ["en/a.jsonl", "en/b.jsonl"], "x": ["de/a.jsonl"]}
    card = {"configs": [{"config_name": "en", "data_files": "en/**"}, {"config_name": "de", "data_files": "de/*", "default": True}]}
    assert files_by_split(paths, card) == {"train": ["de/a.jsonl"]}
    card["configs"][1].pop("default")
    with pytest.raises(AmbiguousFilesError, match=r"several configurations \(en, de\)"):
        files_by_split(paths, card)
    with pytest.raises(AmbiguousFilesError, match=r"split 'train' has files of several formats \(\.csv, \.jsonl\)"):
        files_by_split(["train.csv", "train.jsonl"], {})


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/rows.jsonl", ("s3://bucket/a", "rows.jsonl")),
        ("s3://bucket/a/rows", ("s3://bucket/a/rows", None)),
        ("pvc://claim/rows.csv", ("pvc://claim", "rows.csv")),
        ("hf://team/rows.json", ("hf://team/rows.json", None)),  # a repository may be called so
        ("hf://team/rows/x.json", ("hf://team/rows", "x.json")),
    ],
)
def test_a_file_is_told_from_a_folder(uri: str, expected: tuple[str, str | None]) -> None:
    assert parent_of_rows(uri) == expected


@pytest.mark.parametrize(
    ("uri", "role", "fault"),
    [
        ("http://host/x", "model", r"whose scheme is not served: write one of s3://bucket/path, gs://"),
        ("hf://tiny", "model", r"'tiny' is no name of a repository: write hf://organisation/name"),
        ("hf://team/runs", "storage", r"a hub only gives models and data"),
        ("pvc://Claim/x", "model", r"'Claim' is no name of a PersistentVolumeClaim: write pvc://claim/path"),
        ("az://bad container/x", "train", r"no name of a container: write az://container/path"),
        ("gs://bucket", "train", r"it names no file: write gs://bucket/path"),
        ("file://host/x", "train", r"'host' is no name of a machine to read files from: write file:///path"),
    ],
)
def test_an_address_that_cannot_be_is_told(uri: str, role: Role, fault: str) -> None:
    with pytest.raises(TrainerError, match=fault) as caught:
        check_uri(Place(role, uri, None))
    assert caught.value.reason is Reason.INVALID_SPEC


def _fetch(job: Any, scratch: Path, **environ: str) -> Any:
    return fetch_sources(job, environ, scratch, Board(None))


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(names, "CLAIMS_DIR", str(tmp_path / "claims"))
    (tmp_path / "claims" / "team-data").mkdir(parents=True)
    return tmp_path / "claims"


def test_a_run_lives_on_claims_alone(claims: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Model, rows and storage on volumes: nothing else is needed."""
    shutil.copytree(tiny_model, claims / "team-data" / "tiny")
    (claims / "team-data" / "rows").mkdir()
    write_rows(claims / "team-data" / "rows" / "train.jsonl", tone_rows(24))
    write_rows(claims / "team-data" / "rows" / "validation.jsonl", tone_rows(6))
    folder = {"uri": "pvc://team-data/rows"}
    job = make_job(
        Path("/"),
        Path("/"),
        "pvc://team-data/runs",
        model__uri="pvc://team-data/tiny",
        data__train=folder | {"split": "train[:12]"},
        data__validation=folder | {"split": "validation"},
        data__validationFraction=None,
        data__stratifyBy=None,
        training__maxSteps=2,
    )
    published = run_job(job, tmp_path / "scratch")
    data = published.snapshot.resolved.data
    assert data is not None
    assert (data.rows, data.validation_rows) == (6, 6)  # the other six are validation rows, too
    assert published.snapshot.artifacts[0].uri.startswith("pvc://team-data/runs/team/tone/u1/artifacts/")
    assert (claims / "team-data/runs/team/tone/u1/run/published.json").exists()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("pvc://team-date/rows.jsonl", r"no PersistentVolumeClaim 'team-date' is mounted in this pod at .*: create the claim"),
        ("pvc://team-data/row.jsonl", r"row\.jsonl does not exist; beside it there are: rows\.jsonl"),
        ("pvc://team-data/nothing", r"is no file of rows, nor a folder with any \(\.jsonl, .*, and it is empty or does not exist"),
    ],
)
def test_a_wrong_claim_or_path_is_told(claims: Path, tmp_path: Path, uri: str, sentence: str) -> None:
    write_rows(claims / "team-data" / "rows.jsonl", tone_rows(4))
    job = make_job(Path("/none"), Path("/none"), f"file://{tmp_path}/runs", data__train={"uri": uri})
    with pytest.raises(DataError, match=sentence):
        _fetch(job, tmp_path / "scratch")


def test_a_folder_of_many_files_comes_from_s3(s3: Any, tmp_path: Path) -> None:
    store = Store(s3.access(f"s3://bucket/{tmp_path.name}/rows", role="train"))
    rows = tone_rows(9)
    for number in range(3):
        lines = "".join(json.dumps(row) + "\n" for row in rows[3 * number : 3 * number + 3])
        store.put(f"data/train-{number:05}-of-00003.jsonl", lines.encode())
    store.put("data/test-00000-of-00001.jsonl", b"{}")
    job = make_job(
        _empty_model(tmp_path),
        tmp_path,
        "s3://bucket/runs",
        data__train={"uri": f"s3://bucket/{tmp_path.name}/rows", "split": "train[2:7]"},
        data__validationFraction=None,
        data__stratifyBy=None,
    )
    environ = {
        "OLIVINE_STORAGE_AWS_ACCESS_KEY_ID": s3.key,
        "OLIVINE_STORAGE_AWS_SECRET_ACCESS_KEY": s3.secret,
        "OLIVINE_STORAGE_AWS_ENDPOINT_URL": s3.endpoint,
    }
    sources = _fetch(job, tmp_path / "scratch", **environ)
    assert [(row.number, row.fields) for row in sources.rows.split.train] == [(index + 1, rows[index]) for index in range(2, 7)]
    fetched = sorted(path.name for path in (tmp_path / "scratch").rglob("*.jsonl"))
    assert not any("test" in name for name in fetched)


def _empty_model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: [mit, cc-by-4.0]", "mit, cc-by-4.0"),
        ("license: other\nlicense_name: llama3.2", "llama3.2"),
        ("license: other", "other"),
        ("language: en", None),
        ("license: [unclosed", None),
        ("- a list", None),
    ],
)
def test_a_licence_is_read_from_the_card(tmp_path: Path, front: str, expected: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\nlicense: not this\n")
    assert license_of(read_card(tmp_path / "README.md")) == expected


def test_a_card_without_front_matter_names_no_licence(tmp_path: Path) -> None:
    assert license_of(read_card(tmp_path / "none.md")) is None
    (tmp_path / "README.md").write_text("# Title\n---\nlicense: mit\n---\n")
    assert license_of(read_card(tmp_path / "README.md")) is None


@pytest.mark.parametrize(
    ("found", "allowed", "fine"),
    [
        ("MIT", ["apache-2.0", "mit"], True),
        ("mit, cc-by-4.0", ["mit"], False),  # both bind
        (None, ["mit"], False),
        (None, None, True),
        ("gpl-3.0", None, True),
    ],
)
def test_every_licence_of_the_card_must_be_allowed(found: str | None, allowed: list[str] | None, fine: bool) -> None:
    if fine:
        require_license(found, allowed, "s3://m")
        return
    with pytest.raises(ModelError, match=r"model\.uri s3://m .*and model\.allowedLicenses is \[") as caught:
        require_license(found, allowed, "s3://m")
    assert caught.value.reason is Reason.LICENSE_NOT_ALLOWED


def test_another_licence_ends_the_job_before_weights_are_moved(s3: Any, tmp_path: Path) -> None:
    store = Store(s3.access(f"s3://bucket/{tmp_path.name}/m", role="model"))
    for name, content in {
        "config.json": b"{}",
        "model.safetensors": b"0" * 9,
        "README.md": b"---\nlicense: gpl-3.0\n---\n",
    }.items():
        store.put(name, content)
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(8))
    environ = {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret, "AWS_ENDPOINT_URL": s3.endpoint}
    changes: dict[str, Any] = {"model__uri": store.uri, "model__allowedLicenses": ["mit"]}
    with pytest.raises(
        ModelError, match=r"has the licence gpl-3\.0, and model\.allowedLicenses is \[mit\]: take another"
    ) as caught:
        _fetch(make_job(tmp_path, rows, f"file://{tmp_path}/runs", **changes), tmp_path / "scratch", **environ)
    assert caught.value.exit_code == 12
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    job = make_job(tmp_path, rows, f"file://{tmp_path}/runs", model__uri=store.uri)
    assert _fetch(job, tmp_path / "scratch", **environ).model.license == "gpl-3.0"
    with pytest.raises(ModelError, match="gpl"):  # what is cached already is no way around
        _fetch(make_job(tmp_path, rows, f"file://{tmp_path}/runs", **changes), tmp_path / "scratch", **environ)


def _with_own_code(model: Path, folder: Path) -> Path:
    """The tiny Llama under a type that transformers does not know, with the code for it."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "own_llama.OwnConfig", "AutoModelForCausalLM": "own_llama.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own_llama.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder


def test_code_of_a_models_own_runs_only_where_it_is_trusted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Any
) -> None:
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = _with_own_code(tiny_model, tmp_path / "own")
    store = Store(s3.access(f"s3://bucket/{tmp_path.name}/own", role="model"))
    for path in folder.iterdir():
        store.put(path.name, path)
    environ = {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": s3.secret, "AWS_ENDPOINT_URL": s3.endpoint}
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(12))
    changes: dict[str, Any] = {"model__uri": store.uri, "training__maxSteps": 2}
    with pytest.raises(
        ModelError, match=r"brings Python code of its own \(config\.json has auto_map\), which runs only where"
    ) as caught:
        run_job(make_job(folder, rows, f"file://{tmp_path}/a", **changes), tmp_path / "scratch", environ=environ)
    assert caught.value.reason is Reason.REMOTE_CODE_NOT_TRUSTED
    changes["model__trustRemoteCode"] = True
    assert run_job(make_job(folder, rows, f"file://{tmp_path}/b", **changes), tmp_path / "scratch", environ=environ).attempt == 1


def test_azure_needs_an_account(tmp_path: Path) -> None:
    from olivine_trainer.storage.credentials import resolve_access

    job = make_job(tmp_path, tmp_path / "r.jsonl", "az://runs/x", storage__secretRef={"name": "azure"})
    with pytest.raises(ConfigurationError, match=r"no storage account is named: put AZURE_STORAGE_ACCOUNT_NAME into the Secret of"):
        resolve_access(job.spec, "storage", {"OLIVINE_STORAGE_AZURE_STORAGE_ACCOUNT_KEY": "x"})
    environ = {"OLIVINE_STORAGE_AZURE_STORAGE_ACCOUNT_NAME": "acc", "OLIVINE_STORAGE_AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"}
    access = resolve_access(job.spec, "storage", environ)
    assert dict(access.keys) == {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"}
    assert "c2VjcmV0" not in repr(access)
    Store(access)
    access = resolve_access(job.spec, "storage", environ | {"OLIVINE_STORAGE_AZURE_ACOUNT": "x"})
    with pytest.raises(
        ConfigurationError, match=r"'azure_acount' is not valid .*; remove that key from the Secret of storage\.secretRef"
    ):
        Store(access)
