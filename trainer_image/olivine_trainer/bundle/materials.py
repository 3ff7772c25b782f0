"""What a bundle is made from, brought here no earlier than it is needed: the model, the base's graph, its weights, an fp32 twin."""

import shutil
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from olivine_api.adapterbundle import Onnx
from olivine_trainer.bundle.base import MODEL, build_base
from olivine_trainer.bundle.bases import KeptBases
from olivine_trainer.bundle.files import ADAPTERS
from olivine_trainer.bundle.manifest import BundledFile, files_of
from olivine_trainer.bundle.slots import Linear
from olivine_trainer.reporting.logs import log
from olivine_trainer.storage.manifest import Manifest

if TYPE_CHECKING:
    from olivine_trainer.bundle.reference import Reference

LINEARS = "linears"


@dataclass(frozen=True)
class Graph:
    """A build of the base, and its graph as it was before it got slots."""

    folder: Path
    plain: bytes

    @classmethod
    def of(cls, folder: Path) -> "Graph":
        """A folder that was just built or fetched."""
        return cls(folder, (folder / MODEL).read_bytes())

    def reset(self) -> None:
        """As it was."""
        (self.folder / MODEL).write_bytes(self.plain)
        shutil.rmtree(self.folder / ADAPTERS, ignore_errors=True)


class Materials:
    """Of one build. What a bundle's folder keeps of the base is taken from there; what is missing is built, and kept."""

    def __init__(
        self, *, name: str, onnx: Onnx, model_uri: str, load_model: Callable[[], Path], scratch: Path, bases: KeptBases | None
    ) -> None:
        self.base_name = name
        self.reused = False
        """Whether the base was there."""
        self._onnx = onnx
        self._model_uri = model_uri
        self._load_model = load_model
        self._scratch = scratch
        self._bases = bases
        self._model: Path | None = None
        self._reference: Reference | None = None
        self._shipped: Graph | None = None
        self._exact: Graph | None = None
        self._kept: Manifest | None = None
        self._linears: dict[str, Linear] | None = None

    @property
    def kept(self) -> Manifest | None:
        """What the bundle's folder holds of the base."""
        return self._kept

    def model(self) -> Path:
        """The Hugging Face folder."""
        if self._model is None:
            self._model = self._load_model()
        return self._model

    def reference(self) -> "Reference":
        """PyTorch's base."""
        if self._reference is None:
            from olivine_trainer.bundle.reference import Reference  # noqa: PLC0415  (torch)

            self._reference = Reference(self.model(), self._model_uri)
        return self._reference

    def linears(self) -> dict[str, Linear]:
        """The model's linear modules, by their full names."""
        self.shipped()
        if self._linears is None:
            from olivine_trainer.bundle.slots import linears_of  # noqa: PLC0415

            self._linears = linears_of(self.reference().model)
        return self._linears

    def shipped(self, *, whole: bool = False) -> Graph:
        """The build that ships; unless `whole`, its weights may be missing here."""
        if self._shipped is None:
            self._shipped = self._fetch() or self._build()
        if whole and self._kept is not None and self._bases is not None:
            self._bases.complete(self.base_name, self._shipped.folder, self._kept)
        return self._shipped

    def exact(self) -> Graph:
        """The fp32 build, by which every logit is compared: built anew, which costs no more than fetching it."""
        if self._onnx.precision == "fp32" and self._onnx.target == "cpu":
            return self.shipped(whole=True)
        if self._exact is None:
            build_base(self.model(), self._scratch / "exact", "fp32")
            self._exact = Graph.of(self._scratch / "exact")
        return self._exact

    def payload(self) -> list[BundledFile]:
        """The files of the build that ships, those included that are only kept in the bundle's folder."""
        here = {file.path: file for file in files_of(self.shipped().folder)}
        kept = self._kept
        if kept is not None:
            for path, sha256 in kept.files.items():
                here.setdefault(path, BundledFile(path=path, sha256=sha256, bytes=kept.sizes[path]))
        return list(here.values())

    def _fetch(self) -> Graph | None:
        if self._bases is None:
            return None
        folder = self._scratch / "base"
        self._kept = self._bases.fetch_graph(self.base_name, folder)
        if self._kept is None:
            return None
        self.reused = True
        self._linears = {str(item[0]): Linear(*item) for item in self._kept.about.get(LINEARS, [])} or None
        log("the base is there already", base=self.base_name)
        return Graph.of(folder)

    def _build(self) -> Graph:
        folder = self._scratch / "base"
        shutil.rmtree(folder, ignore_errors=True)
        self.reference()  # tells what is wrong with a model better than the builder does
        build_base(self.model(), folder, self._onnx.precision, self._onnx.target)
        log("the base is built", precision=self._onnx.precision)
        if self._bases is not None:
            from olivine_trainer.bundle.slots import linears_of  # noqa: PLC0415

            self._linears = linears_of(self.reference().model)
            about = {LINEARS: [list(astuple(one)) for one in self._linears.values()]}
            self._kept = self._bases.keep(self.base_name, folder, about)
        return Graph.of(folder)
