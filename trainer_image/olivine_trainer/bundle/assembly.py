"""From materials and adapters to a finished payload: slots, files, proof, manifest. What is known from before is not done again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from olivine_api.adapterbundle import AdapterStatus, Onnx, Verify
from olivine_api.reasons import Reason
from olivine_trainer.bundle.adapter import SlotAdapter
from olivine_trainer.bundle.adapter_source import FetchedAdapter, read_adapter_folder
from olivine_trainer.bundle.files import ADAPTERS, BASE, SUFFIX, adapter_path, pad, write_adapter
from olivine_trainer.bundle.graph import add_slots, projections_of
from olivine_trainer.bundle.kept import KeptAdapter
from olivine_trainer.bundle.manifest import BundledAdapter, Manifest
from olivine_trainer.bundle.materials import Graph, Materials
from olivine_trainer.bundle.proofs import Proof, ProofBook, adapter_proof, base_proof
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.report import BaseParity
from olivine_trainer.bundle.slots import Linear, Slot, choose_slots
from olivine_trainer.errors import ModelError
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.reporting.termination import shorten

if TYPE_CHECKING:
    from olivine_trainer.bundle.verify import Verifier


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a bundle is to hold."""

    onnx: Onnx
    verify: Verify
    model_digest: str
    fresh: Mapping[str, FetchedAdapter]
    kept: Mapping[str, KeptAdapter] = field(default_factory=dict[str, KeptAdapter])
    """Taken over from the newest version as they lie there."""
    earlier: Mapping[str, KeptAdapter] = field(default_factory=dict[str, KeptAdapter])
    """Of those in `fresh` and `rejected`: what stays where the new source is rejected."""
    rejected: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why some could not even be fetched."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Addresses, by name."""


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A payload that is proven; files that are only kept in the bundle's folder are in the manifest alone."""

    folder: Path
    manifest: Manifest
    adapters: list[AdapterStatus]
    base: BaseParity
    proofs: dict[str, str]
    """Names of the proofs by adapter."""
    base_proof: str
    switching_difference: float | None
    """None where nothing had to be proven."""


class AdaptersRejectedError(ModelError):
    """No adapter is left."""

    def __init__(self, adapters: list[AdapterStatus]) -> None:
        said = "; ".join(f"{one.name}: {one.reason}" for one in adapters)
        super().__init__(Reason.ADAPTERS_REJECTED, f"no adapter of the bundle is left: {said}")
        self.adapters = adapters


@dataclass(frozen=True)
class _Drawn:
    """Slots, and what goes into them."""

    read: dict[str, SlotAdapter]
    """Without their tensors: as many as a bundle may hold do not fit into memory."""
    slots: list[Slot]
    linears: Mapping[str, Linear]


