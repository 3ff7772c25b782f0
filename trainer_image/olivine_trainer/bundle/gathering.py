"""Which adapters the newest version already has as they are wanted, which have to be fetched, and which cannot be."""

from pathlib import Path

from olivine_api.bundle_build import BuildAdapter, BundleBuild
from olivine_trainer.bundle.adapter_source import AdapterFetcher, AdapterPlace, FetchedAdapter
from olivine_trainer.bundle.assembly import Wanted
from olivine_trainer.bundle.kept import KeptAdapter, adapters_of
from olivine_trainer.bundle.latest import Latest
from olivine_trainer.bundle.manifest import Manifest
from olivine_trainer.bundle.proofs import adapter_proof
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.versions import read_version
from olivine_trainer.reporting.logs import log
from olivine_trainer.storage.store import Store


class Gathering:
    """Of one build."""

    def __init__(
        self, build: BundleBuild, bundle: Store, latest: Latest | None, *, base: str, model_digest: str, scratch: Path
    ) -> None:
        self._build = build
        self._model_digest = model_digest
        self._base = base
        self._latest = latest
        self.previous: Manifest | None = read_version(bundle, latest.digest) if latest is not None else None
        """Of the newest version, where that is whole."""
        self.states: dict[str, str] = {}
        """What lies at the addresses, by name."""
        self._earlier: dict[str, KeptAdapter] = {}
        if latest is not None and self.previous is not None and self.previous.base_name == base:
            version = bundle.sub(latest.digest)
            self._earlier = adapters_of(self.previous, latest.result.adapters, latest.proofs, version, scratch / "kept")

    def gather(self, fetcher: AdapterFetcher) -> Wanted:
        """Fetches what is new; the rest is taken over."""
        kept: dict[str, KeptAdapter] = {}
        fresh: dict[str, FetchedAdapter] = {}
        rejected: dict[str, str] = {}
        for adapter in self._build.adapters:
            name = adapter.name
            try:
                found = self._look(adapter, fetcher)
            except RejectedError as error:
                rejected[name] = str(error)
                continue
            if isinstance(found, KeptAdapter):
                kept[name] = found
            else:
                fresh[name] = found
        log("adapters are gathered", kept=len(kept), fresh=len(fresh), rejected=len(rejected))
        return Wanted(
            onnx=self._build.onnx,
            verify=self._build.verify,
            model_digest=self._model_digest,
            fresh=fresh,
            kept=kept,
            earlier={name: one for name, one in self._earlier.items() if name in fresh or name in rejected},
            rejected=rejected,
            sources={adapter.name: adapter.uri for adapter in self._build.adapters},
        )

    def _look(self, adapter: BuildAdapter, fetcher: AdapterFetcher) -> FetchedAdapter | KeptAdapter:
        """Raises RejectedError."""
        place = AdapterPlace(
            uri=adapter.uri,
            endpoint=adapter.endpoint,
            credentials=adapter.credentials,
            secret=adapter.secret,
            digest=adapter.digest,
            model_digest=adapter.model_digest,
        )
        earlier = self._earlier.get(adapter.name)
        digest = adapter.digest
        if digest is None and (state := fetcher.state(place)) is not None:
            self.states[adapter.name] = state
            if earlier is not None and self._latest is not None and self._latest.states.get(adapter.name) == state:
                digest = earlier.bundled.source_digest
        if digest is not None and (same := self._same(adapter, earlier, digest)) is not None:
            return same
        fetched = fetcher.fetch(adapter.name, place, self._model_digest)
        return self._same(adapter, earlier, fetched.digest) or fetched

    def _same(self, adapter: BuildAdapter, earlier: KeptAdapter | None, digest: str) -> KeptAdapter | None:
        """The newest version's, where it was made of these files and proven by what is asked now."""
        if earlier is None or earlier.bundled.source_digest != digest:
            return None
        if earlier.proof != adapter_proof(self._base, digest, self._build.verify):
            return None
        return earlier.at(adapter.uri)
