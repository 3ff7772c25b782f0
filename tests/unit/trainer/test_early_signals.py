"""A pod that is asked to go before anything of ours has started."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from olivine_trainer.cli.team import Forwarder
from olivine_trainer.early_signals import EarlySignals


def test_a_signal_before_the_supervisor_stood_reaches_the_worker() -> None:
    """PID 1 has no default handler: a SIGTERM while it imported was lost, and the pod killed after its grace."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    sent: list[int] = []

    class Workers:
        def send(self, number: int) -> None:
            sent.append(number)

    try:
        early = EarlySignals()
        early.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert early.asked
        forwarder = Forwarder(early)
        forwarder.attach(Workers())  # pyright: ignore[reportArgumentType]
        assert (forwarder.asked, sent) == (True, [signal.SIGTERM])
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_a_signal_before_python_stood_is_heard_with_the_images_entrypoint() -> None:
    dockerfile = (Path(__file__).parents[3] / "trainer_image" / "Dockerfile").read_text()
    entrypoint: list[str] = json.loads(dockerfile.rpartition("\nENTRYPOINT ")[2])
    assert entrypoint[-2:] == ["-m", "olivine_trainer"]
    program = """
import os, signal
os.kill(os.getpid(), signal.SIGTERM)
from olivine_trainer.early_signals import EARLY
heard = EARLY.asked
EARLY.install()
print(heard, EARLY.asked, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    done = subprocess.run([*entrypoint[:-3], sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True set()"
