"""`make demo`: applies examples/phrase-tone.yaml on the embedded cluster, follows it, and shows base and tuned model side by side."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from obstore.store import S3Store

from olivine_api.status import FineTuneJobStatus, Phase, Progress

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".olivine"
MANIFEST = ROOT / "examples" / "phrase-tone.yaml"
BUCKET = "olivine"
NAMESPACE, NAME = "team-a", "phrase-tone"

DEADLINE = 20 * 60  # seconds; the job takes 2 to 3 minutes on two idle cores
POLL = 1.0  # seconds between two looks at the status
BAR = 24  # characters


def main() -> int:
    """Runs the demo; returns 0 where the job succeeded."""
    started = time.monotonic()
    bucket = open_bucket(BUCKET)
    kubectl("delete", "ftj", "-n", NAMESPACE, NAME, "--ignore-not-found", "--wait=true")
    print(f"$ kubectl apply -f {MANIFEST.relative_to(ROOT)}")
    print(kubectl("apply", "-f", str(MANIFEST)), end="")
    print(f"$ kubectl get ftj -n {NAMESPACE} {NAME} -w     (the same, as a live line:)")

    status = follow(started + DEADLINE)
    if status.phase is not Phase.SUCCEEDED:
        failure = status.last_failure
        print(f"{status.phase}: {failure.reason}: {failure.message}" if failure else str(status.phase))
        print(kubectl("describe", "ftj", "-n", NAMESPACE, NAME))
        return 1
    show_result(status, bucket)
    print(f"\n{time.monotonic() - started:.0f} s. The cluster is still up; look around, then `make cluster-down`:")
    print("  export KUBECONFIG=$PWD/.olivine/kubeconfig PATH=$PWD/.olivine/bin:$PATH")
    print(f"  kubectl describe ftj -n {NAMESPACE} {NAME}")
    return 0


def kubectl(*arguments: str) -> str:
    """Standard output of the embedded cluster's kubectl; ends the demo with its message where it fails."""
    environment = os.environ | {"KUBECONFIG": str(STATE / "kubeconfig")}
    done = subprocess.run(
        [str(STATE / "bin" / "kubectl"), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def open_bucket(name: str) -> S3Store:
    """A bucket of the embedded cluster's S3 server, as the host reaches it."""
    env = dict(line.split("=", 1) for line in (STATE / "s3.env").read_text().split() if "=" in line)
    return S3Store(
        name,
        endpoint=env["AWS_ENDPOINT_URL"],
        access_key_id=env["AWS_ACCESS_KEY_ID"],
        secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region=env.get("AWS_REGION", "us-east-1"),
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def follow(deadline: float) -> FineTuneJobStatus:
    """Prints a live line (on a terminal; otherwise a line per change) until the job ends."""
    live = sys.stdout.isatty()
    last = ""
    for status in statuses(deadline):
        line = describe(status)
        if live:
            print(f"\r\x1b[K{line}", end="", flush=True)
        elif line != last:
            print(line, flush=True)
        last = line
        if status.phase in (Phase.SUCCEEDED, Phase.FAILED):
            if live:
                print()
            return status
    sys.exit(f"\nthe job did not end within {DEADLINE} s: kubectl describe ftj -n {NAMESPACE} {NAME}")


def statuses(deadline: float) -> Iterator[FineTuneJobStatus]:
    """The job's status, again and again until the deadline (monotonic seconds)."""
    while time.monotonic() < deadline:
        raw: dict[str, Any] = json.loads(kubectl("get", "ftj", "-n", NAMESPACE, NAME, "-o", "json"))
        yield FineTuneJobStatus.model_validate(raw.get("status", {}))
        time.sleep(POLL)


def describe(status: FineTuneJobStatus) -> str:
    """One line: phase, stage, bar, step, loss, ETA."""
    progress = status.progress
    if progress is None or status.phase is not Phase.RUNNING:
        reason = next((c.message for c in status.conditions if c.type == "Running"), "")
        return f"{status.phase or 'Pending'}  {reason}"
    parts = [f"{progress.stage:<15}", bar(progress)]
    if progress.step and progress.total_steps:
        parts.append(f"step {progress.step}/{progress.total_steps}")
    if "trainLoss" in status.metrics:
        parts.append(f"loss {status.metrics['trainLoss']:.4f}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"ETA {progress.eta_seconds} s")
    return "  ".join(parts)


def bar(progress: Progress) -> str:
    """A progress bar of the steps, or of an evaluation's rows."""
    percent = progress.stage_percent if progress.stage.startswith("Evaluating") else progress.percent
    filled = BAR * (percent or 0) // 100
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {percent or 0:3d}%"


def show_result(status: FineTuneJobStatus, bucket: S3Store) -> None:
    """Metrics of base and tuned model, sample answers of each, and where the adapter lies."""
    print(f"\n{'':12}{'base':>10}{'tuned':>10}")
    for name in sorted(status.baseline.keys() & status.metrics.keys()):
        print(f"{name:<12}{status.baseline[name]:>10.4f}{status.metrics[name]:>10.4f}")
    prefix = (status.storage_uri or "").removeprefix(f"s3://{BUCKET}/")
    published = json.loads(bytes(bucket.get(f"{prefix}/run/published.json").bytes()))
    print("\nheld-back rows, as answered by each:")
    for sample in published["samples"][:3]:
        print(f"  {sample['prompt'].strip()!r}")
        answers = {name: sample[name].strip() for name in ("expected", "base", "tuned")}
        print("    " + "   ".join(f"{name} {answer!r}" for name, answer in answers.items()))
    for artifact in status.artifacts:
        print(f"\n{artifact.kind}: {artifact.uri} ({artifact.bytes / 1e6:.1f} MB, digest {artifact.digest})")


if __name__ == "__main__":
    sys.exit(main())
