"""manifest.json: what a bundle holds, file by file, and what its slots and adapters are."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from olivine_api.base import StatusModel
from olivine_trainer.bundle.files import ADAPTERS
from olivine_trainer.bundle.slots import Slot
from olivine_trainer.digests import folder_digest, sha256_file

MANIFEST = "manifest.json"
REPORT = "report.json"
# What a hub adds to a repository.
HUBS_OWN = ("README.md", ".gitattributes")
_TOOLS = ("onnx-ir", "onnxruntime", "onnxruntime-genai", "peft", "torch", "transformers")


class BundledFile(StatusModel):
    """One file of the payload."""

    path: str
    sha256: str
    bytes: int


class BundledAdapter(StatusModel):
    """One adapter as it was built in."""

    name: str
    source_digest: str
    """sha256 over the sorted (path, sha256) of the files that it was read from."""
    rank: int
    targets: list[str]
    scaling: dict[str, float]
    """What its B matrices were multiplied by, by slot."""
    slots: list[str]
    """Names of those that it uses; its file fills the others, too, with nothing."""


class Manifest(StatusModel):
    """A bundle's content; `digest` names it."""

    version: int = 1
    digest: str
    """sha256 over the sorted (path, sha256) of `files`."""
    model_digest: str
    """Of the Hugging Face folder that the base was built from."""
    base_digest: str
    """Of the files outside adapters/."""
    base_name: str
    """Names what the base was built from, whatever slots it has; a bundle's folder keeps it as bases/<name>."""
    precision: str
    target: str
    slots: list[Slot]
    adapters: list[BundledAdapter]
    tools: dict[str, str]
    files: list[BundledFile]

    @classmethod
    def describe(
        cls,
        files: list[BundledFile],
        *,
        model_digest: str,
        base_name: str,
        precision: str,
        target: str,
        slots: list[Slot],
        adapters: list[BundledAdapter],
    ) -> Self:
        """The manifest of a finished payload."""
        sums = {file.path: file.sha256 for file in files}
        return cls(
            digest=folder_digest(sums),
            model_digest=model_digest,
            base_digest=base_digest(sums),
            base_name=base_name,
            precision=precision,
            target=target,
            slots=slots,
            adapters=adapters,
            tools={name: importlib.metadata.version(name) for name in _TOOLS},
            files=sorted(files, key=lambda file: file.path),
        )

    def write(self, folder: Path) -> None:
        """As JSON, with canonical bytes."""
        (folder / MANIFEST).write_bytes(self.render())

    def render(self) -> bytes:
        """The file's content."""
        return (self.model_dump_json(by_alias=True) + "\n").encode()


def payload_of(folder: Path) -> list[str]:
    """The paths of all files but the manifest, the measurements and what a hub adds, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if path not in (MANIFEST, REPORT, *HUBS_OWN))


def files_of(folder: Path) -> list[BundledFile]:
    """The payload, with its sums."""
    return [
        BundledFile(path=path, sha256=sha256_file(folder / path), bytes=(folder / path).stat().st_size)
        for path in payload_of(folder)
    ]


def base_digest(sums: Mapping[str, str]) -> str:
    """What names a base: its files, without the adapters."""
    return folder_digest({path: sha256 for path, sha256 in sums.items() if not path.startswith(f"{ADAPTERS}/")})


def digest_of(folder: Path) -> str:
    """sha256 over the sorted (path, sha256) of all of a folder's files."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return folder_digest({path.relative_to(folder).as_posix(): sha256_file(path) for path in found})
