"""Builds of one bundle after another in a real S3: what is new is built, the rest stays as it lies."""

import errno
import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from olivine_api.bundle_build import BuildResult, BuildStage
from olivine_api.reasons import Reason
from olivine_trainer.bundle.assembly import AdaptersRejectedError
from olivine_trainer.bundle.check import check_bundle
from olivine_trainer.bundle.pod import Told
from olivine_trainer.bundle.remote import find_bundle
from olivine_trainer.bundle.versions import prune
from olivine_trainer.cli.bundle import main
from olivine_trainer.errors import ConfigurationError, ModelError, StorageUnavailableError, SupersededError, TrainerError
from olivine_trainer.storage.manifest import describe
from tests.support.adapters import make_peft
from tests.support.bundles import Shop
from tests.support.hub import running_hub
from tests.support.models import WIDE, make_tiny
from tests.unit.trainer.support import KilledError

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 16, which onnxruntime's attention wants; a vocabulary that no projection shares."""
    return make_tiny("Llama", tmp_path_factory.mktemp("wide") / "model", intermediate_size=96, **WIDE)


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    made = {
        "one": make_peft(model, root / "one", seed=1, target_modules=_ATTENTION),
        "two": make_peft(model, root / "two", seed=2, target_modules=_ATTENTION, r=8),
        "down": make_peft(model, root / "down", seed=3, target_modules=["down_proj"]),
        "damaged": shutil.copytree(root / "one", root / "damaged"),
    }
    weights = made["damaged"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return made


@pytest.fixture
def shop(s3: Any, model: Path, adapters: dict[str, Path], tmp_path: Path) -> Shop:
    """A bundle's folder of the test's own, with all adapters beside it."""
    environ = {"OLIVINE_STORAGE_AWS_ACCESS_KEY_ID": s3.key, "OLIVINE_STORAGE_AWS_SECRET_ACCESS_KEY": s3.secret}
    made = Shop(s3.access(f"s3://bucket/{tmp_path.name}"), environ, tmp_path / "pods")
    made.scratch.mkdir()
    for name, folder in ({"model": model} | adapters).items():
        made.upload(name, folder)
    return made


def _at(shop: Shop, *names: str) -> dict[str, str]:
    return {name: f"{shop.store.uri}/{name}" for name in names}


def _version(shop: Shop, result: BuildResult, tmp_path: Path) -> Path:
    """The version as anybody fetches it, every byte checked."""
    assert result.bundle is not None
    environ = {"AWS_ACCESS_KEY_ID": str(shop.access.access_key_id), "AWS_SECRET_ACCESS_KEY": str(shop.access.secret_access_key)}
    folder = find_bundle(
        result.bundle.uri, environ | {"AWS_ENDPOINT_URL": str(shop.access.endpoint)}, tmp_path / result.bundle.digest
    )
    assert check_bundle(folder).digest == result.bundle.digest
    return folder


def _state(result: BuildResult) -> list[tuple[str, str, int | None]]:
    return [(one.name, one.state, one.version) for one in result.adapters]


def test_adding_replacing_and_removing_leave_the_base_and_the_others_alone(shop: Shop, tmp_path: Path) -> None:
    first = shop.run(shop.build(_at(shop, "one")))
    assert not first.base_reused
    bases = shop.tags("bases")
    assert any(key.endswith("model.onnx.data") for key in bases)

    added = shop.run(shop.build(_at(shop, "one", "two")))
    assert _state(added) == [("one", "Ready", 1), ("two", "Ready", 2)]
    # Other slots: what is there already is padded anew, and not measured again.
    wider = shop.run(shop.build(_at(shop, "one", "two", "down")))
    assert wider.adapters[1].model_copy(update={"bytes": 0}) == first.adapters[0].model_copy(update={"bytes": 0})
    replaced = shop.run(shop.build({**_at(shop, "one"), "two": f"{shop.store.uri}/down"}))
    assert _state(replaced) == [("one", "Ready", 1), ("two", "Ready", 4)]
    removed = shop.run(shop.build(_at(shop, "one")))

    assert all(result.base_reused for result in (added, wider, replaced, removed))
    assert shop.tags("bases") == bases  # neither built nor uploaded again
    assert removed.bundle is not None
    assert first.bundle is not None
    assert (removed.bundle.digest, removed.bundle.version) == (first.bundle.digest, 5)
    for result in (wider, replaced, removed):
        _version(shop, result, tmp_path)

    elsewhere = replace(shop, name="anew", sequence=0)
    assert wider.bundle is not None
    assert elsewhere.run(elsewhere.build(_at(shop, "one", "two", "down"))).bundle == wider.bundle.model_copy(
        update={"version": 1, "uri": f"{elsewhere.bundle.uri}/{wider.bundle.digest}"}
    )


def test_a_pod_that_finds_its_build_finished_repeats_the_result(shop: Shop) -> None:
    build = shop.build(_at(shop, "one"))
    result = shop.run(build)
    before = shop.tags()
    assert shop.run(build) == result
    written = {key for key, tag in shop.tags().items() if before.get(key) != tag}
    assert written <= {f"builds/{build.digest}.json"}


def test_a_build_of_inputs_that_cannot_have_changed_is_pointed_to_again(shop: Shop, adapters: dict[str, Path]) -> None:
    pins = {
        name: {
            "uri": shop.upload(f"artifacts/{name}", adapters[name], kind="Adapter"),
            "digest": describe(adapters[name], {}).digest,
        }
        for name in ("one", "two")
    }
    first = shop.run(shop.build(pins))
    assert first.base is not None
    model_digest = first.base.model_digest
    one = shop.run(shop.build({"one": pins["one"]}, model_digest=model_digest))
    shop.run(shop.build(pins, model_digest=model_digest))
    stages: list[BuildStage] = []
    again = shop.run(shop.build({"one": pins["one"]}, model_digest=model_digest), Told(stage=stages.append))
    assert stages == []
    assert one.bundle is not None
    assert again.bundle == one.bundle.model_copy(update={"version": 4})
    assert (shop.latest().sequence, shop.latest().version) == (4, 4)


def test_an_older_build_never_takes_the_pointer_back(shop: Shop) -> None:
    old = shop.build(_at(shop, "one"))
    new = shop.build(_at(shop, "one", "two"))

    def overtake(stage: BuildStage) -> None:
        if stage is BuildStage.PUBLISHING:
            shop.run(new)

    with pytest.raises(SupersededError, match="build 2 has published version 1: build 1 writes nothing more"):
        shop.run(old, Told(stage=overtake))
    before = shop.tags()
    with pytest.raises(SupersededError):
        shop.run(old)
    assert shop.tags() == before
    assert (shop.latest().sequence, shop.latest().version) == (2, 1)

    anew = replace(shop, uid="u2", sequence=0)  # the AdapterBundle was deleted, and made again under its name
    anew.run(anew.build(_at(shop, "two")))
    assert (shop.latest().sequence, shop.latest().version) == (1, 2)
    with pytest.raises(SupersededError, match="the AdapterBundle tones was made anew"):
        shop.run(shop.build(_at(shop, "one")))


def _versions(shop: Shop) -> set[str]:
    return {item.key.split("/")[0] for item in shop.bundle.list() if item.key.endswith("model.onnx")} - {"bases"}


def _bases(shop: Shop) -> set[str]:
    return {item.key.split("/")[1] for item in shop.bundle.list("bases")}


def test_old_versions_go_and_then_the_bases_that_nobody_uses(shop: Shop) -> None:
    shop.run(shop.build(_at(shop, "one")))
    first = _bases(shop)
    shop.run(shop.build(_at(shop, "two")))
    shop.onnx = {"precision": "int4"}
    shop.run(shop.build(_at(shop, "one"), retention={"versions": 2}))
    assert _versions(shop) == {one.digest for one in shop.latest().history[:2]}
    assert first < _bases(shop)
    shop.run(shop.build(_at(shop, "one", "two"), retention={"versions": 1}))
    assert _versions(shop) == {shop.latest().digest}
    assert not first & _bases(shop)
    assert len(shop.bundle.list("builds")) == 1
    assert shop.bundle.list("running") == []


def _kill_at(condition: Callable[..., bool]) -> Callable[..., None]:
    def kill(*arguments: Any) -> None:
        if condition(*arguments):
            raise KilledError

    return kill


def test_a_pod_that_is_killed_leaves_its_base_and_its_proofs_to_the_next(shop: Shop, tmp_path: Path) -> None:
    build = shop.build(_at(shop, "one", "two"))
    with pytest.raises(KilledError):
        shop.run(build, Told(proven=_kill_at(lambda done, _: done == 1)))
    with pytest.raises(KilledError):
        shop.run(build, Told(stage=_kill_at(lambda stage: stage is BuildStage.PUBLISHING)))
    bases, proofs = shop.tags("bases"), shop.tags("proofs")
    assert shop.bundle.get("latest.json") is None
    counts: list[tuple[int, int]] = []
    result = shop.run(build, Told(proven=lambda done, total: counts.append((done, total))))
    assert result.base_reused
    assert counts == []  # all were proven
    assert (shop.tags("bases"), shop.tags("proofs")) == (bases, proofs)
    _version(shop, result, tmp_path)


def test_an_earlier_adapter_stays_where_its_newer_source_is_rejected(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(AdaptersRejectedError, match=r"one: adapter_model\.safetensors is truncated") as caught:
        shop.run(shop.build({"one": f"{shop.store.uri}/damaged"}))
    assert [one.state for one in caught.value.adapters] == ["Rejected"]
    assert shop.bundle.get("latest.json") is None

    good = shop.run(shop.build(_at(shop, "one", "two")))
    result = good
    for _ in range(2):  # the second build, too, which finds the same source, says so
        result = shop.run(shop.build({"one": f"{shop.store.uri}/damaged", "two": f"{shop.store.uri}/two"}))
        (one, two) = result.adapters
        assert (one.state, one.version, one.digest) == ("Ready", 1, good.adapters[0].digest)
        assert (one.reason or "").startswith(f"the newer one at {shop.store.uri}/damaged is rejected, version 1's stays: ")
        assert (two.state, two.reason) == ("Ready", None)
    _version(shop, result, tmp_path)
    assert shop.run(shop.build(_at(shop, "one", "two"))).adapters[0].reason is None


def test_an_adapter_that_cannot_be_had_is_rejected_and_the_others_ship(
    shop: Shop, model: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"OLIVINE_ADAPTER_2_AWS_ACCESS_KEY_ID": "test-key", "OLIVINE_ADAPTER_2_AWS_SECRET_ACCESS_KEY": "wrong"}
    shop.environ = {**shop.environ, **wrong}
    foreign = shop.upload("foreign", adapters["two"], modelDigest="f" * 64)
    whole = shop.upload("whole", model, kind="Model")
    uri = f"{shop.store.uri}/two"
    result = shop.run(
        shop.build(
            {
                **_at(shop, "one"),
                "other": foreign,
                "secretless": {"uri": uri, "credentials": 1, "secret": "gone"},
                "denied": {"uri": uri, "credentials": 2, "secret": "wrong"},
                "nowhere": f"{shop.store.uri}/nowhere",
                "whole": whole,
                "bucketless": "s3://other-bucket/x",
                "changed": {"uri": uri, "digest": "e" * 64},
            }
        )
    )
    reasons = {one.name: one.reason or "" for one in result.adapters if one.state == "Rejected"}
    wanted = {
        "other": "it was trained on another base: its model has the digest ffffffffffff…",
        "secretless": "the Secret 'gone' of adapters[].secretRef is not there, or has none of AWS_ACCESS_KEY_ID",
        "denied": "was denied: check the keys in the Secret of adapters[].secretRef",
        "nowhere": "there is nothing at s3://",
        "whole": "it has neither adapter_config.json (peft) nor",
        "bucketless": "names a bucket that does not exist",
        "changed": "not the eeeeeeeeeeee… that its job published",
    }
    assert {name: wanted[name] in reason for name, reason in reasons.items()} == dict.fromkeys(wanted, True), reasons

    assert not list(shop.scratch.glob("*/adapters/whole/*.safetensors"))  # gigabytes that nobody needs

    # A store that is away is nobody's fault: the whole build is tried again.
    monkeypatch.setattr("olivine_trainer.storage.store.PATIENCE_SECONDS", 0)
    with pytest.raises(StorageUnavailableError):
        shop.run(shop.build({**_at(shop, "one"), "away": {"uri": uri, "endpoint": "http://127.0.0.1:9"}}))


def test_a_base_that_is_not_the_jobs_ends_the_build(shop: Shop) -> None:
    with pytest.raises(ModelError, match=r"model\.uri s3://.*/model has the digest .*, but the adapters' jobs trained on d{64}"):
        shop.run(shop.build(_at(shop, "one"), model_digest="d" * 64))


def test_a_runs_samples_are_its_adapters_prompts(shop: Shop, adapters: dict[str, Path]) -> None:
    shop.verify = {"maxExtraKL": 1.0}
    uri = shop.upload("run/artifacts/abc", adapters["one"], kind="Adapter")
    record = {"samples": [{"prompt": "Phrase: ha ha 1\nTone:"}, {"prompt": "Phrase: ha 2\nTone:"}]}
    shop.store.put("run/run/published.json", json.dumps(record).encode())
    with_samples = shop.run(shop.build({"one": uri})).adapters[0]
    other = replace(shop, name="builtin", sequence=0)
    without = other.run(other.build(_at(shop, "one"))).adapters[0]
    assert with_samples.mean_kl != without.mean_kl  # measured over other texts
    shop.store.put("run/run/published.json", b'{"samples": null}')  # somebody else's
    odd = replace(shop, name="odd", sequence=0)
    assert odd.run(odd.build({"one": uri})).adapters[0].mean_kl == without.mean_kl


def test_a_second_place_that_is_the_first_is_refused(shop: Shop) -> None:
    shop.run(shop.build(_at(shop, "one")))
    before = shop.tags()
    here = {"uri": f"{shop.store.uri}/"}
    with pytest.raises(ConfigurationError, match=r"publish\.uri s3://.* is storage\.uri"):
        shop.run(shop.build(_at(shop, "one"), publish=here))
    assert shop.tags() == before


def test_the_commands_take_addresses_and_read_every_byte(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = shop.run(shop.build(_at(shop, "one"), publish={"uri": f"{shop.store.uri}/second"}))
    assert result.bundle is not None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(shop.access.access_key_id))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(shop.access.secret_access_key))
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(shop.access.endpoint))
    root = shop.bundle.uri
    second = f"{shop.store.uri}/second/team/bundles/tones/{result.bundle.digest}"
    for where in (root, result.bundle.uri, second):
        assert main(["bundle", "verify", where, "--base", str(result.base and result.base.digest)]) == 0
        assert capsys.readouterr().out.startswith(result.bundle.digest)
    assert main(["bundle", "run", root, "--adapter", "one", "--prompt", "Phrase: ha", "--max-tokens", "4"]) == 0

    data = f"{result.bundle.digest}/model.onnx.data"
    found = shop.bundle.get(data)
    assert found is not None
    shop.bundle.put(data, found.data[:100] + bytes([found.data[100] ^ 1]) + found.data[101:])
    shop.bundle.put(f"{result.bundle.digest}/stray", b"x")
    assert main(["bundle", "verify", root]) == 12
    assert "model.onnx.data is damaged" in capsys.readouterr().err
    assert main(["bundle", "verify", f"{root}/nowhere"]) == 12
    assert "nowhere has no manifest.json" in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_told_and_not_made(shop: Shop) -> None:
    nowhere = {"uri": "s3://no-such-bucket/x", "endpoint": shop.access.endpoint}
    for _ in range(2):  # some stores make one with its first object
        with pytest.raises(TrainerError, match="no-such-bucket") as caught:
            shop.run(shop.build(_at(shop, "one"), storage=nowhere))
        assert caught.value.reason is Reason.STORAGE_NOT_FOUND


