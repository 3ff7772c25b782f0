"""PID 1 of a builder pod as a real process: what it reports, what it leaves, and how it goes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from olivine_api.adapterbundle import AdapterStatus, BaseStatus, BundleStatus
from olivine_api.bundle_build import BuildResult, BuildSnapshot, BuildStage, BuildTermination, BundleBuild
from olivine_api.reasons import Reason
from olivine_api.status import JobIdentity
from olivine_trainer.bundle.latest import read_latest
from olivine_trainer.cli.team import Death
from olivine_trainer.cli.verdict import silent_end
from olivine_trainer.reporting.build_report import fit_snapshot, fit_termination
from tests.support.adapters import make_peft
from tests.support.models import WIDE, make_tiny
from tests.support.serving import QuietHandler, served
from tests.unit.trainer.support import local_store

_MAIN = """
import sys
from pathlib import Path
from olivine_trainer.early_signals import EARLY
EARLY.install()
from olivine_trainer.cli.bundle_files import read_build
from olivine_trainer.cli.bundle_pod import supervise_build
build, identity = read_build(Path(sys.argv[1]))
sys.exit(supervise_build(build, identity, Path(sys.argv[1]) / "termination-log", early=EARLY))
"""
_IDENTITY = JobIdentity(namespace="team", name="tones", uid="u1", child="tones-abc-1")


class _Operator:
    """The status endpoint."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.paths: set[str] = set()
        self.snapshots: list[BuildSnapshot] = []
        self.refuse_results = 0
        """How many POSTs with a result are answered by 503 first."""


class _Handler(QuietHandler):
    operator: _Operator

    def do_POST(self) -> None:  # noqa: N802  (as the base class wants it)
        snapshot = BuildSnapshot.model_validate_json(self.rfile.read(int(self.headers["Content-Length"])))
        self.operator.paths.add(self.path)
        refused = snapshot.result is not None and self.operator.refuse_results > 0
        if refused:
            self.operator.refuse_results -= 1
        else:
            self.operator.snapshots.append(snapshot)
        self.send_response(503 if refused else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def operator() -> Iterator[_Operator]:
    handler: type[BaseHTTPRequestHandler] = _Handler
    with served(handler, "operator", _Operator) as state:
        yield state


class _Pod:
    """A builder pod: its mounted files, its log, its end."""

    def __init__(self, folder: Path, build: dict[str, Any], operator: _Operator) -> None:
        folder.mkdir(parents=True)
        self.folder, self.log = folder, folder / "log"
        (folder / "termination-log").touch()
        (folder / "spec.json").write_text(BundleBuild.model_validate(build).model_dump_json(by_alias=True, exclude_none=True))
        (folder / "identity.json").write_text(_IDENTITY.model_dump_json(by_alias=True))
        environ = {"TMPDIR": str(folder), "OLIVINE_STATUS_URL": operator.url, "OLIVINE_POD_NAME": "builder-0"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(folder)], stdout=log, stderr=log, env={**os.environ, **environ}
            )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> tuple[int, BuildTermination]:
        try:
            code = self.process.wait(90)
        finally:
            self.process.kill()
        return code, BuildTermination.model_validate_json((self.folder / "termination-log").read_bytes())


def _build(model: Path, storage: Path, adapters: dict[str, Path], **changes: Any) -> dict[str, Any]:
    return {
        "sequence": 1,
        "digest": "inputs",
        "model": {"uri": model.as_uri()},
        "adapters": [{"name": name, "uri": folder.as_uri()} for name, folder in adapters.items()],
        "onnx": {"precision": "int8"},
        "verify": {"maxExtraKL": 1.0, "prompts": ["Phrase: ha"]},
        "storage": {"uri": storage.as_uri()},
        **changes,
    }


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("Llama", tmp_path_factory.mktemp("wide") / "model", intermediate_size=96, **WIDE)


