"""The embedded cluster's own decisions: cache keys, slots, process identity, archives."""

import ipaddress
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devcluster import addons, cgroups, locks, machine, oci, processes, slots
from devcluster.cache import Recipe, digest
from devcluster.console import DevclusterError
from tests.support.wait import wait_for


def test_key_depends_on_names_and_borders_and_not_on_order() -> None:
    assert digest({"a": b"1", "b": b"2"}) == digest({"b": b"2", "a": b"1"})
    assert digest({"a": b"12", "b": b""}) != digest({"a": b"1", "b": b"2"})
    assert digest({"ab": b"c"}) != digest({"a": b"bc"})


def test_recipe_that_fails_leaves_nothing_and_is_made_once_when_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLIVINE_CACHE", str(tmp_path))
    made: list[Path] = []

    def fail(folder: Path, log: Path) -> None:
        (folder / "half").write_text("")
        raise DevclusterError("no")

    def work(folder: Path, log: Path) -> None:
        made.append(folder)

    with pytest.raises(DevclusterError):
        Recipe("thing", {}, fail).build()
    assert not list((tmp_path / "olivine").glob("*thing-*"))
    assert Recipe("thing", {}, work).build() == Recipe("thing", {}, work).build()
    assert len(made) == 1


def test_slots_of_one_machine_share_no_address() -> None:
    networks = [network for number in range(slots.COUNT) for network in slots.Slot(number).networks]
    assert len(networks) == 3 * slots.COUNT
    assert not any(one.overlaps(other) for index, one in enumerate(networks) for other in networks[index + 1 :])


@pytest.mark.parametrize(
    ("taken", "routes", "chosen"),
    [
        pytest.param(set[int](), [], 0, id="an idle machine"),
        pytest.param({0, 1}, [], 2, id="two clusters run"),
        pytest.param(set[int](), ["10.88.0.0/24"], 1, id="its pods' network is somebody's"),
        pytest.param({1}, ["10.90.0.0/22"], 2, id="its Services' network is somebody's"),
    ],
)
def test_slot_is_the_first_free_one(taken: set[int], routes: list[str], chosen: int) -> None:
    assert slots.choose(taken, [ipaddress.IPv4Network(route) for route in routes]).number == chosen


def test_slots_run_out_with_a_sentence() -> None:
    with pytest.raises(DevclusterError, match="no slot is free"):
        slots.choose(range(slots.COUNT), [])


def test_pid_that_was_used_again_is_not_ours() -> None:
    mine = processes.start_time(os.getpid())
    assert mine is not None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert processes.Daemon("self", os.getpid(), mine, boot, "").alive()
    assert not processes.Daemon("self", os.getpid(), mine - 1, boot, "").alive()
    assert not processes.Daemon("self", os.getpid(), mine, "another boot", "").alive()


