"""The order of work, with a clock in the test's hand."""

from olivine_operator.runtime.fair_queue import LONGEST_BACKOFF_SECONDS, FairQueue


def drain(queue: FairQueue, now: float = 0.0) -> list[tuple[str, str]]:
    found = []
    while (key := queue.take(now)) is not None:
        found.append(key)
        queue.done(key, now=now)
    return found


def test_a_key_waits_once_however_often_it_is_added() -> None:
    queue = FairQueue()
    for _ in range(3):
        queue.add(("a", "1"))
    assert len(queue) == 1
    assert drain(queue) == [("a", "1")]


def test_a_key_is_never_worked_on_twice_at_once_and_news_meanwhile_bring_it_back() -> None:
    queue = FairQueue()
    queue.add(("a", "1"))
    key = ("a", "1")
    assert queue.take(0) == key
    queue.add(key)
    queue.add(key)
    assert queue.take(0) is None
    queue.done(key, now=0)
    assert drain(queue) == [key]


def test_namespaces_take_turns_whatever_their_load() -> None:
    queue = FairQueue()
    for i in range(100):
        queue.add(("loud", str(i)))
    queue.add(("quiet", "1"))
    queue.add(("calm", "1"))
    order = [key[0] for key in drain(queue)]
    assert order[:4] == ["loud", "quiet", "calm", "loud"]


def test_within_a_namespace_the_first_come_is_the_first_served() -> None:
    queue = FairQueue()
    for name in ("b", "a", "c"):
        queue.add(("n", name))
    assert [name for _, name in drain(queue)] == ["b", "a", "c"]


def test_a_key_that_is_due_later_comes_then_and_the_earliest_time_counts() -> None:
    queue = FairQueue()
    queue.add_at(("a", "1"), 10)
    queue.add_at(("a", "1"), 5)
    queue.add_at(("a", "1"), 7)
    assert queue.next_due() == 5
    assert drain(queue, 4.9) == []
    assert drain(queue, 5) == [("a", "1")]
    assert drain(queue, 99) == []
    assert queue.next_due() is None


def test_a_look_makes_an_earlier_wish_to_look_void() -> None:
    queue = FairQueue()
    queue.add_at(("a", "1"), 10)
    queue.add(("a", "1"))
    assert drain(queue, 1) == [("a", "1")]
    assert queue.next_due() is None


def test_failures_wait_longer_each_time_and_success_forgets_them() -> None:
    queue, key, now = FairQueue(), ("a", "1"), 0.0
    delays: list[float] = []
    for _ in range(12):
        queue.add(key)
        assert queue.take(now) == key
        delays.append(queue.failed(key, now=now))
        now += delays[-1]
        assert queue.next_due() == now
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6]
    assert delays[-1] == LONGEST_BACKOFF_SECONDS
    assert queue.take(now) == key
    queue.done(key, now=now)
    queue.add(key)
    assert queue.take(now) == key
    assert queue.failed(key, now=now) == 0.2


def test_a_server_that_asks_for_patience_gets_it() -> None:
    queue = FairQueue()
    queue.add(("a", "1"))
    key = queue.take(0)
    assert key is not None
    assert queue.failed(key, now=0, at_least=30) == 30


def test_done_with_a_wish_brings_the_key_back_at_its_time() -> None:
    queue = FairQueue()
    queue.add(("a", "1"))
    key = queue.take(0)
    assert key is not None
    queue.done(key, now=0, again_after=3)
    assert drain(queue, 2.9) == []
    assert drain(queue, 3) == [key]
