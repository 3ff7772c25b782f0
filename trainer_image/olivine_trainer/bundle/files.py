"""`.onnx_adapter` files: written, and read back, since the format has no checksum of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from olivine_trainer.bundle.slots import Floats, Slot

SUFFIX = ".onnx_adapter"
ADAPTERS = "adapters"
BASE = "base"
_VERSION = 1


class DamagedAdapterFileError(Exception):
    """A file that is not what was written, or fits another graph; the text says which tensor."""


def adapter_path(folder: Path, name: str) -> Path:
    """adapters/NAME.onnx_adapter."""
    return folder / ADAPTERS / f"{name}{SUFFIX}"


def pad(tensors: Mapping[str, Floats], slots: Sequence[Slot]) -> dict[str, Floats]:
    """Something for every slot: a generator keeps what it was given before, and nothing takes an adapter out of it again."""
    empty = {name: tensor for slot in slots for name, tensor in slot.empty().items()}
    return dict(sorted((empty | dict(tensors)).items()))


def write_adapter(path: Path, tensors: Mapping[str, Floats]) -> None:
    """Export, and compare with what is read back. Raises DamagedAdapterFileError where they differ."""
    import onnxruntime  # noqa: PLC0415  (a second)

    path.parent.mkdir(parents=True, exist_ok=True)
    # An OrtValue only points at its array: both lists live until the file is written.
    arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in sorted(tensors.items())}
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    form = onnxruntime.AdapterFormat()
    form.set_adapter_version(_VERSION)
    form.set_model_version(_VERSION)
    form.set_parameters(values)
    form.export_adapter(str(path))  # pyright: ignore[reportArgumentType]  (it takes no Path)
    found = read_adapter(path)
    for name, array in arrays.items():
        if name not in found or found[name].shape != array.shape or found[name].tobytes() != array.tobytes():
            raise DamagedAdapterFileError(f"{path.name}: {name} is not what was written")


def read_adapter(path: Path) -> dict[str, Floats]:
    """Its tensors. Raises DamagedAdapterFileError where it is none."""
    import onnxruntime  # noqa: PLC0415

    try:
        form = onnxruntime.AdapterFormat.read_adapter(str(path))  # pyright: ignore[reportArgumentType]
        # The arrays point into the file's buffer, which goes with `form`.
        return {name: np.array(value.numpy(), copy=True) for name, value in form.get_parameters().items()}
    except Exception as error:  # noqa: BLE001  (onnxruntime raises classes of its own making)
        raise DamagedAdapterFileError(f"{path.name} is no adapter file of onnxruntime ({error})") from None


def check_fits(name: str, tensors: Mapping[str, Floats], slots: Sequence[Slot]) -> None:
    """Raises DamagedAdapterFileError where a file does not fill exactly these slots."""
    for slot in slots:
        for part in slot.shapes():
            if part not in tensors:
                raise DamagedAdapterFileError(f"{name}{SUFFIX} has nothing for {part}: it was made for another base")
            if not slot.takes(part, tensors[part].shape):
                raise DamagedAdapterFileError(
                    f"{name}{SUFFIX}: {part} has the shape {list(tensors[part].shape)}: it was made for another base"
                )
    known = {part for slot in slots for part in slot.shapes()}
    if odd := sorted(tensors.keys() - known):
        raise DamagedAdapterFileError(f"{name}{SUFFIX} has {odd[0]}, for which the graph has no slot: it was made for another base")
