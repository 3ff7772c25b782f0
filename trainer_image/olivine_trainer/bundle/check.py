"""The verb `bundle verify`: a folder is what its manifest says, and its adapters fit its graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from olivine_api.reasons import Reason
from olivine_trainer.bundle.base import MODEL
from olivine_trainer.bundle.files import BASE, DamagedAdapterFileError, adapter_path, check_fits, read_adapter
from olivine_trainer.bundle.manifest import MANIFEST, Manifest, base_digest, payload_of
from olivine_trainer.bundle.slots import Slot
from olivine_trainer.digests import folder_digest, sha256_file
from olivine_trainer.errors import ModelError


class BundleDamagedError(ModelError):
    """A folder that is not the bundle that was built."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.BUNDLE_DAMAGED, f"{message}; fetch the bundle again")


def check_bundle(folder: Path, *, base: str | None = None) -> Manifest:
    """The manifest of a sound bundle. Raises BundleDamagedError with the first thing that is wrong; `base` is the digest that is wanted."""
    manifest = read_manifest(folder)
    sums = {file.path: file.sha256 for file in manifest.files}
    for path, expected in sorted(sums.items()):
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise BundleDamagedError(f"{MANIFEST} names {path}, outside the folder")
        if not (folder / path).is_file():
            raise BundleDamagedError(f"{path} is missing")
        if sha256_file(folder / path) != expected:
            raise BundleDamagedError(f"{path} is damaged: its sha256 is not the manifest's")
    if odd := sorted(set(payload_of(folder)) - sums.keys()):
        raise BundleDamagedError(f"{odd[0]} is not in {MANIFEST}: somebody has put it there")
    if folder_digest(sums) != manifest.digest or base_digest(sums) != manifest.base_digest:
        raise BundleDamagedError(f"{MANIFEST} contradicts itself: its digests are not those of its files")
    if base is not None and base not in (manifest.base_digest, manifest.base_name, manifest.model_digest):
        raise BundleDamagedError(
            f"its base is {manifest.base_digest} (built from the model {manifest.model_digest}), not the {base} that is wanted"
        )
    _check_adapters(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """manifest.json. Raises BundleDamagedError where there is none that can be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError:
        raise BundleDamagedError(f"{folder} has no {MANIFEST}: it is no bundle of Olivine, or not a whole one") from None
    except ValueError as error:
        raise BundleDamagedError(f"{MANIFEST} is unreadable ({str(error).splitlines()[0]})") from None


def _check_adapters(folder: Path, manifest: Manifest) -> None:
    shapes = _graph_inputs(folder)
    for slot in manifest.slots:
        _check_slot(slot, shapes)
    for name in [*(adapter.name for adapter in manifest.adapters), BASE]:
        path = adapter_path(folder, name)
        if not path.is_file():
            raise BundleDamagedError(f"{path.name} is missing")
        try:
            check_fits(name, read_adapter(path), manifest.slots)
        except DamagedAdapterFileError as error:
            raise BundleDamagedError(str(error)) from None


def _graph_inputs(folder: Path) -> dict[str, list[Any]]:
    import onnx_ir as ir  # noqa: PLC0415

    graph = ir.load(folder / MODEL).graph
    return {value.name or "": list(value.shape) if value.shape is not None else [] for value in graph.inputs}


def _check_slot(slot: Slot, shapes: Mapping[str, list[Any]]) -> None:
    for part, wanted in slot.shapes().items():
        # What differs between adapters is no number in the graph.
        found = [size if isinstance(size, int) else None for size in shapes.get(part, [])]
        if part not in shapes or found != list(wanted):
            raise BundleDamagedError(f"{MODEL} has no slot {part} of the manifest's shape: it is another base's graph")
