"""What training uses: memory at its peak, and how busy the CPUs and the device are."""

import resource
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch

from olivine_api.status import Utilization
from olivine_trainer.cgroup import find_memory_cgroup

_SAMPLE_SECONDS = 0.001
_PAGE = resource.getpagesize()
_STATM = Path("/proc/self/statm")


@dataclass
class Meter:
    """How busy this process was since the last reading."""

    _cpu: float = field(default_factory=time.process_time, init=False)
    _wall: float = field(default_factory=time.monotonic, init=False)
    _input: float = field(default=0.0, init=False)
    _steps: float = field(default=0.0, init=False)

    def stepped(self, seconds: float, input_seconds: float) -> None:
        """After a step, of which `input_seconds` went into preparing its rows."""
        self._steps += seconds
        self._input += input_seconds

    def read(self) -> Utilization:
        """Since the last reading; the next one begins here."""
        cpu, wall = time.process_time(), time.monotonic()
        threads = torch.get_num_threads()
        found = Utilization(
            cpu=round(min(1.0, (cpu - self._cpu) / max((wall - self._wall) * threads, 1e-9)), 3),
            gpu=_device_utilization(),
            input=round(self._input / self._steps, 3) if self._steps else None,
        )
        self._cpu, self._wall, self._input, self._steps = cpu, wall, 0.0, 0.0
        return found


def _device_utilization() -> float | None:
    """Of the last moment; None without a device, or without NVIDIA's library to ask."""
    if not torch.cuda.is_available():
        return None
    try:
        return torch.cuda.utilization() / 100
    except (ImportError, RuntimeError):
        return None


class _Peak:
    """What the device's counter no longer knows."""

    earlier = 0


def peak_memory_bytes() -> int:
    """Most memory that was held: of the device where there is one, else of this process."""
    if torch.cuda.is_available():
        return max(_Peak.earlier, torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def held_memory_bytes() -> int:
    """What is held now."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return int(_STATM.read_text().split()[1]) * _PAGE


class PeakOf:
    """The peak of what happens inside: `with PeakOf() as peak: …`, then `peak.bytes`."""

    bytes = 0

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        if torch.cuda.is_available():
            _Peak.earlier = peak_memory_bytes()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()  # the kernel's own mark cannot be set back without losing it
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._thread.join()
            self.bytes = max(self.bytes, held_memory_bytes())

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, held_memory_bytes())


def memory_in_words() -> str:
    """Peak and limit of the memory that training uses, for a sentence."""
    if torch.cuda.is_available():
        limit = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"peak {peak_memory_bytes() >> 20} MiB, the device has {limit >> 20} MiB"
    cgroup = find_memory_cgroup()
    return cgroup.describe() if cgroup is not None else f"peak {peak_memory_bytes() >> 20} MiB"
