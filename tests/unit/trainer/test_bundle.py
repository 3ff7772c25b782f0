"""Bundles of random adapters on a tiny model: exact against PyTorch, refused where they cannot be, checked by their manifest."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_trainer.bundle.build import build_bundle
from olivine_trainer.bundle.check import BundleDamagedError, check_bundle
from olivine_trainer.bundle.files import ADAPTERS, adapter_path, read_adapter, write_adapter
from olivine_trainer.bundle.manifest import Manifest, files_of
from olivine_trainer.bundle.onnx_model import OnnxModel, stop_tokens
from olivine_trainer.bundle.parity import ask, compare, expect, switching_difference
from olivine_trainer.bundle.reference import Reference
from olivine_trainer.bundle.report import BundleReport
from olivine_trainer.bundle.spec import BuildSpec, parse_build
from olivine_trainer.bundle.use import answer_prompt
from olivine_trainer.cli.bundle import main
from olivine_trainer.errors import ConfigurationError, ModelError
from tests.support.adapters import make_bottleneck, make_peft
from tests.support.models import WIDE, WIDE_HEADS, make_tiny

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_ALL = [*_ATTENTION, "gate_proj", "up_proj", "down_proj"]
_LOOSE = {"maxExtraKL": 1.0}


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 16, which onnxruntime's attention wants; a vocabulary that no projection shares."""
    return make_tiny("Llama", tmp_path_factory.mktemp("wide") / "model", intermediate_size=96, **WIDE)


