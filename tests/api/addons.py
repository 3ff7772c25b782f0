"""The CustomResourceDefinitions of JobSet and Kueue, from their Go modules; tests play their controllers."""

import json
import os
import subprocess
from functools import cache
from pathlib import Path

from devcluster.gobuild import find_toolchain
from tests.api.kube import Kube
from tests.support.wait import wait_for

_ROOT = Path(__file__).resolve().parents[2]
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# Module, file of its CRD, and the path by which the kind is served.
JOBSET = ("sigs.k8s.io/jobset@v0.12.0", "jobset.x-k8s.io_jobsets.yaml", "/apis/jobset.x-k8s.io/v1alpha2/jobsets")
KUEUE = ("sigs.k8s.io/kueue@v0.19.2", "kueue.x-k8s.io_workloads.yaml", "/apis/kueue.x-k8s.io/v1beta2/workloads")


@cache
def _module(name: str) -> Path:
    toolchain = find_toolchain(_ROOT / "devcluster/go/controlplane/go.mod")
    env = os.environ | ({"GOTOOLCHAIN": "auto"} if toolchain.fetch else {})
    command = [str(toolchain.command), "mod", "download", "-json", name]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=300).stdout
    return Path(json.loads(told)["Dir"])


def install(kube: Kube, addon: tuple[str, str, str]) -> None:
    """Makes the CRD, and waits until the kind is served and discovered."""
    module, file, path = addon
    text = (_module(module) / "config/components/crd/bases" / file).read_text()
    answer = kube.send("POST", _CRDS, text.encode(), "application/yaml")
    assert answer.ok, answer.message
    group = path.split("/")[2]
    wait_for(f"{file} is served", lambda: kube.request("GET", path).ok, seconds=30)
    wait_for(f"{group} is discovered", lambda: any(g["name"] == group for g in kube.must("GET", "/apis")["groups"]), seconds=30)


def uninstall(kube: Kube, addon: tuple[str, str, str]) -> None:
    """Deletes the CRD with all its objects."""
    _, file, path = addon
    group, plural = file.removesuffix(".yaml").split("_")
    kube.must("DELETE", f"{_CRDS}/{plural}.{group}")
    wait_for(f"{file} is gone", lambda: kube.request("GET", path).code == 404, seconds=60)
