"""The operator on the cluster: Olivine's own chart, installed by Helm as anybody would."""

import os

from devcluster.clients import clients
from devcluster.console import say
from devcluster.contents import OPERATOR_NAMESPACE
from devcluster.images import Images
from devcluster.paths import CHART, PACKAGE, State
from devcluster.shell import run

_RELEASE = "olivine"


def install(state: State, images: Images) -> None:
    """Installs or upgrades the release, and waits until the operator is ready."""
    values = {
        "image.repository": images.operator.repository,
        "image.tag": images.operator.tag,
        "trainer.image.repository": images.trainer.repository,
        "trainer.image.tag": images.trainer.tag,
    }
    # As strings: a tag of digits alone would become a number.
    settings = [word for key, value in values.items() for word in ("--set-string", f"{key}={value}")]
    say(f"installing the operator {images.operator.tag} by Helm")
    words = ["upgrade", "--install", _RELEASE, CHART, "--namespace", OPERATOR_NAMESPACE, "--create-namespace"]
    options = ["--values", PACKAGE / "values.yaml", *settings, "--wait", "--timeout", "3m"]
    env = {**os.environ, "KUBECONFIG": str(state.kubeconfig)}
    run([clients().build() / "helm", *words, *options], env=env)
