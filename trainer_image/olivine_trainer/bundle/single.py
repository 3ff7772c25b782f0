"""One tuned model for onnxruntime-genai: a bundle of a single adapter, or a whole model without slots."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from olivine_api.adapterbundle import Adapter, BundleModel, Onnx, Verify
from olivine_api.outputs import OnnxOutput
from olivine_api.reasons import Reason
from olivine_trainer.bundle.base import build_base
from olivine_trainer.bundle.bases import base_name
from olivine_trainer.bundle.build import build_bundle
from olivine_trainer.bundle.files import BASE, adapter_path, write_adapter
from olivine_trainer.bundle.manifest import REPORT, Manifest, digest_of, files_of
from olivine_trainer.bundle.reference import Reference
from olivine_trainer.bundle.report import BundleReport
from olivine_trainer.bundle.spec import BuildSpec
from olivine_trainer.bundle.verify import PROMPT_LENGTH, Verifier
from olivine_trainer.errors import ModelError

_PROMPTS = 8


@dataclass(frozen=True)
class Exported:
    """What the proof measured."""

    max_logit_difference: float
    """Of the fp32 build."""
    mean_kl: float | None
    """Of the shipped build."""


def export_adapter(
    model: Path, adapter: Path, target: Path, *, name: str, source: str, onnx: OnnxOutput, prompts: Sequence[str]
) -> Exported:
    """A bundle with one adapter in the new folder `target`. `source`: the adapter's address, for report.json.

    Raises ModelError with the number where it does not compute what PyTorch does.
    """
    spec = BuildSpec(
        model=BundleModel(uri=model.as_uri()),
        adapters=[Adapter(name=name, uri=adapter.as_uri())],
        onnx=Onnx(precision=onnx.precision, target=onnx.target),
        verify=_asked(prompts),
    )
    try:
        report = build_bundle(spec, target)
    except ModelError as error:
        if error.reason != Reason.ADAPTERS_REJECTED:
            raise
        raise ModelError(Reason.PARITY_UNMET, error.message.rpartition(f"{name}: ")[2]) from None
    (one,) = report.adapters
    _write_report(target, report.model_copy(update={"adapters": [one.model_copy(update={"source": source})]}))
    return Exported(_number(one.max_logit_difference), one.mean_kl)


def export_whole(model: Path, target: Path, *, uri: str, onnx: OnnxOutput, prompts: Sequence[str]) -> Exported:
    """A model without slots in the new folder `target`; its `adapters/base` changes nothing. `uri`: what a sentence calls the model.

    Raises ModelError with the number where the fp32 build does not compute what PyTorch does.
    """
    reference = Reference(model, uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx-") as scratch:
        exact = shipped = Path(scratch) / "fp32"
        build_base(model, exact, "fp32")
        if (onnx.precision, onnx.target) != ("fp32", "cpu"):
            shipped = Path(scratch) / "shipped"
            build_base(model, shipped, onnx.precision, onnx.target)
        for folder in {exact, shipped}:
            write_adapter(adapter_path(folder, BASE), {})
        base = Verifier(reference, exact=exact, shipped=shipped, asked=_asked(prompts), target=onnx.target).prove_base()
        if base.mean_kl is not None and not math.isfinite(base.mean_kl):
            raise ModelError(Reason.PARITY_UNMET, f"the {onnx.precision} build gives what is no number: choose another precision")
        digest = digest_of(model)
        manifest = Manifest.describe(
            files_of(shipped),
            model_digest=digest,
            base_name=base_name(digest, Onnx(precision=onnx.precision, target=onnx.target)),
            precision=onnx.precision,
            target=onnx.target,
            slots=[],
            adapters=[],
        )
        total = sum(file.bytes for file in manifest.files)
        manifest.write(shipped)
        report = BundleReport(
            digest=manifest.digest,
            base_digest=manifest.base_digest,
            precision=onnx.precision,
            total_bytes=total,
            merged_equivalent_bytes=total,
            base=base,
            adapters=[],
        )
        _write_report(shipped, report)
        shutil.move(shipped, target)
    return Exported(base.max_logit_difference, base.mean_kl)


def _asked(prompts: Sequence[str]) -> Verify:
    """Default bounds; a row's prompts where there are any."""
    chosen = list(dict.fromkeys(prompt[-PROMPT_LENGTH:] for prompt in prompts if prompt.strip()))[:_PROMPTS]
    return Verify(prompts=chosen or None)


def _write_report(folder: Path, report: BundleReport) -> None:
    (folder / REPORT).write_text(report.model_dump_json(by_alias=True, indent=1) + "\n")


def _number(value: float | None) -> float:
    return math.inf if value is None else value
