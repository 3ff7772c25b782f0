"""The chart, rendered by the real helm."""

import json
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from devcluster.clients import clients

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/olivine"
NAMESPACE = "olivine-system"


def helm_template(values: Json | None = None, *options: str, namespace: str = NAMESPACE) -> subprocess.CompletedProcess[str]:
    """What helm says, right or wrong."""
    command = [str(clients().build() / "helm"), "template", "olivine", str(CHART), "--namespace", namespace, *options]
    # JSON is YAML.
    return subprocess.run([*command, "--values", "-"], input=json.dumps(values or {}), check=False, capture_output=True, text=True)


def render_chart(*options: str, values: Json | None = None) -> list[Json]:
    """The chart's objects."""
    said = helm_template(values, *options)
    assert said.returncode == 0, said.stderr
    return read_objects(said.stdout)


def read_objects(text: str) -> list[Json]:
    """The objects in YAML documents."""
    return [item for item in YAML(typ="safe", pure=True).load_all(text) if item]


def the(objects: list[Json], kind: str, name: str | None = None) -> Json:
    """The one object of a kind, or of a name among them."""
    (found,) = [item for item in objects if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    return found


def settings_of(objects: list[Json]) -> Json:
    """What the operator reads."""
    return json.loads(the(objects, "ConfigMap", "olivine-operator")["data"]["settings.json"])
