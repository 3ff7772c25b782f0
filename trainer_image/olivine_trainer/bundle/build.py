"""The verb `bundle build`: a bundle from folders of this machine, outside of Kubernetes."""

import shutil
import tempfile
from pathlib import Path

from olivine_api.adapterbundle import AdapterStatus
from olivine_api.reasons import Reason
from olivine_api.sources import Source, Storage
from olivine_trainer.bundle.adapter_source import AdapterFetcher, AdapterPlace, FetchedAdapter
from olivine_trainer.bundle.assembly import Assembled, Assembly, Wanted
from olivine_trainer.bundle.bases import base_name
from olivine_trainer.bundle.files import ADAPTERS
from olivine_trainer.bundle.manifest import REPORT
from olivine_trainer.bundle.materials import Materials
from olivine_trainer.bundle.proofs import LocalBook
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.report import BundleReport
from olivine_trainer.bundle.spec import BuildSpec, local_folder
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.credentials import access_to
from olivine_trainer.storage.fetch import fetch_model
from olivine_trainer.storage.store import Store


def build_bundle(spec: BuildSpec, target: Path) -> BundleReport:
    """Build, prove and write a bundle into the new folder `target`. Raises TrainerError with a sentence where there can be none."""
    if target.exists() and any(target.iterdir()):
        raise ConfigurationError(
            Reason.INVALID_SPEC, f"{target} is not empty: a bundle is never changed in place, name a new folder"
        )
    local_folder(spec.model.uri, "model.uri")
    for one in spec.adapters:
        local_folder(one.uri, f"adapters {one.name}: uri")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".bundle-") as folder:
        scratch = Path(folder)
        cache, nowhere = FileCache(scratch / "cache"), Storage(uri=target.parent.absolute().as_uri())
        model = fetch_model(Store(access_to(Source(uri=spec.model.uri), nowhere, "model", {})), cache)
        fetcher = AdapterFetcher(nowhere, {}, cache, scratch)
        fresh: dict[str, FetchedAdapter] = {}
        rejected: dict[str, str] = {}
        for one in spec.adapters:
            try:
                fresh[one.name] = fetcher.fetch(one.name, AdapterPlace(uri=one.uri or ""), model.digest)
            except RejectedError as error:
                rejected[one.name] = str(error)
        wanted = Wanted(
            onnx=spec.onnx,
            verify=spec.verify,
            model_digest=model.digest,
            fresh=fresh,
            rejected=rejected,
            sources={one.name: one.uri or "" for one in spec.adapters},
        )
        materials = Materials(
            name=base_name(model.digest, spec.onnx),
            onnx=spec.onnx,
            model_uri=spec.model.uri,
            load_model=lambda: model.folder,
            scratch=scratch,
            bases=None,
        )
        made = Assembly(wanted, materials, LocalBook()).assemble()
        report = report_of(made)
        made.manifest.write(made.folder)
        (made.folder / REPORT).write_text(report.model_dump_json(by_alias=True, indent=1) + "\n")
        if target.exists():
            target.rmdir()
        shutil.move(made.folder, target)
    return report


def report_of(made: Assembled) -> BundleReport:
    """What was measured, and what it takes."""
    manifest = made.manifest
    total, base = sizes_of(made)
    ready: list[AdapterStatus] = [one for one in made.adapters if one.state == "Ready"]
    return BundleReport(
        digest=manifest.digest,
        base_digest=manifest.base_digest,
        precision=manifest.precision,
        total_bytes=total,
        merged_equivalent_bytes=base * len(ready),
        base=made.base,
        switching_difference=made.switching_difference,
        adapters=made.adapters,
    )


def sizes_of(made: Assembled) -> tuple[int, int]:
    """Bytes of the whole, and of what is not an adapter."""
    sizes = {file.path: file.bytes for file in made.manifest.files}
    adapters = sum(size for path, size in sizes.items() if path.startswith(f"{ADAPTERS}/"))
    return sum(sizes.values()), sum(sizes.values()) - adapters