def test_a_pod_that_is_asked_to_go_leaves_40_and_the_next_one_publishes_and_insists(
    model: Path, operator: _Operator, tmp_path: Path
) -> None:
    one = make_peft(model, tmp_path / "one")
    build = _build(model, tmp_path / "storage", {"one": one, "gone": tmp_path / "gone"})
    first = _Pod(tmp_path / "first", build, operator)
    first.wait_for("the base is kept")
    first.process.send_signal(signal.SIGTERM)
    code, end = first.end()
    assert (code, end.reason, end.category) == (40, Reason.INTERRUPTED, "Infrastructure")
    bundle = local_store(tmp_path / "storage").sub("team/bundles/tones")
    assert read_latest(bundle) is None

    operator.refuse_results = 2  # the one while it works, and the first of those that insist
    code, end = _Pod(tmp_path / "second", build, operator).end()
    assert (code, end.reason, end.message) == (0, Reason.PUBLISHED, "version 1 is published")
    result = end.build.result if end.build is not None else None
    assert result is not None
    assert result.base_reused
    assert [(one.name, one.state) for one in result.adapters] == [("one", "Ready"), ("gone", "Rejected")]
    last = operator.snapshots[-1]
    assert (last.result, last.pod, last.stage) == (result, "builder-0", BuildStage.PUBLISHING)
    assert operator.paths == {"/v1/namespaces/team/adapterbundles/tones/snapshot"}
    latest = read_latest(bundle)
    assert latest is not None
    assert latest.result == result


@pytest.mark.full
def test_a_pod_whose_adapters_are_all_rejected_ends_with_12_and_tells_of_each(
    model: Path, operator: _Operator, tmp_path: Path
) -> None:
    build = _build(model, tmp_path / "storage", {"gone": tmp_path / "gone"})
    code, end = _Pod(tmp_path / "pod", build, operator).end()
    assert (code, end.reason) == (12, Reason.ADAPTERS_REJECTED)
    assert end.build is not None
    assert end.build.result is not None
    assert [(one.name, one.state) for one in end.build.result.adapters] == [("gone", "Rejected")]
    assert operator.snapshots[-1].result == end.build.result


def test_a_builder_that_was_killed_for_memory_is_told_by_the_peak() -> None:
    death = Death(0, -signal.SIGKILL, for_memory=True)
    code, reason, message = silent_end(death, "building", memory="peak 900 MiB", advice="raise it", asked_to_go=False)
    assert (code, reason) == (20, Reason.OUT_OF_MEMORY)
    assert message == "the building process was killed for memory (peak 900 MiB): raise it"


def _large() -> BuildSnapshot:
    adapters = [
        AdapterStatus(
            name=f"adapter-{number}",
            source=f"s3://bucket/{'x' * 200}/{number}",
            digest="d" * 64,
            rank=8,
            targets=[f"proj-{target}" for target in range(7)],
            max_logit_difference=1e-5,
            mean_kl=0.01,
            model_digest="m" * 64,
            state="Ready" if number % 2 else "Rejected",
            reason=None if number % 2 else "because " * 120,
        )
        for number in range(64)
    ]
    result = BuildResult(
        base=BaseStatus(digest="b" * 64, bytes=1, precision="int8"),
        bundle=BundleStatus(uri="s3://b/x", digest="v" * 64, version=7, total_bytes=2, merged_equivalent_bytes=3),
        adapters=adapters,
    )
    return BuildSnapshot(sequence=3, stage=BuildStage.PUBLISHING, result=result)


def test_reports_fit_their_limits_and_keep_the_bundle() -> None:
    snapshot = _large()
    small = fit_snapshot(snapshot)
    assert len(small.model_dump_json(by_alias=True, exclude_none=True)) <= 64 * 1024
    assert small.result is not None
    assert len(small.result.adapters) == 64
    message = BuildTermination(reason=Reason.PUBLISHED, message="m" * 1000, build=snapshot)
    body = fit_termination(message)
    assert len(body) <= 4096
    told = BuildTermination.model_validate(json.loads(body)).build
    assert told is not None
    assert told.result is not None
    assert snapshot.result is not None
    assert (told.result.bundle, told.result.base) == (snapshot.result.bundle, snapshot.result.base)
    assert told.result.adapters


@pytest.mark.parametrize(("verb", "code"), [("pod", 0), ("worker", -signal.SIGTERM)])
def test_a_signal_before_the_imports_is_remembered_by_pid_1_and_ends_the_child(verb: str, code: int) -> None:
    """The child has nothing to save yet; remembered by nobody, the signal would be lost, and the pod killed at the end of its grace."""
    asked_to_go = f"""
import os, runpy, signal, sys
import olivine_trainer.cli
sys.argv = ["olivine_trainer", "bundle", "{verb}", "folder"]
olivine_trainer.cli.main = lambda: os.kill(os.getpid(), signal.SIGTERM)
runpy.run_module("olivine_trainer", run_name="__main__")
"""
    assert subprocess.run([sys.executable, "-c", asked_to_go], check=False, timeout=60).returncode == code
