"""Olive on the same work, in an environment of its own: each command with what became of it, in its own words where it failed."""

import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from devcluster.cache import Recipe
from devcluster.shell import run
from tests.bench.bundle.workload import Workload

LOCK = Path(__file__).parent / "olive.lock"
_PYTHON = "3.11"
_LIMIT = 400  # seconds of one command


@dataclass(frozen=True)
class Attempt:
    """One command of Olive."""

    command: str
    code: int | None
    """None: it did not end in time."""
    cpu_seconds: float
    bytes: int
    """Of what it left."""
    said: str
    """The error, or nothing."""


def environment() -> Recipe:
    """Installed once for each content of the lock, beside the other things that are built once."""
    return Recipe("bench-olive", {"lock": LOCK.read_bytes(), "python": _PYTHON.encode()}, _install, "about 2 minutes")


def _install(folder: Path, log: Path) -> None:
    python = folder / "env" / "bin" / "python"
    run(["uv", "venv", "--quiet", "--relocatable", "--python", _PYTHON, folder / "env"], log=log)
    run(["uv", "pip", "install", "--quiet", "--python", python, "--require-hashes", "--requirements", LOCK], log=log)


def attempts(load: Workload) -> list[Attempt]:
    """The documented ways to one model with several adapters, and what each came to."""
    first, second = (load.adapter(name) for name in load.names(2))
    out = load.folder / "olive"
    out.mkdir()
    base = ["--model_name_or_path", load.model]
    builder = ["capture-onnx-graph", *base, "--adapter_path", first, "--use_model_builder", "--precision"]
    asked = [
        ["capture-onnx-graph", *base, "--adapter_path", first, "--conversion_device", "cpu"],
        ["auto-opt", *base, "--adapter_path", first, "--device", "cpu", "--use_ort_genai", "--precision", "int4"],
        [*builder, "int8"],
        [*builder, "int4"],
        ["generate-adapter", "--model_name_or_path", out / "3", "--adapter_format", "onnx_adapter"],
        ["convert-adapters", "--adapter_path", second, "--dtype", "float32"],
    ]
    return [_try([*command, "--output_path", out / str(at)], out) for at, command in enumerate(asked)]


def matching_names(load: Workload) -> str:
    """Whether the second adapter's file fits the graph that was made with the first."""
    from olivine_trainer.bundle.files import read_adapter

    out = load.folder / "olive"
    made, second = out / "4" / "adapter_weights.onnx_adapter", out / "5.onnx_adapter"
    if not (made.is_file() and second.is_file()):
        return "one of the two adapter files is not there"
    names = read_adapter(made).keys()
    same = names & read_adapter(second).keys()
    return f"{len(same)} of the {len(names)} names in the second adapter's file are inputs of the graph"


def _try(command: list[str | Path], out: Path) -> Attempt:
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    python = environment().folder / "env" / "bin" / "python"
    whole = [str(python), "-m", "olive", *(str(word) for word in command), "--disable_telemetry"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    try:
        done = subprocess.run(whole, cwd=out, env=environ, capture_output=True, text=True, timeout=_LIMIT, check=False)
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, said = None, f"not done after {time.monotonic() - began:.0f} s"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    left = list(out.glob(f"{Path(str(command[-1])).name}*"))
    size = sum(file.stat().st_size for path in left for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Attempt(_shown(command, out), code, spent, size, _error(said))


def _shown(command: list[str | Path], out: Path) -> str:
    words = [
        Path(word).relative_to(out.parent).as_posix() if str(word).startswith(str(out.parent)) else str(word) for word in command
    ]
    words[2:3] = ["MODEL"] if words[1] == "--model_name_or_path" and words[2].startswith("/") else words[2:3]
    return " ".join(["olive", *words])


def _error(said: str) -> str:
    lines = [
        line.strip()
        for line in said.splitlines()
        if re.match(r"\s*[\w.]*(Error|Exception)\b|No output model|not done|.*\berror: ", line)
    ]
    return "; ".join(dict.fromkeys(line[:200] for line in lines[-2:]))


if __name__ == "__main__":
    for one in attempts(Workload.load(Path(sys.argv[1]))):
        print(one)
    print(matching_names(Workload.load(Path(sys.argv[1]))))
