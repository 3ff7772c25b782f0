"""The card of what is published on a hub: README.md, with the front matter that the hub reads."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_HUB = "hf://"
# What hubs take as `license`; every other name goes beside `license: other`.
_LICENSES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
        *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "openrail", "bigscience-openrail-m"),
        *("gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "unlicense"),
    }
)


@dataclass(frozen=True)
class ModelCard:
    """What a reader of the repository wants to know."""

    title: str
    base_uri: str
    method: str
    library: str | None
    """That loads what lies at the top: peft, transformers, onnxruntime-genai."""
    task: str = "text-generation"
    base_digest: str | None = None
    license: str | None = None
    """As the base's card has it."""
    contents: Mapping[str, str] = field(default_factory=dict[str, str])
    """What lies where: '' is the top."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    baseline: Mapping[str, float] = field(default_factory=dict[str, float])

    def render(self) -> bytes:
        """README.md, the same for the same card."""
        import yaml  # noqa: PLC0415  (comes with the hub's client; only cards are YAML here)

        front = yaml.safe_dump(self._front(), sort_keys=False, allow_unicode=True)
        lines = [f"# {self.title}", "", f"Tuned from `{self.base_uri}` by Olivine, method {self.method}."]
        if self.base_digest is not None:
            lines.append(f"The base's files have the digest `{self.base_digest}`.")
        lines += ["", "| folder | what lies there |", "|---|---|"]
        lines += [f"| {name or '(top)'} | {what} |" for name, what in self.contents.items()]
        if shown := [name for name in self.metrics if name in self.baseline]:
            lines += ["", "| metric | base | tuned |", "|---|---|---|"]
            lines += [f"| {name} | {self.baseline[name]:.4g} | {self.metrics[name]:.4g} |" for name in shown]
        lines += ["", "Each folder's manifest.json holds the sha256 of its files."]
        return ("---\n" + front + "---\n" + "\n".join(lines) + "\n").encode()

    def _front(self) -> dict[str, Any]:
        front: dict[str, Any] = {}
        if self.base_uri.startswith(_HUB):
            front["base_model"] = self.base_uri.removeprefix(_HUB).strip("/")
        if self.library is not None:
            front["library_name"] = self.library
        if self.license is not None:
            front |= _license(self.license)
        return front | {"pipeline_tag": self.task, "tags": ["olivine", re.sub(r"\W+", "-", self.method.lower())]}


def _license(told: str) -> dict[str, str]:
    name = told.strip().lower()
    return {"license": name} if name in _LICENSES else {"license": "other", "license_name": name}
