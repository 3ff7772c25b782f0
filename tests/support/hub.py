"""A stand-in of the Hugging Face hub's HTTP API, over real HTTP: info, tree, resolve, redirects to large files, refusals; and
what it takes to write: making a repository, preupload, LFS, commits.
"""

import base64
import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.serving import QuietHandler, served

_LARGE = (".safetensors", ".parquet", ".bin", ".onnx", ".data", ".onnx_adapter")
_PAGE = 3  # entries of one page of a tree


@dataclass
class Repository:
    """Files by commit, and what refs point to."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: bool = False
    """Only tokens that were let in read it."""
    private: bool = False
    """To all others it is not there."""
    let_in: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()
    """Tokens that may commit."""

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """A further commit, which `ref` points to."""
        sha = hashlib.sha1(f"{ref}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha


@dataclass
class Hub:
    """A running hub."""

    endpoint: str
    cdn: str
    """Another host, where large files lie: tokens must not go there."""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By path: organisation/name, or datasets/organisation/name."""
    requests: list[str] = field(default_factory=list)
    down: bool = False
    """Every answer is 503."""
    failing: int = 0
    """So many answers are 503."""
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Tokens that may make repositories of an organisation."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256, before a commit names them."""
    lost_answers: int = 0
    """So many commits are made, and answered by 503."""
    spoiled: set[str] = field(default_factory=set)
    """Paths of large files whose first byte is flipped on the way, once each."""

    def add(self, path: str, files: Mapping[str, bytes], **changes: Any) -> str:
        """A repository with one commit on main; returns the commit."""
        self.repositories[path] = Repository(commits={}, refs={}, **changes)
        return self.repositories[path].commit(files)

    def seen(self) -> list[str]:
        """The requests since the last look."""
        seen, self.requests = self.requests, []
        return seen


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


@contextmanager
def running_hub() -> Generator[Hub]:
    """A hub on a port of its own."""
    with served(_Handler, "hub", lambda port: Hub(endpoint=f"http://127.0.0.1:{port}", cdn=f"http://localhost:{port}")) as hub:
        yield hub


