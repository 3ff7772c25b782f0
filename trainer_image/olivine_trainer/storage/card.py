"""What a model's or a dataset's card says: the front matter of its README.md."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from olivine_api.reasons import Reason
from olivine_trainer.errors import ModelError

CARD = "README.md"


def read_card(path: Path) -> Mapping[str, Any]:
    """The front matter; empty where there is none, or none that can be read."""
    import yaml  # noqa: PLC0415  (comes with the hub's client; only cards are YAML here)

    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return {}
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---"), None)
    if end is None:
        return {}
    try:
        card = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError:
        return {}
    return card if isinstance(card, dict) else {}


def license_of(card: Mapping[str, Any]) -> str | None:
    """The licence that a card names; several are separated by commas. `other` gives way to its own name."""
    told = card.get("license")
    names = [str(one).strip() for one in (told if isinstance(told, list) else [told]) if one is not None and str(one).strip()]
    own = str(card.get("license_name") or "").strip()
    names = [own if name.lower() == "other" and own else name for name in names]
    return ", ".join(names)[:253] or None


def require_license(found: str | None, allowed: Iterable[str] | None, uri: str) -> None:
    """Raise ModelError unless each licence that the card names is allowed; None allows all."""
    if allowed is None:
        return
    listed = list(allowed)
    known = {name.strip().lower() for name in listed}
    if found is not None and all(name.strip().lower() in known for name in found.split(",")):
        return
    what = f"has the licence {found}" if found is not None else f"names no licence ({CARD} has no `license:` in its front matter)"
    raise ModelError(
        Reason.LICENSE_NOT_ALLOWED,
        f"model.uri {uri} {what}, and model.allowedLicenses is [{', '.join(listed)}]:"
        " take another model, or add the licence to model.allowedLicenses once you may use it",
    )
