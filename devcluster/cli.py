"""The command line."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from devcluster import addons, clients, images, lifecycle, processes, s3, slots
from devcluster.artifacts import build_all
from devcluster.console import DevclusterError, say
from devcluster.locks import exclusive
from devcluster.paths import DEFAULT_STATE, State


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; an error that a person has to act on is one sentence, not a traceback."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options, State(Path(options.state).resolve()))
    except DevclusterError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devcluster", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state", default=str(DEFAULT_STATE), metavar="DIR", help="the cluster's folder (default: .olivine in the checkout)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[common], help=text, description=text)

    build = command("build", "build what is missing in the cache")
    command("clients", "fetch kubectl and helm, and print their folder")
    start = command("up", "start the cluster, or refresh the one that runs")
    start.add_argument(
        "--control-plane-only", action="store_true", help="an API server with its controllers on 127.0.0.1: no root, no pods"
    )
    start.add_argument("--no-operator", action="store_true", help="do not install the operator")
    for verb in (build, start):
        verb.add_argument("--addons", default="", metavar="NAMES", help=f"also {', '.join(addons.ADDONS)} (comma-separated)")
    command("down", "remove every trace of the cluster but its logs")
    command("status", "say what runs; the exit code is 0 where all does")
    command("images", "build the operator's and the trainer's images onto the node, and print their names")
    allow = command("grant", "make a namespace in which trainer pods can run")
    allow.add_argument("namespace")
    command("stop-s3", "stop the S3 server alone; its data stays")
    command("start-s3", "start the S3 server again")
    for verb, text in (("start-addons", "start add-ons"), ("stop-addons", "stop add-ons and delete what they serve")):
        command(verb, text).add_argument("addons", metavar="NAMES", help=f"of {', '.join(addons.ADDONS)} (comma-separated)")
    return parser


def _run(options: argparse.Namespace, state: State) -> int:
    match options.command:
        case "build":
            build_all(addons=addons.named(options.addons))
        case "clients":
            print(clients.clients().build())
        case "up":
            _up(state, options)
        case "down":
            lifecycle.down(state)
        case "status":
            return _status(state)
        case "images":
            with exclusive(state.lock):
                loaded = images.load(lifecycle.require(state))
            print(loaded.operator.name, loaded.trainer.name, sep="\n")
        case "grant":
            lifecycle.grant(state, options.namespace)
        case "stop-s3":
            s3.stop(lifecycle.require(state))
        case "start-s3":
            lifecycle.start_s3(state, lifecycle.require(state))
        case "start-addons":
            lifecycle.start_addons(state, addons.named(options.addons))
        case "stop-addons":
            lifecycle.stop_addons(state, addons.named(options.addons))
        case unknown:
            raise AssertionError(unknown)
    return 0


def _up(state: State, options: argparse.Namespace) -> None:
    if options.control_plane_only:
        lifecycle.up_control_plane(state)
    else:
        lifecycle.up(state, with_operator=not options.no_operator, with_addons=addons.named(options.addons))
    print(f"export KUBECONFIG={shlex.quote(str(state.kubeconfig))} PATH={shlex.quote(str(state.bin))}:$PATH")


def _status(state: State) -> int:
    slot = slots.find(state.root)
    alone = processes.recorded(state.processes)
    if slot is None and not alone:
        print(f"nothing runs in {state.root}")
        return 1
    daemons = processes.recorded(slot.processes) if slot else alone
    for daemon in daemons.values():
        print(f"{daemon.name:12} {'runs' if daemon.alive() else 'ENDED':6} pid {daemon.pid:<8} log {daemon.log}")
    well = all(daemon.alive() for daemon in daemons.values())
    if slot is not None:
        well = well and lifecycle.healthy(state, slot)
        print(
            f"cluster {slot.name}: {'ready' if well else 'not whole: `up` starts it again'}; S3 at {s3.Access.read(state).endpoint}"
        )
    print(f"kubeconfig {state.kubeconfig}")
    return 0 if well else 1
