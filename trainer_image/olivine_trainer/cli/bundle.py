"""`olivine bundle run|verify`, and `olivine-train bundle build` beside them."""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path

from olivine_api.exit_codes import ExitCode
from olivine_trainer.early_signals import EARLY
from olivine_trainer.errors import TrainerError

_WHERE = "a folder, or s3://, gs://, az://, hf://… with credentials from the environment; a bundle's root is its newest version"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `olivine`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="olivine", description="Use what Olivine has published.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_bundle(verbs, builds=False)
    return run_bundle(parser.parse_args(arguments))


def add_bundle(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", *, builds: bool) -> None:
    """The verb `bundle` with its own verbs."""
    bundle = verbs.add_parser("bundle", help="a multi-adapter ONNX model").add_subparsers(
        dest="of_bundle", required=True, metavar="VERB"
    )
    if builds:
        build = bundle.add_parser("build", help="build and prove a bundle from folders of this machine")
        build.add_argument("--spec", required=True, metavar="FILE", help="an AdapterBundle, or its spec, with file:// addresses")
        build.add_argument("--out", required=True, metavar="DIR", help="a new folder")
        bundle.add_parser("pod", help="build what is mounted in a builder pod, and publish it")
        worker = bundle.add_parser("worker", help="the process that builds; started by pod")
        worker.add_argument("folder", help="where the build stands and the snapshot goes")
    verify = bundle.add_parser("verify", help="check a bundle's files, digests and slots")
    verify.add_argument("where", metavar="DIR|URI", help=_WHERE)
    verify.add_argument(
        "--base", metavar="DIGEST", help="the digest of the base, or of the model it was built from, that is wanted"
    )
    run = bundle.add_parser("run", help="let one adapter answer a prompt")
    run.add_argument("where", metavar="DIR|URI", help=_WHERE)
    run.add_argument("--adapter", required=True, metavar="NAME", help="base is the model without any")
    run.add_argument("--prompt", required=True, metavar="TEXT")
    run.add_argument("--max-tokens", type=_positive, default=128, metavar="N")


def run_bundle(parsed: argparse.Namespace) -> int:
    """Do what the verb says; a TrainerError is one line on standard error, and its own exit code."""
    if parsed.of_bundle == "pod":
        return _pod()
    if parsed.of_bundle == "worker":
        from olivine_trainer.cli.bundle_worker import work_on_build  # noqa: PLC0415  (PID 1 stays light)

        return work_on_build(Path(parsed.folder))
    try:
        {"build": _build, "verify": _verify, "run": _run}[parsed.of_bundle](parsed)
    except TrainerError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        return error.exit_code
    return ExitCode.DONE


def _pod() -> int:
    EARLY.install()
    # Only now: these take a second, in which a SIGTERM would be lost.
    from olivine_trainer.cli.bundle_files import read_build  # noqa: PLC0415
    from olivine_trainer.cli.bundle_pod import supervise_build  # noqa: PLC0415
    from olivine_trainer.cli.supervisor import fail_before_start  # noqa: PLC0415

    try:
        build, identity = read_build()
    except TrainerError as error:
        return fail_before_start(error)
    return supervise_build(build, identity, early=EARLY)


def _build(parsed: argparse.Namespace) -> None:
    # All imports of this module's verbs are late: they take seconds.
    from olivine_trainer.bundle.spec import parse_build  # noqa: PLC0415
    from olivine_trainer.cli.manifest import load_one  # noqa: PLC0415
    from olivine_trainer.modeling.imports import import_training_stack  # noqa: PLC0415
    from olivine_trainer.reporting.logs import set_up_logging  # noqa: PLC0415

    path = Path(parsed.spec)
    spec = parse_build(load_one(path), path.name)
    set_up_logging(None)
    import_training_stack()
    from olivine_trainer.bundle.build import build_bundle  # noqa: PLC0415

    report = build_bundle(spec, Path(parsed.out))
    sys.stdout.write(report.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n")


def _verify(parsed: argparse.Namespace) -> None:
    from olivine_trainer.bundle.check import check_bundle  # noqa: PLC0415

    with _found(parsed.where) as folder:
        manifest = check_bundle(folder, base=parsed.base)
    names = ", ".join(adapter.name for adapter in manifest.adapters)
    sys.stdout.write(f"{manifest.digest}: {len(manifest.files)} files are sound; base {manifest.base_digest}; adapters: {names}\n")


def _run(parsed: argparse.Namespace) -> None:
    from olivine_trainer.bundle.use import answer_prompt  # noqa: PLC0415

    with _found(parsed.where) as folder:
        for piece in answer_prompt(folder, parsed.adapter, parsed.prompt, parsed.max_tokens):
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")


@contextlib.contextmanager
def _found(where: str) -> Generator[Path]:
    """The bundle's folder, for as long as it is used."""
    from olivine_trainer.bundle.remote import find_bundle  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="olivine-") as scratch:
        yield find_bundle(where, os.environ, Path(scratch))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens: write 1 or more")
    return int(text)
