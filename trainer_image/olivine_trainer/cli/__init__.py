"""`python -m olivine_trainer` and `olivine-train`: in a pod, from the mounted job; elsewhere, from a manifest."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from olivine_trainer.cli.bundle import add_bundle, run_bundle
from olivine_trainer.early_signals import EARLY


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code (olivine_api.exit_codes)."""
    parsed = _parser().parse_args(_with_verb(list(sys.argv[1:] if arguments is None else arguments)))
    if parsed.verb == "worker":
        from olivine_trainer.cli.worker import work  # noqa: PLC0415  (PID 1 stays light)

        return work(Path(parsed.folder))
    if parsed.verb == "bundle":
        return run_bundle(parsed)
    EARLY.install()
    # Only now: these take a second, in which a SIGTERM would be lost.
    from olivine_trainer.cli.manifest import MOUNTED, bare, read_manifest, read_mounted_job  # noqa: PLC0415
    from olivine_trainer.cli.supervisor import fail_before_start, supervise  # noqa: PLC0415
    from olivine_trainer.errors import TrainerError  # noqa: PLC0415

    try:
        if parsed.spec is None:
            job, surroundings = read_mounted_job(), MOUNTED
        else:
            job = read_manifest(Path(parsed.spec), namespace=parsed.namespace, name=parsed.name, uid=parsed.uid)
            surroundings = bare(job)
    except TrainerError as error:
        return fail_before_start(error)
    return supervise(job, surroundings, early=EARLY)


def _with_verb(arguments: list[str]) -> list[str]:
    """`train` is the default verb."""
    if arguments and (arguments[0] in ("train", "worker", "bundle", "-h", "--help")):
        return arguments
    return ["train", *arguments]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="olivine-train", description="Fine-tune a language model as a FineTuneJob says.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    train = verbs.add_parser("train", help="train and publish (the default)")
    train.add_argument(
        "--spec", metavar="FILE", help="a FineTuneJob, or its spec, as YAML or JSON; without it the job mounted in the pod"
    )
    train.add_argument("--namespace", help="where the run's folder goes: <storage.uri>/<namespace>/<name>/<uid>/")
    train.add_argument("--name")
    train.add_argument("--uid", help="default: made from the specification, so that the same one resumes")
    worker = verbs.add_parser("worker", help="one training process; started by train")
    worker.add_argument("folder", help="where the job stands and the snapshot goes")
    add_bundle(verbs, builds=True)
    return parser