@pytest.fixture(scope="module")
def good(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mixed ranks, alphas, targets, scalings and kinds."""
    root = tmp_path_factory.mktemp("adapters")
    patterns: dict[str, Any] = {
        "rank_pattern": {"down_proj": 3, r"layers\.1\.self_attn\.q_proj": 5},
        "alpha_pattern": {"q_proj": 7},
    }
    return {
        "attention": make_peft(model, root / "attention", r=8, lora_alpha=16, target_modules=_ATTENTION),
        "everything": make_peft(model, root / "everything", seed=2, r=16, use_rslora=True, target_modules=_ALL, **patterns),
        "houlsby": make_bottleneck(model, root / "houlsby", seed=3, activation="gelu"),
        "pfeiffer": make_bottleneck(model, root / "pfeiffer", seed=4, activation="relu", placement="Pfeiffer"),
    }


def _spec(model: Path, adapters: dict[str, Path], **onnx: Any) -> BuildSpec:
    entries = [{"name": name, "uri": folder.as_uri()} for name, folder in adapters.items()]
    return parse_build({"model": {"uri": model.as_uri()}, "adapters": entries, "onnx": onnx, "verify": _LOOSE}, "test")


@pytest.fixture(scope="module")
def built(model: Path, good: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BundleReport]:
    out = tmp_path_factory.mktemp("bundle") / "int8"
    return out, build_bundle(_spec(model, good, precision="int8"), out)


@pytest.fixture
def bundle(built: tuple[Path, BundleReport], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(built[0], tmp_path / "bundle")


def test_adapters_of_mixed_kinds_equal_pytorch_and_one_another_after_switching(built: tuple[Path, BundleReport]) -> None:
    report = built[1]
    assert [(one.name, one.state) for one in report.adapters] == [
        ("attention", "Ready"), ("everything", "Ready"), ("houlsby", "Ready"), ("pfeiffer", "Ready"),
    ]  # fmt: skip
    assert [one.rank for one in report.adapters] == [8, 16, 8, 8]
    for one in (report.base, *report.adapters):
        # fp32 against fp32: only the order of additions differs, and logits are below 10.
        assert one.max_logit_difference is not None
        assert one.max_logit_difference < 1e-4
        assert (one.top1_agreement, one.greedy_agreement) == (1.0, 1.0)
    assert report.base.mean_kl is not None
    assert report.base.mean_kl > 0  # int8 is not fp32: it was the shipped build that was measured
    assert report.switching_difference is not None
    assert report.switching_difference < 1e-5


def test_the_shipped_builds_agreement_that_its_logits_tell_is_that_of_its_own_answers(
    built: tuple[Path, BundleReport], bundle: Path, model: Path, good: dict[str, Path]
) -> None:
    # Somewhat more of it: quantisation alone changes too few answers of a tiny model.
    path = adapter_path(bundle, "everything")
    write_adapter(path, {name: tensor * (1.1 if name.endswith(".B") else 1) for name, tensor in read_adapter(path).items()})
    pytorch, onnx = Reference(model, "test").adapted(good["everything"]), OnnxModel(bundle)
    prompts, stops = [[first, 9, 33, 100] for first in range(5, 13)], stop_tokens(bundle)
    answers = ask(onnx, "everything", prompts, 24)
    expected = expect(pytorch, prompts, 24, stops, answers)
    asked, told = compare(expected, onnx, "everything", answers), compare(expected, onnx, "everything")
    assert asked == told
    assert 0 < told.greedy_agreement < 1
    for one in (built[1].base, *built[1].adapters):
        assert one.shipped_top1_agreement is not None
        assert one.shipped_greedy_agreement is not None
        assert 0.9 < one.shipped_top1_agreement <= 1
        assert 0 < one.shipped_greedy_agreement <= 1


def test_every_adapter_changes_what_the_base_says(built: tuple[Path, BundleReport]) -> None:
    onnx, text = OnnxModel(built[0]), [5, 9, 33, 100]
    base = onnx.logits(text, None)
    for one in built[1].adapters:
        assert abs(onnx.logits(text, one.name) - base).max() > 0.01


def test_without_padding_a_switch_leaves_traces_and_the_check_sees_it(bundle: Path) -> None:
    path = adapter_path(bundle, "pfeiffer")
    write_adapter(path, {name: tensor for name, tensor in read_adapter(path).items() if "down_proj.relu" in name})
    worst, _ = switching_difference(OnnxModel(bundle), [5, 9, 33, 100], ["attention", "pfeiffer"])
    assert worst > 0.01


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_other_precisions_and_all_linear_slots(precision: str, model: Path, good: dict[str, Path], tmp_path: Path) -> None:
    report = build_bundle(_spec(model, {"attention": good["attention"]}, precision=precision, slots="AllLinear"), tmp_path / "out")
    assert [one.state for one in report.adapters] == ["Ready"]
    manifest = check_bundle(tmp_path / "out")
    assert len(manifest.slots) == 2 * len(_ALL)  # 2 layers
    # What is lost is what the precision loses: nothing, the last bits of a half, the levels of four bits.
    least, most = {"fp32": (0, 1e-9), "fp16": (1e-10, 1e-6), "int4": (1e-6, 1)}[precision]
    assert report.base.mean_kl is not None
    assert least <= report.base.mean_kl < most


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("directml", "int4"),
        *(
            pytest.param(target, precision, marks=pytest.mark.full)
            for target, precision in (
                ("directml", "fp16"), ("directml", "int8"), ("cuda", "fp16"), ("cuda", "int8"), ("cuda", "int4"),
                ("webgpu", "fp32"), ("webgpu", "fp16"), ("webgpu", "int8"), ("webgpu", "int4"),
            )
        ),
    ],
)  # fmt: skip
def test_for_a_device_that_is_not_here_the_fp32_twin_alone_is_proven(
    target: str, precision: str, model: Path, good: dict[str, Path], tmp_path: Path
) -> None:
    adapters = {name: good[name] for name in ("everything", "houlsby")}
    report = build_bundle(_spec(model, adapters, precision=precision, target=target), tmp_path / "out")
    assert report.base.not_verified is not None, f"this machine runs {target}: the test is of one that does not"
    assert report.base.not_verified.startswith(f"this machine cannot run a graph for {target} (")
    assert report.base.mean_kl is None
    for one in report.adapters:
        assert (one.state, one.mean_kl, one.shipped_top1_agreement, one.greedy_agreement) == ("Ready", None, None, 1.0)
        assert one.max_logit_difference is not None
        assert one.max_logit_difference < 1e-4
    manifest = check_bundle(tmp_path / "out")
    assert (manifest.target, manifest.precision) == (target, precision)


def test_a_target_without_such_a_graph_is_refused(model: Path, good: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"onnx.precision is fp32 and onnx.target cuda or directml.*write fp16"):
        _spec(model, good, precision="fp32", target="cuda")


def test_what_an_empty_slot_of_a_bottleneck_costs_is_a_number(built: tuple[Path, BundleReport]) -> None:
    found = read_adapter(adapter_path(built[0], "attention"))
    assert {found[name].shape for name in found if name.endswith(".up_bias")} == {(1,)}


_FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Qwen2": (WIDE, _ALL),
    "Qwen3": (WIDE_HEADS, _ALL),
    "Gemma": (WIDE_HEADS, _ALL),
    "Gemma3": ({**WIDE_HEADS, "query_pre_attn_scalar": 16}, _ALL),
    "Phi3": ({**WIDE, "original_max_position_embeddings": 256}, ["o_proj", "down_proj"]),  # the others are fused in PyTorch
}


@pytest.mark.parametrize("family", _FAMILIES)
def test_other_families(family: str, tmp_path: Path) -> None:
    sizes, targets = _FAMILIES[family]
    model = make_tiny(family, tmp_path / "model", intermediate_size=96, **sizes)
    adapters = {
        "everything": make_peft(model, tmp_path / "everything", r=8, target_modules=targets),
        "houlsby": make_bottleneck(model, tmp_path / "houlsby", activation="silu"),
    }
    report = build_bundle(_spec(model, adapters, precision="int4"), tmp_path / "out")
    assert [one.state for one in report.adapters] == ["Ready", "Ready"], report
    assert all(one.max_logit_difference is not None and one.max_logit_difference < 1e-4 for one in report.adapters)


def test_a_base_that_the_engine_cannot_run_ends_the_build(tiny_model: Path, tmp_path: Path) -> None:
    plain = make_peft(tiny_model, tmp_path / "plain")
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the base's graph .*head_size"):
        build_bundle(_spec(tiny_model, {"plain": plain}), tmp_path / "out")


def test_a_family_that_the_builder_does_not_know_is_told(tiny_model: Path, tmp_path: Path) -> None:
    model = make_tiny("GPT-2", tmp_path / "model")
    plain = make_peft(tiny_model, tmp_path / "plain")
    with pytest.raises(ModelError, match="model builder cannot make an int8 graph of this model") as caught:
        build_bundle(_spec(model, {"plain": plain}), tmp_path / "out")
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def test_the_same_inputs_give_the_same_digest_wherever_they_lie(
    built: tuple[Path, BundleReport], model: Path, good: dict[str, Path], tmp_path: Path
) -> None:
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    adapters = {name: shutil.copytree(folder, tmp_path / f"of-{name}") for name, folder in reversed(good.items())}
    again = build_bundle(_spec(moved, adapters, precision="int8"), tmp_path / "out")
    assert (again.digest, again.base_digest) == (built[1].digest, built[1].base_digest)
    assert (tmp_path / "out/manifest.json").read_bytes() == (built[0] / "manifest.json").read_bytes()


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _edit_weights(change: Callable[[str, Any], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "adapter_model.safetensors"
        save_file({name: change(name, tensor) for name, tensor in load_file(path).items()}, path)

    return edit


def _truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


_BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "dora": (_edit_config(use_dora=True), "is a DoRA adapter"),
    "ia3": (_edit_config(peft_type="IA3"), "it is a IA3 adapter of peft: only LoRA fits"),
    "biases": (_edit_config(bias="all"), "it has biases (bias: all)"),
    "saved": (_edit_config(modules_to_save=["lm_head"]), "carries whole modules (modules_to_save)"),
    "head": (_edit_config(task_type="SEQ_CLS"), "its task is SEQ_CLS"),
    "pissa": (_edit_config(init_lora_weights="pissa"), "moves weights of the base into the adapter"),
    "unknown": (_edit_config(use_of_tomorrow=True), "it uses use_of_tomorrow of peft"),
    "other-rank": (_edit_config(r=5), "has rank 4, but adapter_config.json says 5"),
    "nan": (_edit_weights(lambda _, tensor: tensor * float("nan")), "holds NaN or infinite values"),
    "wide": (_edit_weights(lambda name, tensor: tensor.repeat(1, 2) if "lora_A" in name else tensor), "another base model"),
    "truncated": (_truncate, "is truncated or damaged"),
    "nothing": (shutil.rmtree, "there is nothing at file://"),
    "no-config": (lambda folder: (folder / "adapter_config.json").unlink(), "has neither adapter_config.json"),
    "untrained": (_edit_weights(lambda name, tensor: tensor * 0 if "lora_B" in name else tensor), "changes no logit of the base"),
}


def test_a_bad_adapter_is_rejected_by_name_and_the_others_ship(model: Path, tmp_path: Path) -> None:
    plain = make_peft(model, tmp_path / "plain")
    adapters = {"plain": plain}
    for name, (spoil, _) in _BAD.items():
        adapters[name] = shutil.copytree(plain, tmp_path / name)
        spoil(adapters[name])
    other = make_tiny("Llama", tmp_path / "other-model", num_hidden_layers=3, intermediate_size=96, **WIDE)
    adapters["other-base"] = make_peft(other, tmp_path / "other-base")
    report = build_bundle(_spec(model, adapters, precision="int8"), tmp_path / "out")
    assert [one.name for one in report.adapters if one.state == "Ready"] == ["plain"]
    reasons = {one.name: one.reason or "" for one in report.adapters if one.state == "Rejected"}
    wanted = {name: sentence for name, (_, sentence) in _BAD.items()} | {"other-base": "adapts model.layers.2.self_attn.q_proj"}
    assert {name: wanted[name] in reason for name, reason in reasons.items()} == dict.fromkeys(wanted, True), reasons
    assert sorted(path.name for path in (tmp_path / "out" / ADAPTERS).iterdir()) == ["base.onnx_adapter", "plain.onnx_adapter"]


def test_with_no_adapter_left_there_is_no_bundle(model: Path, tmp_path: Path) -> None:
    bad = make_peft(model, tmp_path / "bad", use_dora=True)
    with pytest.raises(ModelError, match="no adapter of the bundle is left: bad: it is a DoRA adapter") as caught:
        build_bundle(_spec(model, {"bad": bad}), tmp_path / "out")
    assert caught.value.reason is Reason.ADAPTERS_REJECTED
    assert not (tmp_path / "out").exists()


def _flip(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)


def _rewrite(bundle: Path, **changes: Any) -> None:
    """A manifest whose sums are right."""
    old = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    kept = {"model_digest", "base_name", "precision", "target", "slots", "adapters"}
    new = Manifest.describe(files_of(bundle), **({name: getattr(old, name) for name in kept} | changes))
    new.write(bundle)


def _exchange_adapter(bundle: Path) -> None:
    write_adapter(
        adapter_path(bundle, "houlsby"), {"another.graph": next(iter(read_adapter(adapter_path(bundle, "houlsby")).values()))}
    )
    _rewrite(bundle)


def _forget_a_slot(bundle: Path) -> None:
    slots = Manifest.model_validate_json((bundle / "manifest.json").read_bytes()).slots
    _rewrite(bundle, slots=[slots[0].model_copy(update={"inputs": 128}), *slots[1:]])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_flip, "model.onnx.data is damaged"),
        (lambda bundle: (bundle / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "has no manifest.json"),
        (
            lambda bundle: (bundle / "adapters/more.onnx_adapter").write_bytes(b"x"),
            "adapters/more.onnx_adapter is not in manifest.json",
        ),
        (_exchange_adapter, "houlsby.onnx_adapter has nothing for"),
        (_forget_a_slot, "model.onnx has no slot"),
    ],
)
def test_a_damaged_bundle_is_refused(damage: Callable[[Path], Any], sentence: str, bundle: Path) -> None:
    (bundle / "README.md").write_text("A hub's card.")
    check_bundle(bundle)
    damage(bundle)
    with pytest.raises(BundleDamagedError, match=re.escape(sentence)):
        check_bundle(bundle)


def test_the_command_verifies_and_refuses_a_wrong_base(
    built: tuple[Path, BundleReport], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "verify", str(built[0]), "--base", built[1].base_digest]) == 0
    assert "adapters: attention, everything, houlsby, pfeiffer" in capsys.readouterr().out
    assert main(["bundle", "verify", str(built[0]), "--base", "0" * 64]) == 12
    assert f"BundleDamaged: its base is {built[1].base_digest}" in capsys.readouterr().err


def test_the_command_answers_with_the_adapter_that_is_named(
    built: tuple[Path, BundleReport], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "run", str(built[0]), "--adapter", "houlsby", "--prompt", "Phrase: ha", "--max-tokens", "8"]) == 0
    said = capsys.readouterr().out
    assert said == "".join(answer_prompt(built[0], "houlsby", "Phrase: ha", 8)) + "\n"
    assert said != "".join(answer_prompt(built[0], "base", "Phrase: ha", 8)) + "\n"
    assert main(["bundle", "run", str(built[0]), "--adapter", "other", "--prompt", "x"]) == 10
    assert "this bundle has attention, everything" in capsys.readouterr().err


def test_the_command_says_what_it_cannot_run(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(prompt: str) -> tuple[int, str]:
        return main(["bundle", "run", str(bundle), "--adapter", "houlsby", "--prompt", prompt]), capsys.readouterr().err

    code, said = run("")
    assert (code, "--prompt is empty" in said) == (10, True)
    (bundle / "model.onnx").unlink()
    code, said = run("Phrase: ha")
    assert (code, "onnxruntime cannot load it" in said, "Traceback" in said) == (12, True, False)


def test_a_base_that_cannot_be_loaded_is_told(model: Path, good: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"a \.safetensors file of model\.uri file://.*/broken is truncated or damaged"):
        build_bundle(_spec(broken, good), tmp_path / "out")


def test_the_documented_example_runs_without_olivine(built: tuple[Path, BundleReport]) -> None:
    page = (Path(__file__).parents[3] / "docs/bundles.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "olivine" not in code.lower()
    code = code.replace("bundle/", f"{built[0]}/").replace('"bundle"', repr(str(built[0]))).replace("tone", "houlsby")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.splitlines()[0] == "".join(answer_prompt(built[0], "houlsby", "Phrase: ha", 16)).splitlines()[0]


def test_two_adapters_of_one_name_are_refused(model: Path, tmp_path: Path) -> None:
    one = {"name": "tone", "uri": tmp_path.as_uri()}
    with pytest.raises(ConfigurationError, match="two entries of adapters have the same name"):
        parse_build({"model": {"uri": model.as_uri()}, "adapters": [one, one]}, "spec.yaml")
