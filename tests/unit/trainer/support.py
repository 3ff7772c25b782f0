"""Builders for the trainer's tests: a job over local files, a run of it in this process, a stop at a drawn moment."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import MethodType, parse_spec
from olivine_api.status import JobIdentity, Stage
from olivine_trainer.job import Job
from olivine_trainer.loop.claim import claim_run, fetch_sources, open_run
from olivine_trainer.loop.stop import StopFlag
from olivine_trainer.reporting.board import Board
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import Role
from olivine_trainer.storage.records import Published
from olivine_trainer.storage.store import Store

TONES = ("joy", "anger", "fear")


def tone_rows(count: int) -> list[dict[str, Any]]:
    """Different phrases of different lengths, the tones in turn."""
    return [{"phrase": "ha " * (1 + index % 5) + str(index), "tone": TONES[index % len(TONES)]} for index in range(count)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with dotted paths replaced: {"training.maxSteps": 3}; None removes."""
    result = json.loads(json.dumps(base))
    for path, value in changes.items():
        *folders, last = path.split(".")
        target = result
        for folder in folders:
            target = target.setdefault(folder, {})
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return result


def make_job(model: Path, rows: Path, storage: str, **changes: Any) -> Job:
    """A small job with everything that makes a resume hard: dropout, accumulation, shuffling over several epochs.

    Changes are dotted paths with '__' for '.'.
    """
    spec = {
        "task": "Classification",
        "model": {"uri": f"file://{model}"},
        "data": {
            "train": {"uri": f"file://{rows}"},
            "validationFraction": 0.25,
            "stratifyBy": "tone",
            "template": {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"},
            "maxLength": 64,
        },
        "method": {"type": "LoRA", "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
        "training": {
            "maxSteps": 8,
            "learningRate": 5e-3,
            "batchSize": 2,
            "gradientAccumulationSteps": 2,
            "loggingSteps": 1,
            "warmupSteps": 2,
        },
        "evaluation": {"samples": 2},
        "checkpoint": {"everySteps": 3},
        "tracking": {"tensorboard": False},
        "storage": {"uri": storage},
    }
    raw = merged(spec, {path.replace("__", "."): value for path, value in changes.items()})
    return Job(spec=parse_spec(raw), identity=JobIdentity(namespace="team", name="tone", uid="u1", child=""))


def local_store(folder: Path, role: Role = "storage", **changes: Any) -> Store:
    return Store(local_access(f"file://{folder}", role), **changes)


def local_access(uri: str, role: Role = "storage") -> Access:
    return Access(
        role=role,
        uri=uri,
        endpoint=None,
        access_key_id=None,
        secret_access_key=None,
        session_token=None,
        region="us-east-1",
        ca_bundle=None,
    )


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the trainer catches it."""


class StopAt(StopFlag):
    """Asks or kills at the n-th look (the trainer looks before every micro-batch)."""

    def __init__(self, look: int | None = None, *, kill: bool = False) -> None:
        super().__init__()
        self.looks = 0
        self._look = look
        self._kill = kill

    def check(self) -> None:
        self.looks += 1
        if self._look is not None and self.looks >= self._look:
            if self._kill:
                raise KilledError
            self.requested = True
        super().check()


def run_job(
    job: Job,
    scratch: Path,
    *,
    stop: StopFlag | None = None,
    board: Board | None = None,
    environ: Mapping[str, str] | None = None,
) -> Published:
    """What a worker does, without a process of its own."""
    from olivine_trainer.modeling.imports import import_training_stack

    board = board or Board(None)
    scratch.mkdir(parents=True, exist_ok=True)
    records = open_run(job, environ or {})
    claim = claim_run(job, records, board)
    if isinstance(claim, Published):
        return claim
    sources = fetch_sources(job, environ or {}, scratch, board, records.commits())
    import_training_stack(quantized=job.spec.method.type is MethodType.QLORA)
    from olivine_trainer.loop.train import train

    return train(job, claim, sources, board=board, stop=stop or StopFlag(), scratch=scratch)


def artifact_folder(published: Published) -> Path:
    return Path(published.snapshot.artifacts[0].uri.removeprefix("file://"))


def adapter_bytes(published: Published) -> bytes:
    return (artifact_folder(published) / "adapter_model.safetensors").read_bytes()


def kill_in_step(job: Any, step: int, scratch: Path, environ: dict[str, str] | None = None) -> None:
    """Kill before the second micro-batch (or the only one) of a step (from 0), while its gradients are half done."""

    class Kill(StopAt):
        """Counts only the looks from within training steps."""

        armed = False

        def check(self) -> None:
            if self.armed:
                super().check()

    micro_batches = job.spec.training.gradient_accumulation_steps
    stop = Kill(micro_batches * step + min(2, micro_batches), kill=True)

    class Arming(Board):
        def progress(self, **changes: Any) -> None:
            stop.armed = changes.get("stage", self.snapshot.progress.stage) is Stage.TRAINING
            super().progress(**changes)

    with pytest.raises(KilledError):
        run_job(job, scratch, stop=stop, board=Arming(None), environ=environ)
