"""How ranks find one another, over real sockets: who comes late, who comes back, who has no business here."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from olivine_api.names import ENV_POD_NAME
from olivine_api.status import Progress, Snapshot, Stage
from olivine_trainer.cli.gathering import RunIsOverError, gather_ranks
from olivine_trainer.errors import PeerLostError
from olivine_trainer.storage.head import take_attempt
from olivine_trainer.storage.records import RunRecords
from olivine_trainer.world import peers as peers_module
from olivine_trainer.world import rendezvous
from olivine_trainer.world.link import Line, Link
from olivine_trainer.world.peers import Peers
from olivine_trainer.world.place import Place
from olivine_trainer.world.rendezvous import Rendezvous
from tests.unit.trainer.ranks import free_port
from tests.unit.trainer.support import local_store, make_job, tone_rows, write_rows


class Meeting:
    """Ranks as threads that meet at one port."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.port = free_port()
        self._pool = ThreadPoolExecutor(8)

    def place(self, rank: int, size: int | None = None) -> Place:
        return Place(rank, 0, size or self.size, "127.0.0.1", self.port)

    def come(
        self, rank: int, *, run: str = "u1", size: int | None = None, seconds: float = 20, look: Callable[[], None] = lambda: None
    ) -> "Future[list[Link]]":
        meeting = Rendezvous(self.place(rank, size), run=run, pod=f"tone-{rank}", look=look, seconds=seconds)
        return self._pool.submit(meeting.meet)

    def connect(self) -> socket.socket:
        """A stranger's connection, once rank 0 listens."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=5)
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)


def test_a_rank_that_comes_late_is_waited_for() -> None:
    meeting = Meeting(3)
    leader, early = meeting.come(0), meeting.come(1)
    meeting.connect().close()  # rank 0 listens; somebody looked and went
    assert not leader.done()
    late = meeting.come(2)
    assert [(link.rank, link.name) for link in leader.result(20)] == [(1, "rank 1 (tone-1)"), (2, "rank 2 (tone-2)")]
    assert [early.result(20)[0].rank, late.result(20)[0].rank] == [0, 0]


def test_a_rank_that_comes_back_takes_its_own_place() -> None:
    """Rank 1's pod was lost while rank 2 was still awaited, its old connection left half open."""
    meeting = Meeting(3)
    leader = meeting.come(0)
    with meeting.connect() as old:
        old.sendall(json.dumps({"run": "u1", "rank": 1, "size": 3, "pod": "old"}).encode() + b"\n")
        again = meeting.come(1)
        old.settimeout(20)
        assert old.recv(1) == b""  # the new one has its place
        other = meeting.come(2)
        assert [link.name for link in leader.result(20)] == ["rank 1 (tone-1)", "rank 2 (tone-2)"]
        assert (len(again.result(20)), len(other.result(20))) == (1, 1)


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
        b"null\n",
        b'{"run": "u1"}\n',
        b'{"run": "u1", "rank": "x", "size": 2, "pod": ""}\n',
        b'{"run": "u1", "rank": 0, "size": 2, "pod": ""}\n',
        b"x" * 100_000,
    ],
    ids=["a port scan", "HTTP", "TLS", "null", "half a hello", "no number", "a second rank 0", "a flood"],
)
def test_a_stranger_is_turned_away(says: bytes) -> None:
    meeting = Meeting(2)
    leader = meeting.come(0)
    with meeting.connect() as stranger:
        stranger.settimeout(10)
        stranger.sendall(says)
        if not says:
            stranger.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: _receive(stranger), b""))
    assert answer == b"" or b'"no"' in answer
    peer = meeting.come(1)
    assert (len(leader.result(20)), len(peer.result(20))) == (1, 1)


def test_a_stranger_does_not_learn_what_would_give_it_a_ranks_place() -> None:
    meeting = Meeting(2)
    leader = meeting.come(0, run="8c1f-secret-uid")
    with meeting.connect() as stranger:
        stranger.settimeout(10)
        stranger.sendall(b'{"run": "x", "rank": 1, "size": 2, "pod": ""}\n')
        answer = b"".join(iter(lambda: _receive(stranger), b""))
    assert b'"no"' in answer
    assert b"secret-uid" not in answer
    peer = meeting.come(1, run="8c1f-secret-uid")
    assert (len(leader.result(20)), len(peer.result(20))) == (1, 1)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


def test_a_silent_stranger_holds_nobody_up_for_long() -> None:
    meeting = Meeting(2)
    leader = meeting.come(0)
    with meeting.connect(), meeting.connect() as dripping:
        stopping = threading.Event()

        def drip() -> None:
            while not stopping.wait(0.3):
                try:
                    dripping.sendall(b"x")
                except OSError:
                    return

        threading.Thread(target=drip, daemon=True).start()
        peer = meeting.come(1)
        assert (len(leader.result(20)), len(peer.result(20))) == (1, 1)
        stopping.set()


