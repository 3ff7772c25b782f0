"""report.json: what was measured of a bundle. It stays outside the digest: the same bundle may be measured again."""

from typing import Annotated

from pydantic import Field

from olivine_api.adapterbundle import AdapterStatus
from olivine_api.base import StatusModel


class BaseParity(StatusModel):
    """The graph without an adapter against PyTorch's base."""

    max_logit_difference: float
    """Of the fp32 build, as are the two agreements."""
    top1_agreement: float
    greedy_agreement: float
    mean_kl: Annotated[float | None, Field(alias="meanKL")] = None
    """Of the shipped build, as are the two below; None where it could not be run."""
    shipped_top1_agreement: float | None = None
    shipped_greedy_agreement: float | None = None
    not_verified: str | None = None
    """Why it could not: then the fp32 build of the same surgery alone was proven."""


class BundleReport(StatusModel):
    """A bundle's measurements."""

    digest: str
    base_digest: str
    precision: str
    total_bytes: int
    merged_equivalent_bytes: int
    """What as many merged models would take."""
    base: BaseParity
    switching_difference: float | None = None
    """Absent where nothing had to be measured anew. The worst logit of one generator that goes from adapter to adapter and back to the base, against fresh ones."""
    adapters: list[AdapterStatus]
    """With the names of an AdapterBundle's status."""
