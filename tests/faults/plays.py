"""The faults themselves: each brings a job to a moment, does the harm, and returns. Nothing is faked but the bad luck."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from olivine_api import names
from tests.faults.scene import AFTER_TWO, LAST_DRAWN, Scene
from tests.support.cluster import ROOT, STATE, Cluster
from tests.support.pods import TrainerPod, at_step
from tests.support.trainings import TOTAL_STEPS
from tests.support.wait import wait_for


def killed(scene: Scene) -> None:
    """SIGKILL of every process of one pod at a drawn step."""
    held = scene.hold_at_drawn_step()
    victim = scene.draw.choice(held.pods)
    scene.notes["victim"] = victim.name
    assert victim.kill() >= 2, "PID 1 and at least one worker"
    held.release()


def second_rank_killed_after_publishing(scene: Scene) -> None:
    """Rank 0 publishes and ends; the other pod is killed before its PID 1 has ended."""
    _killed_after_publishing(scene, index=1)


def killed_after_publishing(scene: Scene) -> None:
    """The run is published; the pod is killed before its PID 1 has said so."""
    _killed_after_publishing(scene, index=0)


def _killed_after_publishing(scene: Scene, *, index: int) -> None:
    held = scene.hold(at_step(TOTAL_STEPS // 2))
    victim = held.pods[index]
    # Its worker goes on; PID 1 cannot end the pod before it is killed.
    first = next(process for process in victim.processes() if process.first)
    for process in victim.workers():
        process.signal(signal.SIGCONT)
    first.signal(signal.SIGSTOP)
    for pod in held.pods:
        if pod != victim:
            for process in pod.processes():
                process.signal(signal.SIGCONT)
    wait_for(f"{scene.job} is published", scene.published, seconds=120, every=0.2)
    wait_for("its workers have ended", lambda: all(p.gone() for p in victim.workers()), seconds=60, every=0.2)
    assert first.signal(signal.SIGKILL), "PID 1 was still there"
    scene.step = scene.saved = TOTAL_STEPS


def asked_to_go(scene: Scene) -> None:
    """SIGTERM to PID 1 of every pod at a drawn step, as from a node that shuts down."""
    held = scene.hold_at_drawn_step()
    for pod in held.pods:
        assert next(process for process in pod.processes() if process.first).signal(signal.SIGTERM)
    held.release()
    codes = {pod.name: scene.exit_code(pod) for pod in held.pods}
    assert set(codes.values()) == {40}, codes


def one_asked_to_go(scene: Scene) -> None:
    """SIGTERM to PID 1 of one of the pods at a drawn step: all agree on a step, and save it."""
    held = scene.hold_at_drawn_step()
    victim = scene.draw.choice(held.pods)
    assert next(process for process in victim.processes() if process.first).signal(signal.SIGTERM)
    held.release()
    scene.notes["codes"] = {pod.index: scene.exit_code(pod) for pod in held.pods}
    assert set(scene.notes["codes"].values()) == {40}, scene.notes


def evicted(scene: Scene) -> None:
    """The Eviction API at a drawn step, as from a drain."""
    held = scene.hold_at_drawn_step()
    namespace, pod = scene.cluster.namespace, held.first.name
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    scene.cluster.api.must("POST", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", eviction)
    held.release()


def operator_killed(scene: Scene) -> None:
    """SIGKILL of the operator at a drawn step; it misses what the trainer says until it is back."""
    held = scene.hold_at_drawn_step()
    held.release()
    operators = [TrainerPod.of(pod) for pod in Cluster("olivine-system").get("pods")["items"]]
    assert sum(process.signal(signal.SIGKILL) for pod in operators for process in pod.processes(b"olivine_operator")) > 0


def flipped_byte(scene: Scene) -> None:
    """One bit of the largest part of the newest checkpoint is another before the next attempt reads it."""
    held = scene.hold_at_drawn_step(AFTER_TWO, LAST_DRAWN)
    part = _largest_part(scene)
    data = bytearray(scene.read(part))
    data[scene.draw.randrange(len(data))] ^= 1 << scene.draw.randrange(8)
    scene.write(part, bytes(data))
    _without_the_newest(scene)
    held.first.kill()


def missing_part(scene: Scene) -> None:
    """A part of the newest checkpoint is gone before the next attempt reads it."""
    held = scene.hold_at_drawn_step(AFTER_TWO, LAST_DRAWN)
    scene.remove(_largest_part(scene))
    _without_the_newest(scene)
    held.first.kill()


def torn_upload(scene: Scene) -> None:
    """The newest checkpoint is half of its first parts and has no manifest: its upload was cut off."""
    held = scene.hold_at_drawn_step(AFTER_TWO, LAST_DRAWN)
    folder = scene.newest_checkpoint()
    part = _largest_part(scene)
    scene.remove(f"{folder}/manifest.json")
    scene.write(part, scene.read(part)[:1000])
    _without_the_newest(scene)
    held.first.kill()


def _largest_part(scene: Scene) -> str:
    folder = scene.newest_checkpoint()
    parts = [key for key in scene.keys(folder) if not key.endswith("/manifest.json")]
    return max(parts, key=lambda key: len(scene.read(key)))


def _without_the_newest(scene: Scene) -> None:
    scene.notes["damaged"] = scene.newest_checkpoint() if scene.whole_checkpoints() else ""
    *older, _ = [step for step in scene.whole_checkpoints() if step <= scene.saved] or [0]
    if scene.whole_checkpoints()[-1] != scene.saved:  # the torn one counts no more
        older = scene.whole_checkpoints()
    scene.restored = older[-1]


def store_down(scene: Scene) -> None:
    """The store is stopped at a drawn step and started 30 s later."""
    held = scene.hold_at_drawn_step()
    _devcluster("stop-s3")
    try:
        held.release()
        scene.pass_time(30)
    finally:
        _devcluster("start-s3")


def out_of_memory(scene: Scene) -> None:
    """Somebody in the container takes what memory is left at a drawn step: the kernel kills the worker.

    A process of the host's joins the container's memory cgroup and grows; the worker stands first in the killer's line.
    """
    held = scene.hold_at_drawn_step()
    worker = held.first.workers()[0]
    Path(f"/proc/{worker.pid}/oom_score_adj").write_text("1000")
    procs = _memory_cgroup(worker.pid) / "cgroup.procs"
    grow = "import sys, time\nsys.stdin.readline()\nheld = []\nwhile True:\n held.append(bytearray(16 << 20))\n time.sleep(0.01)"
    glutton = subprocess.Popen([sys.executable, "-c", grow], stdin=subprocess.PIPE, text=True)
    try:
        procs.write_text(str(glutton.pid))
        assert glutton.stdin is not None
        glutton.stdin.write("\n")
        glutton.stdin.flush()
        wait_for("the kernel has killed the worker", worker.gone, seconds=60)
    finally:
        glutton.kill()
        glutton.wait()
    held.release()


def _memory_cgroup(pid: int) -> Path:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory") / path.lstrip("/")
    return Path("/sys/fs/cgroup") / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def kubelet_silent(scene: Scene) -> None:
    """The node's kubelet stands still for 60 s, longer than a node may be silent: the node counts as lost, its pods live on."""
    held = scene.hold_at_drawn_step()
    kubelet = _daemon("kubelet")
    os.kill(kubelet, signal.SIGSTOP)
    try:
        held.release()
        wait_for("the node counts as lost", lambda: not _node_is_ready(scene.cluster), seconds=90, every=1)
        scene.pass_time(10)
    finally:
        os.kill(kubelet, signal.SIGCONT)
    wait_for("the node is back", lambda: _node_is_ready(scene.cluster), seconds=60, every=1)


