"""Names of everything in a bundle's folder, `<storage.uri>/<namespace>/bundles/<name>/`; a version's folder is named by its digest."""

BUNDLE = "bundle.json"
LATEST = "latest.json"
BASES = "bases"
BUILDS = "builds"
PROOFS = "proofs"
RUNNING = "running"


def bundle_folder(namespace: str, name: str) -> str:
    """The bundle's folder below the storage URI."""
    return f"{namespace}/bundles/{name}"


def base_folder(name: str) -> str:
    """Key of a base's folder."""
    return f"{BASES}/{name}"


def build_key(inputs: str) -> str:
    """Key of the result of a finished build, named by its inputs."""
    return f"{BUILDS}/{inputs}.json"


def proof_key(name: str) -> str:
    """Key of what was measured of one adapter, or of a graph without any."""
    return f"{PROOFS}/{name}.json"


def running_key(sequence: int) -> str:
    """Key of what a build that has not ended needs."""
    return f"{RUNNING}/{sequence}.json"
