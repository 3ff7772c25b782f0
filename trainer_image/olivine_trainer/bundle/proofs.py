"""What was measured once, by what it was measured of: neither a pod that comes later nor a later version measures it again."""

import hashlib
import json
from typing import Any, Protocol

from olivine_api.adapterbundle import AdapterStatus, Verify
from olivine_api.base import StatusModel
from olivine_trainer.bundle.layout import proof_key
from olivine_trainer.bundle.report import BaseParity
from olivine_trainer.storage.store import Store

_FORMAT = 1  # another one: what is measured has another meaning


class Proof(StatusModel):
    """Exactly one member is there."""

    adapter: AdapterStatus | None = None
    """Proven; its numbers."""
    rejected: str | None = None
    """Not what PyTorch computes; the sentence."""
    base: BaseParity | None = None
    """The graph with no adapter active."""


class ProofBook(Protocol):
    """Where proofs are kept."""

    def find(self, name: str) -> Proof | None:
        """What was measured under this name."""
        ...

    def keep(self, name: str, proof: Proof) -> None:
        """From here on it is known."""
        ...


class LocalBook:
    """For the time of one build."""

    def __init__(self) -> None:
        self._known: dict[str, Proof] = {}

    def find(self, name: str) -> Proof | None:
        """See ProofBook."""
        return self._known.get(name)

    def keep(self, name: str, proof: Proof) -> None:
        """See ProofBook."""
        self._known[name] = proof


class StoredBook:
    """In a bundle's folder, so that a pod that comes later goes on."""

    def __init__(self, bundle: Store) -> None:
        self._bundle = bundle
        self._known: dict[str, Proof] = {}

    def find(self, name: str) -> Proof | None:
        """See ProofBook."""
        if name not in self._known and (found := self._bundle.get(proof_key(name))) is not None:
            try:
                self._known[name] = Proof.model_validate_json(found.data)
            except ValueError:
                return None  # it is measured again, and written over
        return self._known.get(name)

    def keep(self, name: str, proof: Proof) -> None:
        """See ProofBook."""
        self._known[name] = proof
        self._bundle.put(proof_key(name), proof.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())


def adapter_proof(base: str, adapter: str, verify: Verify) -> str:
    """Names the proof of an adapter by what decides its numbers: the base's name, its source's digest, what is asked of it."""
    return _named({"base": base, "adapter": adapter, "verify": verify.to_json_dict()})


def base_proof(base: str, slots: list[str], verify: Verify) -> str:
    """Names the proof of a graph with no adapter active."""
    return _named({"base": base, "slots": sorted(slots), "verify": verify.to_json_dict()})


def _named(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, parts], sort_keys=True).encode()).hexdigest()