def _node_is_ready(cluster: Cluster) -> bool:
    nodes = cluster.api.must("GET", "/api/v1/nodes")["items"]
    return any(c["type"] == "Ready" and c["status"] == "True" for node in nodes for c in node["status"]["conditions"])


def zombie(scene: Scene) -> None:
    """A second writer takes the run over while the first stands still, finishes it, and then the first wakes up.

    As when a lost node comes back: the second one runs on the host, with the same job and the same keys.
    """
    held = scene.hold_at_drawn_step()
    before = scene.keys("")
    job = scene.cluster.get("ftj", scene.job)
    env = dict(line.split("=", 1) for line in (STATE / "s3.env").read_text().split())
    secrets = {f"{names.ENV_SECRET_PREFIXES['storage']}{key}": value for key, value in env.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(json.dumps({key: job[key] for key in ("apiVersion", "kind", "metadata", "spec")}))
        words = [sys.executable, "-m", "olivine_trainer", "train", "--spec", str(file), "--uid", job["metadata"]["uid"]]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=clean | secrets | {names.ENV_CPU_LIMIT: "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert scene.published()
    after = scene.keys("")
    scene.notes["newKeys"] = len(set(after) - set(before))
    held.release()
    scene.exit_code(held.first)
    # The loser found out at its next look, and wrote nothing: not a key more, not one less.
    assert scene.keys("") == after, set(scene.keys("")) ^ set(after)


def suspended(scene: Scene) -> None:
    """spec.suspend at a drawn step, and back once no pod runs."""
    held = scene.hold_at_drawn_step()
    scene.patch(suspend=True)
    scene.wait_asked_to_go(held.first)
    held.release()
    scene.wait_no_pod_runs()
    scene.patch(suspend=False)


def suspended_while_starting(scene: Scene) -> None:
    """spec.suspend while the first pod loads its libraries, and back once no pod runs."""
    held = scene.hold(lambda pod: bool(pod.workers()))
    assert held.step == 0
    scene.patch(suspend=True)
    scene.wait_asked_to_go(held.first)
    held.release()
    scene.wait_no_pod_runs()
    scene.patch(suspend=False)


def suspended_and_back_at_once(scene: Scene) -> None:
    """spec.suspend at a drawn step, and back before the pod has gone."""
    held = scene.hold_at_drawn_step()
    scene.patch(suspend=True)
    scene.wait_asked_to_go(held.first)
    scene.patch(suspend=False)
    held.release()


def cancelled(scene: Scene) -> None:
    """spec.cancel at a drawn step."""
    held = scene.hold_at_drawn_step()
    scene.patch(cancel=True)
    scene.wait_asked_to_go(held.first)
    held.release()
    scene.wait_no_pod_runs()


def cancelled_before_a_pod(scene: Scene) -> None:
    """spec.cancel right after the job was made."""
    scene.patch(cancel=True)
    scene.wait_no_pod_runs()


def child_deleted(scene: Scene) -> None:
    """Somebody deletes the child Job at a drawn step."""
    held = scene.hold_at_drawn_step()
    child = scene.status().child
    assert child is not None
    scene.cluster.kubectl("delete", child.kind.lower(), child.name, "--wait=false")
    scene.wait_asked_to_go(held.first)
    held.release()


def image_missing(scene: Scene) -> None:
    """The image is in no registry: told within 30 s of the pod; the user cancels."""
    scene.wait_running_is("ImagePullBackOff", seconds=45)
    scene.patch(cancel=True)


def secret_missing(scene: Scene) -> None:
    """The storage's Secret is not there: told within 30 s of the pod; the user creates it, and nothing else."""
    scene.wait_running_is("SecretNotFound", seconds=45)
    data = scene.cluster.get("secret", "olivine-storage")["data"]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{scene.job}-storage"}, "data": data}
    scene.cluster.apply(secret)


def _devcluster(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "devcluster", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _daemon(name: str) -> int:
    """The pid of a part of the cluster this session runs on."""
    from devcluster import lifecycle, processes
    from devcluster.paths import State

    return processes.recorded(lifecycle.require(State(STATE)).processes)[name].pid
