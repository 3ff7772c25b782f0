"""The part of a job's ConfigMap that changes while its child lives: whom to trust, how many pods there are, what was healed."""

import hashlib
import json
from typing import Any

from olivine_api import names
from olivine_api.status import Overrides, World


def live_data(*, ca_certificate: str, world: World, overrides: Overrides | None) -> dict[str, str]:
    """The ConfigMap's keys that may be written again."""
    data = {names.CONFIG_CA: ca_certificate, names.CONFIG_WORLD: canonical(world.to_json_dict())}
    if overrides is not None:
        data[names.CONFIG_OVERRIDES] = canonical(overrides.to_json_dict())
    return data


def digest_of(data: dict[str, str]) -> str:
    """Noted on the child, so that nobody has to read the ConfigMap."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:16]


def canonical(value: Any) -> str:
    """JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
