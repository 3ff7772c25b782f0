"""Where things lie: the checkout, the cache outside it, and the folder that holds one cluster's state."""

import os
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "devcluster"
ENVIRONMENT = CHECKOUT / ".venv"
CHART = CHECKOUT / "charts" / "olivine"
DEFAULT_STATE = CHECKOUT / ".olivine"
# Machine-wide: which cluster holds which slot. On a tmpfs, so that a reboot forgets what a reboot ended.
REGISTRY = Path("/run/olivine")


def cache_root() -> Path:
    """The folder that keeps what was built, shared by every checkout of this user."""
    base = os.environ.get("OLIVINE_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "olivine"


@dataclass(frozen=True)
class State:
    """The layout of a cluster's state folder."""

    root: Path

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def s3_env(self) -> Path:
        """What a client of the store needs, as KEY=value lines."""
        return self.root / "s3.env"

    @property
    def bin(self) -> Path:
        """kubectl and helm."""
        return self.root / "bin"

    @property
    def log(self) -> Path:
        """Kept by `down`, so that a failure can be read afterwards; emptied by the next `up`."""
        return self.root / "log"

    @property
    def data(self) -> Path:
        """Everything that `down` deletes without a further thought."""
        return self.root / "data"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.data / "pki"

    @property
    def kubeconfigs(self) -> Path:
        """The parts' kubeconfigs."""
        return self.data / "kubeconfigs"

    @property
    def processes(self) -> Path:
        """Process records of a cluster without a slot (control plane only)."""
        return self.data / "processes"

    @property
    def temporary(self) -> Path:
        """There while the cluster is a test run's, which takes it down at its end (tools/with_cluster.sh)."""
        return self.root / "temporary"

    @property
    def lock(self) -> Path:
        """Held while a command changes the cluster."""
        return self.root / "lock"
