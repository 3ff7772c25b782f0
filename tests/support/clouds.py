"""A small stand-in of three clouds' object stores over real HTTP, for what no server is at hand for.

S3, Google's XML API and Azure's blobs: objects, ranges, listings, and above all the headers of conditional writes, which it can be
told to ignore or to refuse. It checks no signatures, and of deletions it knows Google's alone: the others send batches.
"""

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from olivine_trainer.storage.credentials import Access
from tests.support.serving import QuietHandler, served

Scheme = Literal["s3", "gs", "az"]
ACCOUNT = "account"
_DATE = "Wed, 25 Nov 2026 00:00:00 GMT"


@dataclass
class Cloud:
    """A running store with one bucket, `bucket`."""

    scheme: Scheme
    endpoint: str
    conditions: Literal["honoured", "ignored", "refused"] = "honoured"
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    """Content and generation by key."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    written: int = 1_700_000_000_000_000
    """The newest generation."""

    def access(self, path: str = "") -> Access:
        """Means for a folder in the bucket."""
        keys: Mapping[str, str] = {
            "s3": {},
            "gs": {
                "GOOGLE_SERVICE_ACCOUNT": f'{{"gcs_base_url": "{self.endpoint}", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}}'
            },
            "az": {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"},
        }[self.scheme]
        return Access(
            role="storage",
            uri=f"{self.scheme}://bucket/{path}",
            endpoint=self.endpoint,
            access_key_id="key",
            secret_access_key="secret",
            session_token=None,
            region="us-east-1",
            ca_bundle=None,
            keys=keys,
        )


@contextmanager
def running_cloud(scheme: Scheme) -> Generator[Cloud]:
    """A store on a port of its own."""

    def make(port: int) -> Cloud:
        base = f"http://127.0.0.1:{port}"
        return Cloud(scheme, f"{base}/{ACCOUNT}" if scheme == "az" else base)

    with served(_Handler, "cloud", make) as cloud:
        yield cloud


class _Handler(QuietHandler, BaseHTTPRequestHandler):
    cloud: Cloud

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        if self._key():
            self._read()
        else:
            self._list({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})

    def do_DELETE(self) -> None:
        with self.cloud.lock:
            found = self.cloud.objects.pop(self._key(), None)
        self._send(204 if found else 404, b"" if found else b"<Error><Code>NoSuchKey</Code></Error>")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        cloud, key = self.cloud, self._key()
        with cloud.lock:
            status = self._precondition(cloud.objects.get(key))
            if status is None:
                cloud.written += 1
                cloud.objects[key] = (data, cloud.written)
        if status is not None:
            self._send(status, b"<Error><Code>ConditionNotMet</Code></Error>")
            return
        self._send(201 if cloud.scheme == "az" else 200, b"", self._describe(cloud.objects[key]))

    def _precondition(self, current: tuple[bytes, int] | None) -> int | None:
        """The status of a refusal, None where the write may go on."""
        names = ("If-None-Match", "If-Match", "x-goog-if-generation-match")
        absent, match, generation = (self.headers.get(name) for name in names)
        asked = absent or match or generation
        if asked is None or self.cloud.conditions == "ignored":
            return None
        if self.cloud.conditions == "refused":
            return 501
        if self.cloud.scheme == "gs":
            wanted = int(generation or -1)
            return None if wanted == (current[1] if current else 0) else 412
        if absent == "*":
            return (409 if self.cloud.scheme == "az" else 412) if current else None
        return None if current is not None and match == f'"{current[1]}"' else 412

    def _key(self) -> str:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        return "/".join(parts[2:] if self.cloud.scheme == "az" else parts[1:])

    def _read(self) -> None:
        found = self.cloud.objects.get(self._key())
        if found is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        data, headers, status = found[0], self._describe(found), 200
        ranged = self.headers.get("Range")
        if ranged is not None:
            start, _, end = ranged.removeprefix("bytes=").partition("-")
            stop = min(len(data), int(end) + 1 if end else len(data))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[int(start) : stop], 206
        self._send(status, data, headers)

    def _describe(self, stored: tuple[bytes, int]) -> dict[str, str]:
        return {
            "ETag": f'"{stored[1]}"',
            "Last-Modified": _DATE,
            "x-goog-generation": str(stored[1]),
            "x-ms-blob-type": "BlockBlob",
        }

    def _list(self, query: Mapping[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        below = {key: stored for key, stored in sorted(self.cloud.objects.items()) if key.startswith(prefix)}
        folders: set[str] = set()
        if delimiter:
            deeper = {key for key in below if delimiter in key.removeprefix(prefix)}
            folders = {prefix + key.removeprefix(prefix).split(delimiter)[0] + delimiter for key in deeper}
            below = {key: stored for key, stored in below.items() if key not in deeper}
        render = _azure_listing if self.cloud.scheme == "az" else _amazon_listing
        self._send(200, render(below, sorted(folders)).encode(), {"Content-Type": "application/xml"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _amazon_listing(objects: Mapping[str, tuple[bytes, int]], folders: list[str]) -> str:
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-25T00:00:00.000Z</LastModified><ETag>&quot;{generation}&quot;</ETag>"
        f"<Size>{len(data)}</Size></Contents>"
        for key, (data, generation) in objects.items()
    )
    common = "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
    return f"<ListBucketResult>{contents}{common}<IsTruncated>false</IsTruncated></ListBucketResult>"


def _azure_listing(objects: Mapping[str, tuple[bytes, int]], folders: list[str]) -> str:
    blobs = "".join(
        f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{_DATE}</Last-Modified><Etag>{generation}</Etag>"
        f"<Content-Length>{len(data)}</Content-Length><Content-Type>x</Content-Type></Properties></Blob>"
        for key, (data, generation) in objects.items()
    )
    prefixes = "".join(f"<BlobPrefix><Name>{escape(folder)}</Name></BlobPrefix>" for folder in folders)
    return f"<EnumerationResults><Blobs>{blobs}{prefixes}</Blobs><NextMarker/></EnumerationResults>"
