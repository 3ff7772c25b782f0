"""An adapter as the newest version has it: taken over without a look at its source, padded anew where the slots are others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from olivine_api.adapterbundle import AdapterStatus
from olivine_trainer.bundle.files import ADAPTERS, SUFFIX, read_adapter
from olivine_trainer.bundle.manifest import BundledAdapter, BundledFile, Manifest
from olivine_trainer.bundle.slots import Floats, Slot
from olivine_trainer.digests import sha256_file
from olivine_trainer.errors import StorageUnavailableError
from olivine_trainer.reporting.termination import shorten
from olivine_trainer.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class KeptAdapter:
    """One adapter of a version."""

    status: AdapterStatus
    bundled: BundledAdapter
    file: BundledFile
    slots: list[Slot]
    """Those that it uses."""
    proof: str
    version: Store
    """The version's folder."""
    version_slots: list[Slot]
    scratch: Path

    def fills(self, slots: Sequence[Slot]) -> bool:
        """Whether its file has something for each of these slots, and nothing for others."""
        return list(slots) == self.version_slots

    def because(self, reason: str) -> "KeptAdapter":
        """The same, with a sentence on why it is still there."""
        return replace(self, status=self.status.model_copy(update={"reason": shorten(reason)}))

    def at(self, uri: str) -> "KeptAdapter":
        """The same, which lies at this address now; what was said of a newer source that was rejected is over."""
        return replace(self, status=self.status.model_copy(update={"source": uri, "reason": None}))

    def tensors(self) -> dict[str, Floats]:
        """What it puts into the slots that it uses. Raises StorageUnavailableError where its file is damaged."""
        path = self.scratch / f"{self.status.name}{SUFFIX}"
        self.place(path)
        found = read_adapter(path)
        path.unlink()
        own = {part for slot in self.slots for part in slot.shapes()}
        return {name: tensor for name, tensor in found.items() if name in own}

    def place(self, path: Path) -> None:
        """Bring its file here."""
        if path.exists():
            return
        if not self.version.get_to_file(self.file.path, path) or sha256_file(path) != self.file.sha256:
            path.unlink(missing_ok=True)
            raise StorageUnavailableError(
                f"{self.version.uri}/{self.file.path} is missing or damaged: put it back, or start a new bundle"
            )


def adapters_of(
    manifest: Manifest, statuses: Sequence[AdapterStatus], proofs: dict[str, str], version: Store, scratch: Path
) -> dict[str, KeptAdapter]:
    """Those of a version that can be taken over, by name."""
    bundled = {one.name: one for one in manifest.adapters}
    files = {file.path: file for file in manifest.files}
    slots = {slot.name: slot for slot in manifest.slots}
    found: dict[str, KeptAdapter] = {}
    for status in statuses:
        name, path = status.name, f"{ADAPTERS}/{status.name}{SUFFIX}"
        if name in bundled and path in files and name in proofs:
            found[name] = KeptAdapter(
                status=status,
                bundled=bundled[name],
                file=files[path],
                slots=[slots[one] for one in bundled[name].slots],
                proof=proofs[name],
                version=version,
                version_slots=manifest.slots,
                scratch=scratch,
            )
    return found
