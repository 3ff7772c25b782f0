"""Every command that the documentation shows is run, or named here with the reason why it is not."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from olivine_api.status import Phase
from tests.support.cluster import ROOT, STATE, Cluster, example, renamed, s3
from tests.support.models import make_tiny_llama
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.full, pytest.mark.timeout(900)]

NAMESPACE = "docs-commands"
JOB = "documented"
NOT_RUN = {
    r"make (demo|test|verify|cluster|cluster-down|help|generate|test-full)$": "the session's own way here, or covered by the demo's test",
    r"make bench-": "from 20 minutes to an hour, one with data of its own; tests/bench run what they are made of",
    r"export KUBECONFIG=": "every command below runs with it",
    r"docker build ": "needs a Docker engine; the embedded cluster's images are made without one",
    r"helm uninstall ": "the session's operator would go; tests/api/test_upgrade.py uninstalls a release",
    r"kubectl wait ftj": "waits until the job has ended",
    r"olivine(-train)? bundle ": "tests/unit/trainer/test_bundle.py and tests/cluster/test_bundles.py run them",
    r"kubectl (get|describe) ab ": "tests/cluster/test_bundles.py runs them on a bundle that is there",
    r"kubectl create namespace ": "done by the fixture, with what the embedded cluster's pods need",
}


def documented() -> Iterator[str]:
    """Each command line in the fenced blocks without a language, and in the README's table; continued lines joined."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "devcluster" / "README.md"]
    for page in pages:
        text = page.read_text()
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
        for block in [block for language, block in blocks if language in ("", "sh", "bash")]:
            yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())
        yield from re.findall(r"^\|[^|]*\| `((?:kubectl|olivine-train)[^`]*)`", text, re.MULTILINE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace of its own, granted what trainer pods need, with a suspended job to patch."""
    subprocess.run([".venv/bin/python", "-m", "devcluster", "grant", NAMESPACE], cwd=ROOT, check=True)
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
    for file in folder.iterdir():
        s3("models").put(f"tests/tiny-llama/{file.name}", file.read_bytes())
    cluster = Cluster(NAMESPACE)
    cluster.apply(renamed(example("phrase-tone.yaml"), JOB, NAMESPACE, suspend=True))
    wait_for("the job is known", lambda: cluster.status(JOB).phase is Phase.SUSPENDED, seconds=60)
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true")


def shell(command: str, *, seconds: float = 120) -> str:
    """Runs a line as a user would, on the embedded cluster."""
    environment = os.environ | {
        "KUBECONFIG": str(STATE / "kubeconfig"),
        "PATH": f"{STATE / 'bin'}:{ROOT / '.venv/bin'}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def _here(command: str) -> str:
    return command.replace("team-a", NAMESPACE).replace("phrase-tone", JOB).replace("NAME", f"{JOB} -n {NAMESPACE}")


def _dry_run(command: str) -> None:
    shell(f"{_here(command)} --dry-run=server")


def _create(command: str) -> None:
    # The namespace of the tests has it already, by the fixture.
    shell(f"{command.replace('team-a', 'default')} --dry-run=server")


def _run(command: str) -> None:
    shell(_here(command))


def _watch(command: str) -> None:
    # It watches until it is stopped: 3 seconds of it show the job.
    assert JOB in shell(f"timeout 3 {_here(command)} || [ $? = 124 ]")


def _apply(command: str) -> None:
    shell(f"{command} --dry-run=server")


def _install(command: str) -> None:
    # The release is installed already: an upgrade with the same words, which changes nothing.
    upgraded = command.replace("helm install olivine", "helm upgrade --install olivine").replace("REGISTRY", "registry.example")
    assert "kind: Deployment" in shell(f"{upgraded} --dry-run=server")


def _train(command: str, folder: Path) -> None:
    model = make_tiny_llama(folder / "model")
    manifest = renamed(
        example("phrase-tone.yaml"),
        JOB,
        NAMESPACE,
        model={"uri": f"file://{model}"},
        storage={"uri": f"file://{folder}/runs"},
        pods={},
    )
    data = manifest["spec"]["data"]
    data["train"], data["maxLength"] = {"uri": f"file://{ROOT}/examples/data/phrase-tone.jsonl"}, 256
    manifest["spec"]["training"]["maxSteps"] = 4
    manifest["spec"]["training"]["warmupSteps"] = 0
    file = folder / "job.yaml"
    file.write_text(json.dumps(manifest))
    shell(command.replace("FILE", str(file)), seconds=300)
    assert list((folder / "runs").rglob("adapter_model.safetensors"))


HOW: dict[str, Callable[[str], None]] = {
    r"helm install ": _install,
    r"kubectl create secret ": _create,
    r"kubectl apply -f examples/": _apply,
    r"kubectl get ftj .*-w$": _watch,
    r"kubectl describe ftj": _run,
    r"kubectl get (lease|endpointslices) ": _run,
    r"kubectl annotate secret ": _dry_run,
    r"helm upgrade olivine ": _dry_run,
    r"kubectl patch ftj": _dry_run,
}


def test_every_documented_command_runs(cluster: Cluster, tmp_path: Path) -> None:
    commands = list(dict.fromkeys(documented()))
    assert len(commands) > 8, commands
    for command in commands:
        if any(re.match(pattern, command) for pattern in NOT_RUN):
            continue
        if command.startswith("olivine-train"):
            _train(command, tmp_path)
            continue
        how = next((run for pattern, run in HOW.items() if re.match(pattern, command)), None)
        assert how is not None, f"no test runs the documented command: {command}"
        how(command)