def test_stop_ends_a_process_that_ignores_sigterm_and_forgets_it(tmp_path: Path) -> None:
    records = tmp_path / "records"
    argv = ["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]
    daemon = processes.start("deaf", argv, records=records, log=tmp_path / "deaf.log")
    processes.stop(records, "deaf", grace_seconds=0.2)
    assert not daemon.alive()
    assert not processes.recorded(records)
    processes.stop(records, "deaf")


def test_daemon_keeps_none_of_its_starters_descriptors(tmp_path: Path) -> None:
    """`flock FILE python -m devcluster up` was held by the cluster's daemons until it went down."""
    descriptor = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(descriptor, True)
    daemon = processes.start("daemon", ["sleep", "60"], records=tmp_path / "records", log=tmp_path / "daemon.log")
    try:
        wanted = {"/dev/null", str(tmp_path / "daemon.log")}
        # The kernel lets the starter go on a moment before it closes what is closed on exec.
        wait_for("only its own are open", lambda: _open_files(daemon.pid) == wanted, seconds=5, every=0.02)
    finally:
        processes.stop(tmp_path / "records", "daemon", grace_seconds=0)
        os.close(descriptor)


def _open_files(pid: int) -> set[str]:
    return {os.path.realpath(path) for path in Path(f"/proc/{pid}/fd").iterdir()}


def test_process_whose_starter_was_killed_before_it_wrote_the_record_is_found(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    argv = ["sh", "-c", "while :; do sleep 0.05; done"]
    kept, stray, strangers = (
        processes.start(name, argv, records=records, log=tmp_path / f"{name}.log")
        for name, records in (("kept", mine), ("stray", mine), ("strangers", other))
    )
    (mine / "stray.json").unlink()
    (other / "strangers.json").unlink()
    try:
        processes.stop_strays(mine)
        assert [daemon.alive() for daemon in (kept, stray, strangers)] == [True, False, True]
    finally:
        processes.stop(mine, "kept", grace_seconds=0)
        processes.stop_strays(other)
    assert not strangers.alive()


def test_layer_is_the_same_each_time_and_carries_no_set_user_id(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "su").write_text("x")
    (root / "bin" / "su").chmod(0o4755)
    first = oci.write_layer(root, tmp_path / "one.tar")
    os.utime(root / "bin" / "su", (1, 1))
    assert oci.write_layer(root, tmp_path / "two.tar").digest == first.digest
    with tarfile.open(first.path) as layer:
        assert layer.getmember("bin/su").mode == 0o755


def test_lock_is_had_though_its_holder_removes_the_folder(tmp_path: Path) -> None:
    """`down` of a machine's last cluster removes what `up` of another one waits for."""
    path = tmp_path / "registry" / "lock"
    with ThreadPoolExecutor(1) as pool:
        with locks.exclusive(path):
            waiting = pool.submit(_take, path)
            shutil.rmtree(path.parent)
        assert waiting.result(timeout=10)


def _take(path: Path) -> bool:
    with locks.exclusive(path):
        return path.exists()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's settings in a folder; the note goes beside it."""
    folder = tmp_path / "sys"
    (folder / "kernel").mkdir(parents=True)
    (folder / "kernel" / "panic").write_text("0\n")
    monkeypatch.setattr(machine, "_sysctl", lambda name: folder / name)
    monkeypatch.setattr(machine, "_NOTE", tmp_path / "machine.json")
    monkeypatch.setattr(machine, "MOUNT_POINTS", (tmp_path / "made", tmp_path / "used"))
    monkeypatch.setattr(machine, "_NAMESPACES", tmp_path / "netns")
    return folder


def test_machine_is_as_before_when_its_last_cluster_has_gone(tmp_path: Path, settings: Path) -> None:
    machine.remember()
    (settings / "kernel" / "panic").write_text("10\n")
    (tmp_path / "used" / "somebodys").write_text("")
    (tmp_path / "netns").mkdir()
    machine.restore()
    assert (settings / "kernel" / "panic").read_text().strip() == "0"
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "netns").exists()
    assert (tmp_path / "used" / "somebodys").exists(), "what is in use stays"
    machine.restore()  # nothing is noted any more


@pytest.mark.parametrize("born", ["", "0-1\n"])
def test_cgroup_is_made_in_v2_whose_root_has_no_cpuset_files(born: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory\n")
    group = tmp_path / "olivine-9"
    group.mkdir()
    (group / "cpuset.cpus").write_text(born)
    monkeypatch.setattr(cgroups, "_hierarchies", lambda: [tmp_path])
    cgroups.create("olivine-9")
    assert (group / "cgroup.subtree_control").read_text() == "+cpuset +cpu +memory"
    assert (group / "cpuset.cpus").read_text() == born


def test_controllers_that_v2_did_not_hand_down_before_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("cpu memory\n")
    monkeypatch.setattr(cgroups, "_hierarchies", lambda: [tmp_path])
    before = cgroups.delegated()
    control.write_text("cpu memory pids\n")  # as the kernel shows it after `create`
    cgroups.restore_delegated(before)
    assert control.read_text() == "-pids"
    control.write_text("cpu\n")
    cgroups.restore_delegated(before)
    assert control.read_text() == "cpu\n", "nothing was added: nothing is written"


def test_an_add_on_that_is_not_there_is_told_with_those_that_are() -> None:
    assert [addon.name for addon in addons.named("kueue,jobset")] == ["kueue", "jobset"]
    assert not addons.named("")
    with pytest.raises(DevclusterError, match=r"no add-on 'kubeflow': choose from jobset, kueue"):
        addons.named("jobset,kubeflow")
