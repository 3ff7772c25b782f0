"""Runs a command to its end and turns a failure into one sentence."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from devcluster.console import DevclusterError


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Returns the standard output. With `log`, both streams go to that file, and nothing is returned."""
    words = [str(word) for word in argv]
    try:
        if log is None:
            done = subprocess.run(words, check=False, env=env, cwd=cwd, input=stdin or "", capture_output=True, text=True)
            if done.returncode:
                raise DevclusterError(f"`{' '.join(words[:6])}` failed ({done.returncode}): {done.stderr.strip()[-800:]}")
            return done.stdout
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            code = subprocess.run(
                words, check=False, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
            ).returncode
        if code:
            raise DevclusterError(f"`{' '.join(words[:4])}` failed ({code}); read {log}, which ends:\n{tail(log)}")
        return ""
    except FileNotFoundError as error:
        raise DevclusterError(f"the command {words[0]!r} is not installed; devcluster/README.md lists what is needed") from error


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, for an error message."""
    if not log.exists():
        return "(no log)"
    with log.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - 8192))
        text = stream.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
