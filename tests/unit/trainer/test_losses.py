"""Losses: built-in ones are sums, the user's own are imported, checked before training and trained with."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import parse_spec
from olivine_api.parameters import Plugin
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError, DataError, NonFiniteLossError
from olivine_trainer.job import Job
from olivine_trainer.plugins import OwnClass, import_own
from tests.unit.trainer.support import adapter_bytes, kill_in_step, make_job, run_job, tone_rows, write_rows

EXAMPLE = (Path(__file__).parents[3] / "examples/losses/contrastive.py").read_text()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", tone_rows(24))


def own(source: str, parameters: dict[str, Any] | None = None, name: str = "Own") -> OwnClass:
    plugin = Plugin.model_validate(
        {"name": "own", "configMap": "losses", "key": "own.py", "class": name, "parameters": parameters or {}}
    )
    return import_own(plugin, "training.loss", {"losses/own.py": source})


def logits_and_labels() -> tuple[Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(3)
    return torch.randn(7, 11, generator=generator, requires_grad=True), torch.arange(7)


def test_label_smoothing_mixes_the_label_with_all_tokens_alike() -> None:
    from olivine_trainer.losses.tokens import LabelSmoothing
    from olivine_trainer.modeling.forward import cross_entropy

    logits, labels = logits_and_labels()
    logs = logits.log_softmax(-1)
    expected = -(0.8 * logs[range(7), labels] + 0.2 * logs.mean(-1)).sum()
    assert float(LabelSmoothing(0.2)(logits, labels)) == pytest.approx(float(expected), rel=1e-6)
    assert float(LabelSmoothing(0)(logits, labels)) == float(cross_entropy(logits, labels))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_weights_by_what_is_not_known_and_has_a_slope_everywhere(gamma: float) -> None:
    import torch

    from olivine_trainer.losses.tokens import Focal

    logits, labels = logits_and_labels()
    logs = logits.log_softmax(-1)[range(7), labels]
    expected = -((1 - logs.exp()) ** gamma * logs).sum()
    assert float(Focal(gamma)(logits, labels)) == pytest.approx(float(expected), rel=1e-5)
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)  # p is exactly 1 in fp32
    Focal(gamma)(sure, torch.tensor([0])).backward()
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


def test_built_in_losses_are_sums_over_the_learned_tokens() -> None:
    from olivine_trainer.losses.tokens import token_loss

    logits, labels = logits_and_labels()
    for name in ("cross_entropy", "label_smoothing", "focal"):
        loss = token_loss(Plugin(name=name))
        parts = float(loss(logits[:3], labels[:3])) + float(loss(logits[3:], labels[3:]))
        assert float(loss(logits, labels)) == pytest.approx(parts, rel=1e-6), name


def test_a_loss_is_checked_with_the_specification(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    for loss in (
        {"name": "huber"},
        {"name": "focal", "parameters": {"smoothing": 0.1}},
        {"name": "label_smoothing", "parameters": {"smoothing": 1}},
        {"name": "focal", "parameters": {"gamma": "2"}},
        {"name": "focal", "parameters": {"gamma": True}},
        {"name": "cross_entropy", "parameters": {"weight": 2}},
    ):
        with pytest.raises(ValueError, match=r"training\.loss\.(name|parameters)"):
            make_job(tiny_model, rows, "s3://bucket", training__loss=loss)
    make_job(tiny_model, rows, "s3://bucket", training__loss={"name": "focal", "parameters": {"gamma": 2}})


@pytest.mark.parametrize("name", ["label_smoothing", "focal"])
def test_a_built_in_loss_trains_and_is_measured_by_cross_entropy(tiny_model: Path, rows: Path, tmp_path: Path, name: str) -> None:
    storage = f"file://{tmp_path}/runs"
    plain = run_job(make_job(tiny_model, rows, f"{storage}-0"), tmp_path / "0")
    other = run_job(make_job(tiny_model, rows, f"{storage}-1", training__loss={"name": name}), tmp_path / "1")
    assert adapter_bytes(other) != adapter_bytes(plain)
    assert other.snapshot.baseline["evalLoss"] == plain.snapshot.baseline["evalLoss"]
    assert other.snapshot.metrics["evalLoss"] < other.snapshot.baseline["evalLoss"]


# The user's class.

NLL = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, outputs, batch):
        logits, labels = outputs.logits[:, :-1], batch.labels[:, 1:]
        return self.scale * nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum")
"""