def test_an_adapter_of_a_hub_is_read_and_what_is_published_there_is_the_newest_version(
    shop: Shop, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_hub() as hub:
        hub.add("org/two", {path.name: path.read_bytes() for path in adapters["two"].iterdir()})
        hub.members["org"] = ("hf_writer",)
        shop.environ = {**shop.environ, "OLIVINE_PUBLISH_HF_TOKEN": "hf_writer"}
        publish = {"uri": "hf://org/voices", "endpoint": hub.endpoint, "secretRef": {"name": "hub"}}
        pin = {
            "uri": shop.upload("artifacts/one", adapters["one"], kind="Adapter"),
            "digest": describe(adapters["one"], {}).digest,
        }
        first = shop.run(shop.build({"one": pin}))
        assert first.base is not None
        digest = first.base.model_digest

        def on_hub() -> str:
            found = hub.repositories["org/voices"]
            return str(json.loads(found.commits[found.refs["main"]]["manifest.json"])["digest"])

        alone = {"model_digest": digest, "publish": publish}
        one = shop.run(shop.build({"one": pin}, **alone))
        both = shop.run(shop.build({"one": pin, "two": {"uri": "hf://org/two", "endpoint": hub.endpoint}}, **alone))
        assert _state(both)[1] == ("two", "Ready", 2)
        assert both.bundle is not None
        assert on_hub() == both.bundle.digest
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        assert main(["bundle", "verify", "hf://org/voices"]) == 0
        assert capsys.readouterr().out.startswith(both.bundle.digest)

        shop.run(shop.build({"one": pin}, **alone))  # inputs that were built before
        assert one.bundle is not None
        assert on_hub() == one.bundle.digest


def test_an_adapter_is_added_to_a_bundle_for_a_device_that_is_not_here(shop: Shop, tmp_path: Path) -> None:
    shop.onnx = {"precision": "int8", "target": "cuda"}
    first = shop.run(shop.build(_at(shop, "one")))
    assert first.not_verified is not None, "this machine runs cuda: the test is of one that does not"
    added = shop.run(shop.build(_at(shop, "one", "two")))  # the same slots: the first one's file is only kept in the version
    assert _state(added) == [("one", "Ready", 1), ("two", "Ready", 2)]
    _version(shop, added, tmp_path)


def test_a_prompt_that_fills_the_models_context_is_measured(shop: Shop) -> None:
    shop.verify = {"maxExtraKL": 1.0, "prompts": ["Phrase: ha " * 300]}
    assert shop.run(shop.build(_at(shop, "one"))).adapters[0].overhead_percent is not None


def test_a_machine_that_fails_costs_neither_the_model_nor_an_adapter(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {
        "onnxruntime_genai.models.builder.create_model": OSError(errno.ENOSPC, "No space left on device"),
        "olivine_trainer.bundle.onnx_model.OnnxModel.answer": RuntimeError("Failed to allocate memory for requested buffer"),
        "olivine_trainer.bundle.reference.Reference.adapted": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    }
    build = shop.build(_at(shop, "one"))
    for place, fault in faults.items():

        def fail(*_: Any, fault: Exception = fault, **__: Any) -> None:
            raise fault

        with monkeypatch.context() as failing:
            failing.setattr(place, fail)
            with pytest.raises(type(fault)):
                shop.run(build)
    assert _state(shop.run(build)) == [("one", "Ready", 1)]


def test_more_adapters_need_no_more_memory(shop: Shop, model: Path, tmp_path: Path) -> None:
    uri = shop.upload("large", make_peft(model, tmp_path / "large", target_modules=_ATTENTION, r=512, spread=0.02))
    held: list[int] = []

    def look(stage: BuildStage) -> None:
        if stage is BuildStage.VERIFYING and len(held) < 1:
            held.append(tracemalloc.get_traced_memory()[0])
            raise KilledError

    def measure(count: int) -> int:
        held.clear()
        tracemalloc.start()
        with pytest.raises(KilledError):
            shop.run(shop.build({f"a{number}": uri for number in range(count)}), Told(stage=look))
        tracemalloc.stop()
        return held[0]

    measure(1)  # modules that are imported late
    size = (tmp_path / "large" / "adapter_model.safetensors").stat().st_size
    assert measure(5) - measure(1) < size


def test_what_a_deleted_bundles_build_was_at_does_not_stay_for_ever(shop: Shop) -> None:
    shop.sequence = 7
    with pytest.raises(AdaptersRejectedError):
        shop.run(shop.build({"one": f"{shop.store.uri}/damaged"}))
    first = _bases(shop)
    shop.run(shop.build(_at(shop, "one")))
    shop.onnx = {"precision": "int4"}
    with pytest.raises(AdaptersRejectedError):
        shop.run(shop.build({"one": f"{shop.store.uri}/nowhere", "two": f"{shop.store.uri}/damaged"}))
    anew = replace(shop, uid="u2", sequence=0, onnx={"precision": "fp32"})
    anew.run(anew.build(_at(shop, "two"), retention={"versions": 1}))
    assert _bases(shop) == {shop.latest().history[0].base} != first
    assert shop.bundle.list("running") == []


def test_a_model_that_was_exchanged_is_not_taken_for_the_one_before(shop: Shop, adapters: dict[str, Path], tmp_path: Path) -> None:
    pin = {"uri": shop.upload("artifacts/one", adapters["one"], kind="Adapter"), "digest": describe(adapters["one"], {}).digest}
    first = shop.run(shop.build({"one": pin}))
    assert first.base is not None
    other = make_tiny("Llama", tmp_path / "other", intermediate_size=96, **WIDE, num_hidden_layers=3)
    shop.upload("model", other)
    # All that this one needs is there: the model's files are not looked at.
    again = shop.run(shop.build({"one": pin}, model_digest=first.base.model_digest, retention={"versions": 2}))
    assert again.base == first.base
    shop.onnx = {"precision": "int4"}
    last = shop.run(shop.build({"one": pin}))
    assert last.base is not None
    assert last.base.model_digest == describe(other, {}).digest


def test_a_build_that_was_overtaken_before_it_pruned_removes_nothing(shop: Shop) -> None:
    shop.run(shop.build(_at(shop, "one")))
    overtaken = shop.latest()
    shop.onnx = {"precision": "int4"}
    shop.run(shop.build(_at(shop, "two")))
    before = shop.tags()
    prune(shop.bundle, overtaken, 1)
    assert shop.tags() == before


def test_of_a_jobs_prompt_no_more_is_measured_than_a_specification_may_ask_for(
    shop: Shop, adapters: dict[str, Path], tmp_path: Path
) -> None:
    shop.verify = {"maxExtraKL": 1.0}
    spacious = make_tiny("Llama", tmp_path / "spacious", intermediate_size=96, **WIDE, max_position_embeddings=16384)
    long = "".join(f"Phrase: ha {number}\n" for number in range(1000))
    model = {"uri": shop.upload("spacious", spacious)}
    found: list[float | None] = []
    for name, prompt in {"long": long, "cut": long[-4096:]}.items():
        uri = shop.upload(f"{name}/artifacts/abc", adapters["one"], kind="Adapter")
        shop.store.put(f"{name}/run/published.json", json.dumps({"samples": [{"prompt": prompt}]}).encode())
        alone = replace(shop, name=name, sequence=0)  # another bundle: the same files would not be measured twice
        found.append(alone.run(alone.build({"one": uri}, model=model)).adapters[0].mean_kl)
    assert found[0] is not None
    assert found[0] == found[1]