class _Handler(QuietHandler, BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.down or self.hub.failing:
            self.hub.failing = max(0, self.hub.failing - 1)
            self._send(503, b"busy")
            return
        try:
            self._route(unquote(urlsplit(self.path).path).strip("/").split("/"))
        except RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send(
                refused.status,
                json.dumps({"error": "refused", "url": f"{self.hub.endpoint}/there"}).encode(),
                {name: value for name, value in headers.items() if value},
            )

    def _route(self, parts: list[str]) -> None:
        if parts[0] == "cdn" and self.command == "PUT":
            self._take_large(parts[1])
        elif parts[0] == "cdn":
            self._large(parts[1])
        elif parts == ["api", "repos", "create"]:
            self._create()
        elif parts == ["api", "validate-yaml"]:
            self._check_card()
        elif parts[2:] == ["info", "lfs", "objects", "batch"] and parts[1].endswith(".git"):
            self._lfs_batch(f"{parts[0]}/{parts[1].removesuffix('.git')}")
        elif parts[:2] == ["api", "models"] and parts[4:5] in (["preupload"], ["commit"], ["auth-check"]):
            path = "/".join(parts[2:4])
            self._writable(path)
            {"preupload": self._preupload, "commit": self._take_commit, "auth-check": lambda _: self._json({})}[parts[4]](path)
        elif parts[0] == "api" and parts[1] in ("models", "datasets"):
            path = "/".join(parts[2:4]) if parts[1] == "models" else f"datasets/{'/'.join(parts[2:4])}"
            self._api(path, parts[4:])
        elif "resolve" in parts:
            at = parts.index("resolve")
            self._resolve("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            raise RefusedError(404, "")

    def _repository(self, path: str, *, files: bool) -> Repository:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == "hf_bad":
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        found = self.hub.repositories.get(path)
        if found is None or (found.private and token not in found.let_in):
            raise RefusedError(404 if token else 401, "RepoNotFound", "Repository not found")
        if files and found.gated and token not in found.let_in:
            raise RefusedError(403 if token else 401, "GatedRepo", "Access to this repository is restricted")
        return found

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _writable(self, path: str) -> Repository:
        found = self._repository(path, files=False)
        if self._token not in found.writers:
            raise RefusedError(403 if self._token else 401, "", "You don't have write access to this repository")
        return found

    def _create(self) -> None:
        wanted = json.loads(self._body)
        path = f"{wanted['organization']}/{wanted['name']}"
        if self._token not in self.hub.members.get(wanted["organization"], ()):
            raise RefusedError(403 if self._token else 401, "", "You don't have the rights to create a model under this namespace")
        if path in self.hub.repositories:
            raise RefusedError(409, "", "You already created this model repo")
        private = wanted.get("visibility") == "private"
        self.hub.add(
            path, {".gitattributes": b"*.safetensors filter=lfs"}, private=private, let_in=(self._token,), writers=(self._token,)
        )
        self._json({"url": f"{self.hub.endpoint}/{path}"})

    def _check_card(self) -> None:
        if "license: nonsense" in json.loads(self._body)["content"]:
            body = json.dumps({"errors": [{"message": '"license" must be one of a list'}]}).encode()
            self._send(400, body, {"Content-Type": "application/json"})
        else:
            self._json({"errors": [], "warnings": []})

    def _preupload(self, path: str) -> None:
        files = self.hub.repositories[path].commits[self._commit(self.hub.repositories[path], "main")]
        told: list[dict[str, Any]] = []
        for one in json.loads(self._body)["files"]:
            large = one["path"].endswith(_LARGE)
            data = files.get(one["path"])
            oid = None if data is None else hashlib.sha256(data).hexdigest() if large else _git_oid(data)
            told.append({"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        self._json({"files": told})

    def _lfs_batch(self, path: str) -> None:
        self._writable(path)
        known = {hashlib.sha256(data).hexdigest() for _, data in self._everything()}
        objects: list[dict[str, Any]] = []
        for one in json.loads(self._body)["objects"]:
            action = {"upload": {"href": f"{self.hub.cdn}/cdn/{one['oid']}"}}
            objects.append(one if one["oid"] in known else one | {"actions": action})
        self._json({"transfer": "basic", "objects": objects})

    def _take_large(self, sha256: str) -> None:
        if self.headers.get("Authorization"):
            raise RefusedError(400, "", "a token was sent to another host")
        if hashlib.sha256(self._body).hexdigest() != sha256:
            raise RefusedError(400, "", "not what was announced")
        self.hub.uploads[sha256] = self._body
        self._send(200, b"")

    def _take_commit(self, path: str) -> None:
        """Lines of JSON: a header, then an operation each. What is wrong with one of them refuses all."""
        repository = self.hub.repositories[path]
        files = dict(repository.commits[repository.refs["main"]])
        known = self.hub.uploads | {hashlib.sha256(data).hexdigest(): data for _, data in self._everything()}
        for line in self._body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in known:
                        raise RefusedError(400, "", f"{value['path']} was never uploaded")
                    files[value["path"]] = known[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case _:
                    pass  # the header
        commit = repository.commit(files)
        if self.hub.lost_answers:
            self.hub.lost_answers -= 1
            self._send(503, b"lost")
            return
        self._json({"commitUrl": f"{self.hub.endpoint}/{path}/commit/{commit}", "commitOid": commit})

    def _everything(self) -> list[tuple[str, bytes]]:
        return [
            (name, data)
            for repository in self.hub.repositories.values()
            for files in repository.commits.values()
            for name, data in files.items()
        ]

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, path: str, rest: list[str]) -> None:
        kind = rest[0] if rest else "revision"
        repository = self._repository(path, files=kind == "tree")
        commit = self._commit(repository, rest[1] if len(rest) > 1 else "main")
        files = repository.commits[commit]
        if kind == "revision":
            siblings = [{"rfilename": name} for name in sorted(files)]
            name = path.removeprefix("datasets/")
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": repository.private, "tags": []})
            return
        prefix = "/".join(rest[2:])
        below = {name: data for name, data in files.items() if not prefix or name.startswith(f"{prefix}/")}
        if prefix and not below:
            raise RefusedError(404, "EntryNotFound", f"{prefix} does not exist")
        self._tree(below)

    def _tree(self, files: Mapping[str, bytes]) -> None:
        entries: list[dict[str, Any]] = []
        for name, data in sorted(files.items()):
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            if name.endswith(_LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        folders = {name.rpartition("/")[0] for name in files if "/" in name}
        entries += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        headers = {}
        if start + _PAGE < len(entries):
            base = self.path.split("cursor=")[0].rstrip("&?")
            joint = "&" if "?" in base else "?"
            headers["Link"] = f'<{self.hub.endpoint}{base}{joint}cursor={start + _PAGE}>; rel="next"'
        self._json(entries[start : start + _PAGE], headers)

    def _resolve(self, path: str, revision: str, name: str) -> None:
        repository = self._repository(path, files=True)
        commit = self._commit(repository, revision)
        data = repository.commits[commit].get(name)
        headers = {"X-Repo-Commit": commit}
        if data is None:
            raise RefusedError(404, "EntryNotFound", f"{name} does not exist")
        if name.endswith(_LARGE):
            sha256 = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data)), "ETag": '"pointer"'}
            self._send(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn/{sha256}"})
            return
        self._send(200, data, headers | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _large(self, sha256: str) -> None:
        if self.headers.get("Authorization"):
            raise RefusedError(400, "", "a token was sent to another host")
        name, data = next((name, data) for name, data in self._everything() if hashlib.sha256(data).hexdigest() == sha256)
        if self.command == "GET" and name in self.hub.spoiled:
            self.hub.spoiled.remove(name)
            data = bytes([data[0] ^ 1]) + data[1:]
        ranged = self.headers.get("Range")
        if ranged is None:
            self._send(200, data, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
            return
        start = int(ranged.removeprefix("bytes=").split("-")[0])
        self._send(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