FAULTS: dict[str, tuple[str, str]] = {
    "no such class": (
        "class Other: pass\n",
        r"training\.loss\.class is Own, which losses/own\.py does not have: its classes are Other",
    ),
    "syntax": ("x = 1\nclass Own(:\n", r"losses/own\.py cannot be imported: line 2: SyntaxError"),
    "import": (
        "import torch\nimport no_such_thing\n",
        r"losses/own\.py cannot be imported: line 2: ModuleNotFoundError: .*no_such_thing",
    ),
    "exit": ("import sys\nsys.exit(0)\n", r"cannot be imported: line 2: SystemExit"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_file_that_does_not_run_is_told_with_its_line(case: str) -> None:
    source, told = FAULTS[case]
    with pytest.raises(ConfigurationError, match=told) as caught:
        own(source)
    assert (caught.value.exit_code, caught.value.reason) == (10, Reason.PLUGIN_FAILED)


def test_a_file_that_is_not_there_is_told_with_what_makes_it() -> None:
    plugin = Plugin.model_validate({"name": "own", "configMap": "losses", "key": "own.py", "class": "Own"})
    with pytest.raises(ConfigurationError, match=r"no key own.py in a ConfigMap losses: .* kubectl create configmap losses"):
        import_own(plugin, "training.loss", {})


def test_what_a_class_is_made_with_is_told() -> None:
    from olivine_trainer.losses.own import make_criterion

    with pytest.raises(
        ConfigurationError, match=r"class Own of losses/own\.py cannot be made with parameters steepness=2: .*steepness"
    ):
        make_criterion(own(NLL, {"steepness": 2.0}))
    with pytest.raises(ConfigurationError, match=r"line 3: ValueError: no"):
        make_criterion(own("class Own:\n  def __init__(self):\n    raise ValueError('no')\n"))
    with pytest.raises(ConfigurationError, match=r"is no torch.nn.Module"):
        make_criterion(own("class Own: pass\n"))
    with pytest.raises(ConfigurationError, match=r"has trainable parameters of its own \(weight, bias\)"):
        make_criterion(own("import torch\nclass Own(torch.nn.Linear):\n  def __init__(self):\n    super().__init__(2, 2)\n"))


def conform(source: str, *, pairs: bool = False, parameters: dict[str, Any] | None = None, name: str = "Own") -> None:
    """Check a class on made-up outputs of three rows, the last padded."""
    import torch

    from olivine_trainer.losses.conformance import check_own
    from olivine_trainer.losses.outputs import Outputs, OwnBatch, OwnPairs
    from olivine_trainer.losses.own import make_criterion

    generator = torch.Generator().manual_seed(5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    ids = torch.tensor([[5, 6, 7, 1], [6, 7, 2, 1], [8, 4, 1, 0]])
    labels = torch.where(torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 0]]) > 0, ids, -100)

    def side() -> Outputs:
        logits = torch.randn(3, 4, 9, generator=generator)
        return Outputs(torch.randn(3, 4, 6, generator=generator), mask, lambda _: logits)

    batch = OwnBatch(ids, mask, labels)
    code = own(source, parameters, name)
    if pairs:
        check_own(code, make_criterion(code), (side(), side()), OwnPairs(batch, batch, torch.tensor([1.0, 0.0, 1.0])))
    else:
        check_own(code, make_criterion(code), (side(),), batch)


def body(text: str) -> str:
    lines = "".join(f"        {line}\n" for line in text.splitlines())
    return f"import torch\nfrom torch import nn\nclass Own(nn.Module):\n    def forward(self, outputs, batch):\n{lines}"


