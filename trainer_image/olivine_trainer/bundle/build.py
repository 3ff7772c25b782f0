"""The verb `bundle build`, from top to bottom: base, adapters, slots, files, proof, manifest."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from olivine_api.adapterbundle import AdapterStatus
from olivine_api.reasons import Reason
from olivine_trainer.bundle.adapter import SlotAdapter
from olivine_trainer.bundle.base import build_base
from olivine_trainer.bundle.bottleneck_reader import CONFIG as BOTTLENECK
from olivine_trainer.bundle.bottleneck_reader import read_bottleneck
from olivine_trainer.bundle.files import BASE, adapter_path, pad, write_adapter
from olivine_trainer.bundle.graph import add_slots, projections_of
from olivine_trainer.bundle.manifest import REPORT, BundledAdapter, Manifest, digest_of
from olivine_trainer.bundle.peft_reader import CONFIG as PEFT
from olivine_trainer.bundle.peft_reader import read_peft
from olivine_trainer.bundle.reference import Reference
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.report import BaseParity, BundleReport
from olivine_trainer.bundle.slots import Linear, Slot, choose_slots, linears_of
from olivine_trainer.bundle.spec import BuildSpec, local_folder
from olivine_trainer.bundle.verify import Proven, Verifier
from olivine_trainer.errors import ConfigurationError, ModelError
from olivine_trainer.reporting.logs import log, warn


def build_bundle(spec: BuildSpec, target: Path) -> BundleReport:
    """Build, prove and write a bundle into the new folder `target`. Raises TrainerError with a sentence where there can be none."""
    if target.exists() and any(target.iterdir()):
        raise ConfigurationError(
            Reason.INVALID_SPEC, f"{target} is not empty: a bundle is never changed in place, name a new folder"
        )
    model = local_folder(spec.model.uri, "model.uri")
    if not (model / "config.json").is_file():
        raise ModelError(Reason.MODEL_NOT_FOUND, f"model.uri: {model} has no config.json, it must be a Hugging Face folder")
    sources = {one.name: local_folder(one.uri, f"adapters {one.name}: uri") for one in spec.adapters}
    reference = Reference(model, spec.model.uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".bundle-") as scratch:
        exact, shipped = _build_bases(spec, model, Path(scratch))
        log("the base is built", precision=spec.onnx.precision)
        known = projections_of(exact)
        linears = {name: one for name, one in linears_of(reference.model).items() if one.projection in known}
        rejected: dict[str, str] = {}
        adapters = _read_all(sources, linears, rejected)
        slots = choose_slots((slot for one in adapters.values() for slot in one.slots), linears, spec.onnx.slots)
        for folder in {exact, shipped}:
            add_slots(folder, slots)
            write_adapter(adapter_path(folder, BASE), pad({}, slots))
            for name, adapter in adapters.items():
                write_adapter(adapter_path(folder, name), pad(adapter.tensors, slots))
        log("the adapters are written", slots=len(slots), adapters=len(adapters))
        verifier = Verifier(reference, exact=exact, shipped=shipped, asked=spec.verify)
        verifier.check_base()
        proven = _prove_all(verifier, {name: sources[name] for name in adapters}, rejected)
        if not proven:
            said = "; ".join(f"{name}: {why}" for name, why in rejected.items())
            raise ModelError(Reason.ADAPTERS_REJECTED, f"no adapter of the bundle is left: {said}")
        switching, switches = verifier.switch(sorted(proven))
        for name in adapters.keys() - proven.keys():
            adapter_path(shipped, name).unlink()
        good = {name: _Good(adapters[name], proven[name], sources[name], switches[name]) for name in sorted(proven)}
        manifest = _describe(spec, shipped, model, slots, good)
        report = _report(
            spec=spec,
            folder=shipped,
            manifest=manifest,
            verifier=verifier,
            good=good,
            rejected=rejected,
            switching=switching,
        )
        manifest.write(shipped)
        (shipped / REPORT).write_text(report.model_dump_json(by_alias=True, indent=1) + "\n")
        if target.exists():
            target.rmdir()
        shutil.move(shipped, target)
    return report


@dataclass(frozen=True)
class _Good:
    """An adapter that ships."""

    adapter: SlotAdapter
    proven: Proven
    source: Path
    switch_microseconds: float


def _build_bases(spec: BuildSpec, model: Path, scratch: Path) -> tuple[Path, Path]:
    """The fp32 build and the shipped one; one folder where they are the same."""
    exact, shipped = scratch / "fp32", scratch / spec.onnx.precision
    build_base(model, exact, "fp32")
    if shipped != exact:
        build_base(model, shipped, spec.onnx.precision)
    return exact, shipped


def _read_all(sources: Mapping[str, Path], linears: Mapping[str, Linear], rejected: dict[str, str]) -> dict[str, SlotAdapter]:
    """Those that can be read; why the others cannot goes into `rejected`."""
    found: dict[str, SlotAdapter] = {}
    for name, folder in sorted(sources.items()):
        try:
            found[name] = read_adapter_folder(folder, linears)
        except RejectedError as error:
            _reject(name, error, rejected)
    return found


def read_adapter_folder(folder: Path, linears: Mapping[str, Linear]) -> SlotAdapter:
    """A peft directory, or an Olivine bottleneck adapter. Raises RejectedError."""
    if (folder / BOTTLENECK).is_file():
        return read_bottleneck(folder, linears)
    if (folder / PEFT).is_file():
        return read_peft(folder, linears)
    raise RejectedError(
        f"{folder.name} has neither {PEFT} (peft) nor {BOTTLENECK} (a bottleneck adapter of Olivine): look at its address"
    )


def _prove_all(verifier: Verifier, sources: Mapping[str, Path], rejected: dict[str, str]) -> dict[str, Proven]:
    proven: dict[str, Proven] = {}
    for name, source in sorted(sources.items()):
        try:
            proven[name] = verifier.prove(name, source)
        except RejectedError as error:
            _reject(name, error, rejected)
        else:
            exact, shipped = proven[name].exact, proven[name].shipped
            log(f"{name} is proven", maxLogitDifference=exact.max_logit_difference, meanKL=shipped.mean_kl)
    return proven


def _reject(name: str, error: RejectedError, rejected: dict[str, str]) -> None:
    rejected[name] = str(error)
    warn(f"adapter {name} is rejected: {error}")


def _describe(spec: BuildSpec, folder: Path, model: Path, slots: list[Slot], good: Mapping[str, _Good]) -> Manifest:
    return Manifest.describe(
        folder,
        model_digest=digest_of(model),
        precision=spec.onnx.precision,
        target=spec.onnx.target,
        slots=slots,
        adapters=[
            BundledAdapter(
                name=name,
                source_digest=digest_of(one.source),
                rank=one.adapter.rank,
                targets=one.adapter.targets,
                scaling=one.adapter.scaling,
            )
            for name, one in good.items()
        ],
    )


def _report(
    *,
    spec: BuildSpec,
    folder: Path,
    manifest: Manifest,
    verifier: Verifier,
    good: Mapping[str, _Good],
    rejected: Mapping[str, str],
    switching: float,
) -> BundleReport:
    exact, shipped = verifier.base.exact, verifier.base.shipped
    sizes = {file.path: file.bytes for file in manifest.files}
    total = sum(sizes.values())
    base = total - sum(size for path, size in sizes.items() if path.startswith("adapters/"))
    sources = {one.name: one.uri or "" for one in spec.adapters}
    ready = [
        AdapterStatus(
            name=name,
            source=sources[name],
            digest=digest_of(one.source),
            rank=one.adapter.rank,
            targets=one.adapter.targets,
            bytes=adapter_path(folder, name).stat().st_size,
            max_logit_difference=one.proven.exact.max_logit_difference,
            top1_agreement=one.proven.exact.top1_agreement,
            greedy_agreement=one.proven.exact.greedy_agreement,
            mean_kl=one.proven.shipped.mean_kl,
            base_mean_kl=shipped.mean_kl,
            load_milliseconds=verifier.shipped.load_milliseconds[name],
            switch_microseconds=one.switch_microseconds,
            state="Ready",
        )
        for name, one in good.items()
    ]
    refused = [
        AdapterStatus(name=name, source=sources[name], state="Rejected", reason=why[:1024])
        for name, why in sorted(rejected.items())
    ]
    return BundleReport(
        digest=manifest.digest,
        base_digest=manifest.base_digest,
        precision=spec.onnx.precision,
        prompts=len(verifier.prompts),
        total_bytes=total,
        merged_equivalent_bytes=base * len(good),
        base=BaseParity(
            max_logit_difference=exact.max_logit_difference,
            top1_agreement=exact.top1_agreement,
            greedy_agreement=exact.greedy_agreement,
            mean_kl=shipped.mean_kl,
        ),
        switching_difference=switching,
        adapters=ready + refused,
    )