class Assembly:
    """One bundle's making."""

    def __init__(
        self, wanted: Wanted, materials: Materials, book: ProofBook, *, told: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self._wanted = wanted
        self._materials = materials
        self._book = book
        self._told = told
        self._fresh = dict(wanted.fresh)
        self._kept = dict(wanted.kept)
        self._rejected: dict[str, str] = {}
        for name, why in wanted.rejected.items():
            self._reject(name, why)

    def assemble(self) -> Assembled:
        """Raises AdaptersRejectedError where nothing is left, ModelError where the base is not what PyTorch computes."""
        while True:
            drawn = self._draw()
            if not drawn.read and not self._kept:
                raise AdaptersRejectedError(self._refused())
            unproven = [name for name in sorted(drawn.read) if self._book.find(self._proof(name)) is None]
            known = self._book.find(self._base_proof(drawn))
            if not unproven and known is not None and known.base is not None:
                self._write(self._materials.shipped(), drawn)
                return self._finish(drawn, known.base, None)
            verifier = self._verifier(drawn)
            base = known.base if known is not None and known.base is not None else verifier.prove_base()
            self._book.keep(self._base_proof(drawn), Proof(base=base))
            if self._prove_all(verifier, unproven, drawn):
                return self._finish(drawn, base, self._switch(verifier, drawn))
            del verifier  # both builds are in its memory
            log("the bundle is put together again without what was rejected")

    def _draw(self) -> _Drawn:
        """Reads the fresh adapters that nothing is known against, and chooses the slots."""
        linears: Mapping[str, Linear] = {}
        if self._fresh or self._wanted.onnx.slots == "AllLinear":
            known = projections_of(self._materials.shipped().folder)
            linears = {name: one for name, one in self._materials.linears().items() if one.projection in known}
        read: dict[str, SlotAdapter] = {}
        for name, source in sorted(self._fresh.items()):
            try:
                proof = self._book.find(self._proof(name))
                if proof is not None and proof.rejected is not None:
                    raise RejectedError(proof.rejected)
                read[name] = replace(read_adapter_folder(source.folder, linears), tensors={})
            except RejectedError as error:
                self._reject(name, str(error))
        used = [
            *(slot for one in read.values() for slot in one.slots),
            *(slot for one in self._kept.values() for slot in one.slots),
        ]
        return _Drawn(read, choose_slots(used, linears, self._wanted.onnx.slots), linears)

    def _reject(self, name: str, why: str) -> None:
        """An earlier version's adapter stands in, where there is one."""
        self._fresh.pop(name, None)
        if (earlier := self._wanted.earlier.get(name)) is not None:
            stays = f"the newer one at {self._wanted.sources[name]} is rejected, version {earlier.status.version}'s stays: {why}"
            warn(f"adapter {name}: {stays}")
            self._kept[name] = earlier.because(stays)
        else:
            warn(f"adapter {name} is rejected: {why}")
            self._rejected[name] = why

    def _verifier(self, drawn: _Drawn) -> "Verifier":
        from olivine_trainer.bundle.verify import Verifier  # noqa: PLC0415  (seconds)

        shipped, exact = self._materials.shipped(whole=True), self._materials.exact()
        for graph in {graph.folder: graph for graph in (shipped, exact)}.values():
            self._write(graph, drawn)
        return Verifier(
            self._materials.reference(),
            exact=exact.folder,
            shipped=shipped.folder,
            asked=self._wanted.verify,
            target=self._wanted.onnx.target,
        )

    def _write(self, graph: Graph, drawn: _Drawn) -> None:
        graph.reset()
        add_slots(graph.folder, drawn.slots)
        write_adapter(adapter_path(graph.folder, BASE), pad({}, drawn.slots))
        for name in drawn.read:
            tensors = read_adapter_folder(self._fresh[name].folder, drawn.linears).tensors
            write_adapter(adapter_path(graph.folder, name), pad(tensors, drawn.slots))
        for name, kept in self._kept.items():
            if not kept.fills(drawn.slots):
                write_adapter(adapter_path(graph.folder, name), pad(kept.tensors(), drawn.slots))

    def _prove_all(self, verifier: "Verifier", unproven: list[str], drawn: _Drawn) -> bool:
        """Whether all are what PyTorch computes; the book knows each."""
        total, sound = len(drawn.read), True
        for done, name in enumerate(unproven, start=total - len(unproven)):
            self._told(done, total)
            source = self._fresh[name]
            try:
                proven = verifier.prove(name, source.folder, source.prompts)
            except RejectedError as error:
                self._book.keep(self._proof(name), Proof(rejected=str(error)[:1024]))
                sound = False
                continue
            adapter, shipped = drawn.read[name], proven.shipped
            status = AdapterStatus(
                name=name,
                source=source.uri,
                digest=source.digest,
                rank=adapter.rank,
                targets=adapter.targets,
                max_logit_difference=proven.exact.max_logit_difference,
                top1_agreement=proven.exact.top1_agreement,
                greedy_agreement=proven.exact.greedy_agreement,
                mean_kl=shipped.mean_kl if shipped is not None else None,
                base_mean_kl=proven.base_mean_kl,
                shipped_top1_agreement=shipped.top1_agreement if shipped is not None else None,
                shipped_greedy_agreement=shipped.greedy_agreement if shipped is not None else None,
                load_milliseconds=proven.load_milliseconds,
                overhead_percent=proven.overhead_percent,
                model_digest=self._wanted.model_digest,
                state="Ready",
            )
            self._book.keep(self._proof(name), Proof(adapter=status))
            log(f"{name} is proven", maxLogitDifference=status.max_logit_difference, meanKL=status.mean_kl)
        self._told(total, total)
        return sound

    def _switch(self, verifier: "Verifier", drawn: _Drawn) -> float:
        """All that are here, and one more where only one is, on one generator; the microseconds become known."""
        names = sorted(drawn.read)
        if (other := next(iter(sorted(self._kept)), None)) is not None:
            for graph in (self._materials.shipped(), self._materials.exact()):  # the latter where the former cannot be run here
                self._kept[other].place(adapter_path(graph.folder, other))
            names.append(other)
        worst, took = verifier.switch(names)
        for name in drawn.read:
            proof = self._book.find(self._proof(name))
            if proof is not None and proof.adapter is not None:
                measured = proof.adapter.model_copy(update={"switch_microseconds": took[name]})
                self._book.keep(self._proof(name), Proof(adapter=measured))
        return worst

    def _finish(self, drawn: _Drawn, base: BaseParity, worst: float | None) -> Assembled:
        folder = self._materials.shipped().folder
        files = {file.path: file for file in self._materials.payload()}
        for kept in self._kept.values():
            files.setdefault(kept.file.path, kept.file)
        adapters: dict[str, AdapterStatus] = {name: one.status for name, one in self._kept.items()}
        for name, source in self._fresh.items():
            proof = self._book.find(self._proof(name))
            assert proof is not None
            assert proof.adapter is not None
            # The proof may be of the same files in another place.
            adapters[name] = proof.adapter.model_copy(update={"name": name, "source": source.uri})
        sized = [
            one.model_copy(update={"bytes": files[f"{ADAPTERS}/{name}{SUFFIX}"].bytes}) for name, one in sorted(adapters.items())
        ]
        bundled = [self._kept[name].bundled if name in self._kept else self._bundled(name, drawn) for name in sorted(adapters)]
        return Assembled(
            folder=folder,
            manifest=Manifest.describe(
                list(files.values()),
                model_digest=self._wanted.model_digest,
                base_name=self._materials.base_name,
                precision=self._wanted.onnx.precision,
                target=self._wanted.onnx.target,
                slots=drawn.slots,
                adapters=bundled,
            ),
            adapters=[*sized, *self._refused()],
            base=base,
            proofs={name: self._kept[name].proof if name in self._kept else self._proof(name) for name in adapters},
            base_proof=self._base_proof(drawn),
            switching_difference=worst,
        )

    def _bundled(self, name: str, drawn: _Drawn) -> BundledAdapter:
        adapter = drawn.read[name]
        return BundledAdapter(
            name=name,
            source_digest=self._fresh[name].digest,
            rank=adapter.rank,
            targets=adapter.targets,
            scaling=adapter.scaling,
            slots=sorted(slot.name for slot in adapter.slots),
        )

    def _refused(self) -> list[AdapterStatus]:
        return [
            AdapterStatus(name=name, source=self._wanted.sources[name], state="Rejected", reason=shorten(why))
            for name, why in sorted(self._rejected.items())
        ]

    def _proof(self, name: str) -> str:
        source = self._fresh[name]
        return adapter_proof(self._materials.base_name, source.digest, self._wanted.verify)

    def _base_proof(self, drawn: _Drawn) -> str:
        return base_proof(self._materials.base_name, [slot.name for slot in drawn.slots], self._wanted.verify)