_SHIFTED = "logits, labels = outputs.logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()\n"
_UNSHIFTED = "logits, labels = outputs.logits.flatten(0, 1), batch.labels.flatten()\n"
_SUM = "return nn.functional.cross_entropy(logits, labels, reduction='sum')"

REFUSED: dict[str, tuple[str, str]] = {
    "mean": (
        _SHIFTED + "return nn.functional.cross_entropy(logits, labels)",
        r"changes where a batch is split for accumulation: all rows together gave [\d.]+, in two parts [\d.]+ \+ [\d.]+: return the sum",
    ),
    "not shifted": (_UNSHIFTED + _SUM, r"counts masked positions: .* have a gradient of up to [\d.]+; logits\[:, p\] predicts"),
    "learns the prompt": (
        "logits = outputs.logits[:, :-1].flatten(0, 1)\n"
        "return nn.functional.cross_entropy(logits, batch.input_ids[:, 1:].flatten(), reduction='sum')",
        "counts masked positions",
    ),
    "learns the padding": (
        "return outputs.last_hidden_state.square().sum()",
        r"it gave [\d.]+, and [\d.]+ with 3 positions of padding",
    ),
    "detached": ("return outputs.pooled.detach().sum()", "is not differentiable: what it returns does not depend"),
    "no tensor": ("return 1.0", "returns a float: return a tensor of floats"),
    "counts": ("return outputs.logits.argmax(-1).sum()", r"returns a tensor of torch\.int64"),
    "infinite": ("return (outputs.pooled * 0).log().sum()", "is not finite: it gave -inf for 3 rows"),
    "steep": ("return (outputs.pooled * 0).sqrt().sum()", "has a gradient that is not finite in"),
    "random": ("return (outputs.pooled * torch.rand(())).sum()", "for the same batch in evaluation"),
    "raises": ("x = 1\nreturn outputs.pooled @ 3", "failed when it was called: line 6: TypeError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_loss_that_does_not_conform_is_refused_with_what_is_wrong_and_by_how_much(case: str) -> None:
    text, told = REFUSED[case]
    with pytest.raises(ConfigurationError, match=told) as caught:
        conform(body(text))
    assert "class Own of losses/own.py" in caught.value.message
    assert caught.value.exit_code == 10


def test_losses_that_conform_are_let_through() -> None:
    conform(NLL, parameters={"scale": 0.5})
    conform(body("return outputs.pooled.square().mean(-1)"))  # a value for each row
    conform(EXAMPLE, pairs=True, parameters={"margin": 1.0}, name="Contrastive")


def test_a_mean_over_pairs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="changes where a batch is split for accumulation"):
        conform(
            body("left, right = outputs\nreturn (batch.label * (left.pooled - right.pooled).square().sum(-1)).mean()"), pairs=True
        )


def with_own(job: Job, source: str, file: str = "losses/own.py") -> Job:
    return Job(spec=job.spec, identity=job.identity, plugins={file: source})


def test_cross_entropy_as_a_class_of_ones_own_trains_the_same_weights(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Whole rows through the head and positions picked later: the same sums up to rounding."""
    import numpy as np
    from safetensors.numpy import load

    loss = {"name": "own", "configMap": "losses", "key": "own.py", "class": "Own"}
    plain = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/a", data__packing=False), tmp_path / "0")
    mine = run_job(with_own(make_job(tiny_model, rows, f"file://{tmp_path}/b", training__loss=loss), NLL), tmp_path / "1")
    assert mine.snapshot.metrics["evalLoss"] == pytest.approx(plain.snapshot.metrics["evalLoss"], abs=1e-4)
    left, right = load(adapter_bytes(plain)), load(adapter_bytes(mine))
    for name, tensor in left.items():
        # AdamW divides by the gradient's size, which amplifies rounding where the gradient is nearly zero.
        np.testing.assert_allclose(right[name], tensor, atol=1e-3, err_msg=name)


def test_other_code_is_another_training(tiny_model: Path, rows: Path) -> None:
    loss = {"name": "own", "configMap": "losses", "key": "own.py", "class": "Own"}
    job = make_job(tiny_model, rows, "s3://bucket", training__loss=loss)
    assert with_own(job, NLL).spec_digest != with_own(job, NLL + "\n# changed\n").spec_digest


def test_a_class_that_fails_later_ends_the_run_with_its_line(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    loss = {"name": "own", "configMap": "losses", "key": "own.py", "class": "Own"}
    source = body("if self.training:\n    raise KeyError('tone')\nreturn outputs.pooled.square().sum()")
    with pytest.raises(
        ConfigurationError, match=r"class Own of losses/own\.py failed when it was called: line 6: KeyError: 'tone'"
    ):
        run_job(with_own(make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__loss=loss), source), tmp_path / "0")


# Pairs.


def pair_job(tiny_model: Path, tmp_path: Path, storage: str, **changes: Any) -> Job:
    texts = {"laughs": [f"ha ha {i}" for i in range(6)], "moods": [f"fear joy {i}" for i in range(6)]}
    every = [(kind, text) for kind, some in texts.items() for text in some]
    pairs = [{"one": a, "two": b, "same": int(x == y)} for x, a in every for y, b in every if a != b]
    path = write_rows(tmp_path / "pairs.jsonl", pairs)
    job = make_job(
        tiny_model,
        path,
        storage,
        task="Generation",
        data__stratifyBy=None,
        data__template={"pair": {"left": "{one}", "right": "{two}", "label": "same"}},
        method__lora__dropout=0.0,
        training__learningRate=2e-2,
        training__loss={
            "name": "contrastive",
            "configMap": "losses",
            "key": "contrastive.py",
            "class": "Contrastive",
            "parameters": {"margin": 1.0},
        },
        **{"training__maxSteps": 30, **changes},
    )
    return with_own(job, EXAMPLE, "losses/contrastive.py")


def test_a_contrastive_loss_over_pairs_learns_which_texts_are_alike(tiny_model: Path, tmp_path: Path) -> None:
    published = run_job(pair_job(tiny_model, tmp_path, f"file://{tmp_path}/runs"), tmp_path / "scratch")
    base, tuned = published.snapshot.baseline, published.snapshot.metrics
    assert set(base) == {"evalLoss"}  # it is no likelihood: no perplexity
    assert tuned["evalLoss"] < 0.5 * base["evalLoss"]
    assert published.snapshot.resolved.data is not None
    assert published.snapshot.resolved.data.learned_tokens == 0


def test_pairs_resume_exactly(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"checkpoint__everySteps": 4, "training__maxSteps": 9}
    whole = run_job(pair_job(tiny_model, tmp_path, f"file://{tmp_path}/a", **changes), tmp_path / "0")
    job = pair_job(tiny_model, tmp_path, f"file://{tmp_path}/b", **changes)
    kill_in_step(job, 6, tmp_path / "1")
    assert adapter_bytes(run_job(job, tmp_path / "2")) == adapter_bytes(whole)


def test_a_label_that_is_no_number_is_told_with_its_row(tiny_model: Path, tmp_path: Path) -> None:
    job = pair_job(tiny_model, tmp_path, f"file://{tmp_path}/runs")
    write_rows(tmp_path / "pairs.jsonl", [{"one": "a", "two": str(i), "same": "yes" if i == 2 else "1"} for i in range(9)])
    with pytest.raises(DataError, match=r"names the field same, which in row 3 of data.train is 'yes': it must be a number"):
        run_job(job, tmp_path / "scratch")


def test_pairs_need_a_loss_over_pairs(tiny_model: Path, rows: Path) -> None:
    template = {"pair": {"left": "{phrase}", "right": "{tone}", "label": "same"}}
    with pytest.raises(ValueError, match=r"data\.template\.pair needs a loss over pairs"):
        make_job(tiny_model, rows, "s3://bucket", task="Generation", data__stratifyBy=None, data__template=template)


def test_a_manifest_brings_its_config_maps_along(tiny_model: Path, tmp_path: Path) -> None:
    from olivine_trainer.cli.manifest import read_manifest

    job = pair_job(tiny_model, tmp_path, f"file://{tmp_path}/runs")
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "losses"}, "data": {"contrastive.py": EXAMPLE}}
    whole = {
        "apiVersion": "olivine.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "alike"},
        "spec": job.spec.to_json_dict(),
    }
    path = tmp_path / "alike.yaml"
    path.write_text("\n---\n".join(json.dumps(document) for document in (config_map, whole)))
    read = read_manifest(path, namespace=None, name=None, uid=None)
    assert read.plugins == {"losses/contrastive.py": EXAMPLE}
    assert parse_spec(read.spec.to_json_dict()) == job.spec
    job_file = tmp_path / "job.json"
    read.save(job_file)
    assert Job.load(job_file) == read


def test_the_margin_of_the_example_is_a_distance() -> None:
    """Two texts that differ are pushed apart until their distance is the margin: then the loss is 0."""
    import torch

    from olivine_trainer.losses.outputs import Outputs, OwnBatch, OwnPairs
    from olivine_trainer.losses.own import make_criterion

    criterion = make_criterion(own(EXAMPLE, {"margin": 1.0}, "Contrastive"))
    mask = torch.ones(1, 1)

    def side(value: float) -> Outputs:
        return Outputs(torch.full((1, 1, 4), value), mask, lambda hidden: hidden)

    ids = OwnBatch(mask.long(), mask.long(), mask.long())
    loss = {
        (distance, label): float(criterion((side(0.0), side(distance)), OwnPairs(ids, ids, torch.tensor([label]))))
        for distance in (0.0, 0.25, 2.0)
        for label in (0.0, 1.0)
    }
    assert loss[2.0, 0.0] == 0
    assert loss[0.25, 0.0] == pytest.approx(0.75**2, abs=1e-4)
    assert math.isclose(loss[0.25, 1.0], 0.25**2, rel_tol=1e-6)
    assert loss[0.0, 1.0] == 0


def test_a_loss_that_is_no_number_names_the_rows_that_made_it_so(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Rows 8 and 18 have a 7 in their phrase; one row a micro-batch, so exactly the guilty one is named."""
    from tests.support.models import make_tokenizer

    seven = make_tokenizer().encode("7")[-1]
    source = body(
        f"wrong = (batch.input_ids == {seven}).any(1) & self.training\n"
        "return torch.where(wrong, float('nan'), outputs.pooled.square().mean(-1))"
    )
    loss = {"name": "own", "configMap": "losses", "key": "own.py", "class": "Own"}
    changes = {"training__batchSize": 1, "training__gradientAccumulationSteps": 6, "data__validationFraction": None}
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__loss=loss, data__stratifyBy=None, **changes)
    with pytest.raises(
        NonFiniteLossError, match=r"the loss of step \d+ is not finite, with rows? (8|18)\b.* of data\.train: "
    ) as caught:
        run_job(with_own(job, source), tmp_path / "scratch")
    assert set(caught.value.rows) <= {8, 18}
    assert caught.value.exit_code == 21


def test_the_example_is_a_whole_manifest_that_trains(tiny_model: Path, tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    from olivine_trainer.cli.manifest import read_manifest

    examples = Path(__file__).parents[3] / "examples"
    yaml = YAML(typ="safe", pure=True)
    config_map, job = yaml.load_all((examples / "alike-requests.yaml").read_text())
    assert config_map["data"] == {"contrastive.py": EXAMPLE}
    spec = job["spec"]
    spec["model"]["uri"] = f"file://{tiny_model}"
    spec["data"]["train"]["uri"] = f"file://{examples / 'data/alike-requests.jsonl'}"
    spec["storage"] = {"uri": f"file://{tmp_path}/runs"}
    spec["training"] |= {"maxSteps": 20, "learningRate": 2e-2}
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(config_map) + "\n---\n" + json.dumps(job))
    published = run_job(read_manifest(path, namespace=None, name=None, uid="u1"), tmp_path / "scratch")
    assert published.snapshot.best is not None
    assert published.snapshot.metrics["evalLoss"] == published.snapshot.best.value < published.snapshot.baseline["evalLoss"]
