"""The environment of worker processes, and the scratch folder that they share with PID 1."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from olivine_api import names
from olivine_trainer.cli.placement import Placement


@dataclass(frozen=True)
class Scratch:
    """A writable folder: in a pod a mounted volume, elsewhere a temporary one that is removed at the end."""

    folder: Path
    temporary: bool


def find_scratch() -> Scratch:
    """The pod's scratch volume, else a fresh temporary folder."""
    mounted = Path(names.SCRATCH_DIR)
    if mounted.is_dir() and os.access(mounted, os.W_OK):
        return Scratch(folder=mounted, temporary=False)
    return Scratch(folder=Path(tempfile.mkdtemp(prefix="olivine-")), temporary=True)


def worker_environment(outer: Mapping[str, str], scratch: Path, placement: Placement, *, rank: int, port: int) -> dict[str, str]:
    """What a worker of this pod finds: its rank, its threads, and caches where it may write."""
    caches = scratch / "cache"
    return {
        **outer,
        **placement.environment(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank - placement.ranks.start),
        "OMP_NUM_THREADS": str(threads(outer, len(placement.ranks))),
        # Threads that spin while they wait steal the CPU from those that work: 5 times slower when contended.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        names.ENV_HUB_OFFLINE: outer.get("HF_HUB_OFFLINE", ""),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(caches / "huggingface"),
        # Of its own: transformers copies a model's code there, file by file, while a sibling may import it.
        "HF_MODULES_CACHE": str(caches / f"modules-{rank}"),
        "XDG_CACHE_HOME": str(caches),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "MPLCONFIGDIR": str(caches / "matplotlib"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic only with a fixed workspace
        "PYTHONUNBUFFERED": "1",
    }


def threads(outer: Mapping[str, str], processes: int) -> int:
    """Threads of one worker: the pod's CPU limit, else the CPUs that this process may use, shared by the workers."""
    limit = outer.get(names.ENV_CPU_LIMIT, "")
    cpus = int(limit) if limit.isdigit() and int(limit) else len(os.sched_getaffinity(0))
    return max(1, min(cpus, len(os.sched_getaffinity(0))) // processes)