@pytest.mark.parametrize(("run", "size"), [("u2", 2), ("u1", 3)], ids=["another run", "another world"])
def test_another_runs_rank_is_turned_away_and_calls_again(run: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    meeting = Meeting(2)
    leader = meeting.come(0)
    other = meeting.come(1, run=run, size=size, seconds=3)
    with pytest.raises(PeerLostError, match="rank 0 did not gather the ranks"):
        other.result(20)
    assert not leader.done()
    peer = meeting.come(1)
    assert (len(leader.result(20)), len(peer.result(20))) == (1, 1)


def test_who_does_not_come_is_named() -> None:
    meeting = Meeting(4)
    leader, _ = meeting.come(0, seconds=1.5), meeting.come(2, seconds=3)
    with pytest.raises(PeerLostError, match="rank 1, 3 did not come within") as caught:
        leader.result(20)
    assert caught.value.exit_code == 31


def test_a_port_that_is_taken_is_told() -> None:
    meeting = Meeting(2)
    with socket.create_server(("127.0.0.1", meeting.port)), pytest.raises(PeerLostError, match=f"port {meeting.port}: .*in use"):
        meeting.come(0).result(20)


@pytest.mark.parametrize("rank", [0, 1])
def test_whoever_waits_looks_whether_the_run_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The other pod has published and gone: its replacement would wait for 15 minutes."""
    monkeypatch.setattr(rendezvous, "LOOK_SECONDS", 0.2)
    monkeypatch.setenv(ENV_POD_NAME, "tone-1")
    records = RunRecords(local_store(tmp_path / "run"))
    attempt = take_attempt(records.run)
    job = make_job(tmp_path, write_rows(tmp_path / "rows", tone_rows(3)), f"file://{tmp_path}/runs")
    place = Meeting(2).place(rank)

    def ended(_: PeerLostError) -> None:
        raise AssertionError

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gather_ranks, job, place, records, ended)
        time.sleep(0.5)
        assert not waiting.done()
        records.publish(
            attempt, spec_digest="d", input_digest="i", snapshot=Snapshot(progress=Progress(stage=Stage.PUBLISHING)), samples=[]
        )
        with pytest.raises(RunIsOverError) as over:
            waiting.result(20)
    assert over.value.published.attempt == 1


@pytest.fixture
def pair() -> Any:
    return _connected()


@pytest.fixture
def two(pair: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rank 0's and rank 1's channel; what would end their processes is noted instead."""
    monkeypatch.setattr(peers_module, "GRACE", 0.5)
    ended: list[tuple[int, str]] = []
    channels: list[Peers] = []
    for rank, connection in enumerate(pair):
        link = Link(1 - rank, f"rank {1 - rank}", Line(connection))
        channels.append(Peers([link], leads=rank == 0, end_abruptly=lambda lost, rank=rank: ended.append((rank, lost.message))))
    return *channels, ended, pair


def test_values_go_both_ways_in_order(two: Any) -> None:
    leader, other, _, _ = two
    with ThreadPoolExecutor(1) as pool:
        gathered = pool.submit(lambda: [other.gather("b"), other.broadcast(None), other.broadcast(None)])
        assert leader.gather("a") == ["a", "b"]
        leader.broadcast({"step": 3})
        leader.broadcast("x" * 3_000_000)
        assert gathered.result(20) == [["a", "b"], {"step": 3}, "x" * 3_000_000]


def test_whoever_waits_for_a_lost_peer_is_told_at_once_and_ended_if_that_does_not_help(two: Any) -> None:
    leader, _, ended, (_, connection) = two
    connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLostError, match="rank 1 is lost: its connection closed"):
        leader.gather("a")
    deadline = time.monotonic() + 20
    while (0, "rank 1 is lost: its connection closed") not in ended:  # its main thread hangs in a collective
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_peer_that_hangs_does_not_delay_the_end_after_another_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 2 takes nothing any more while rank 1 is lost: to tell rank 2 would take until its connection is given up."""
    monkeypatch.setattr(peers_module, "GRACE", 0.2)
    ended = threading.Event()
    sides = [_connected(), _connected()]
    links = [Link(rank, f"rank {rank}", Line(mine)) for rank, (mine, _) in enumerate(sides, start=1)]
    leader = Peers(links, leads=True, end_abruptly=lambda _: ended.set())
    stuck = threading.Thread(target=lambda: _send_until_lost(links[1]), daemon=True)
    stuck.start()
    time.sleep(0.5)  # the kernel's buffers are full
    assert stuck.is_alive()
    sides[0][1].close()
    assert ended.wait(5)
    with pytest.raises(PeerLostError, match="rank 1 is lost"):
        leader.check()
    sides[1][1].close()
    stuck.join(10)


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


def _send_until_lost(link: Link) -> None:
    with contextlib.suppress(OSError):
        link.send({"value": "x" * (64 << 20)})


def test_a_word_of_farewell_says_why(two: Any) -> None:
    leader, other, _, (_, connection) = two
    other.leave()
    other.explain("ColumnMissing: phrse")
    connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLostError, match="rank 1 ended: ColumnMissing: phrse"):
        leader.gather(None)


def test_work_that_is_worth_more_than_seconds_is_finished_first(two: Any) -> None:
    """Rank 0 uploads a checkpoint while rank 1 is lost."""
    leader, _, ended, (_, connection) = two
    with leader.held():
        connection.shutdown(socket.SHUT_RDWR)
        time.sleep(1.5)  # three times the grace
        assert [rank for rank, _ in ended if rank == 0] == []
    deadline = time.monotonic() + 10
    while not [rank for rank, _ in ended if rank == 0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_has_left_misses_nobody(two: Any) -> None:
    leader, _, ended, (_, connection) = two
    leader.leave()
    connection.shutdown(socket.SHUT_RDWR)
    time.sleep(1.5)
    leader.check()
    assert [rank for rank, _ in ended if rank == 0] == []
