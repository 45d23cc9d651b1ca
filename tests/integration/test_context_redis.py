"""The context store on a real Redis keeps the promises of every one, and says so when it cannot."""

import gc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Connection, ConnectionPool, Redis
from tests.conformance.context_store import ContextStoreSuite, between, change, ids, question

from errata.adapters.context_redis import PAGE, SPAN_MOST, RedisContextStore
from errata.errors import Misconfigured, Unavailable
from errata.ports import ContextIncomplete
from errata_services.dev import servers

pytestmark = pytest.mark.servers

PATIENT_S = 10.0  # where no test is about time
DAY_MINUTES = 24 * 60


class TestRedisContext(ContextStoreSuite):
    @pytest.fixture(autouse=True)
    def _connect(self, redis_url: str) -> Iterator[None]:
        self.url = redis_url
        self.made: list[RedisContextStore] = []
        yield
        for store in self.made:
            store.close()

    def make(self) -> RedisContextStore:
        store = RedisContextStore.of_url(self.url, prefix=f"{uuid4().hex}.", timeout_s=PATIENT_S)
        store.fill([])
        self.made.append(store)
        return store


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A Redis of this file's own: its tests stop, freeze and empty it."""
    with servers.redis(tmp_path_factory.mktemp("context")) as server:
        yield server


@pytest.fixture
def client(server: servers.Server) -> Iterator[Any]:
    with Redis.from_url(server.url, socket_timeout=PATIENT_S) as client:
        client.flushall()
        yield client


@pytest.fixture
def opened(server: servers.Server, client: object) -> Iterator[Callable[..., RedisContextStore]]:
    """Makes stores on the file's own Redis, empty at the start."""
    made: list[RedisContextStore] = []

    def make(**how: Any) -> RedisContextStore:
        made.append(RedisContextStore.of_url(server.url, **{"timeout_s": PATIENT_S, **how}))
        return made[-1]

    yield make
    for store in made:
        store.close()


Opened = Callable[..., RedisContextStore]


def test_keys_are_prefixed_escaped_and_expire(opened: Opened, client: Any) -> None:
    opened(prefix="shop.").add([(change(tenant="a:b", subject="ü 1"), 1)])
    (key,) = client.keys()
    assert key == b"shop.errata:changes:a%3Ab:%C3%BC%201"
    assert 30 * 86_400 < client.ttl(key) <= 31 * 86_400
    assert client.zrange(key, 0, -1, withscores=True) == [
        (
            b'{"change":{"change_id":"c1","kind":"deploy","subject":"\xc3\xbc 1","tenant":"a:b",'
            b'"time":"2026-01-05T12:00:00Z"},"seen_us":1}',
            1_767_614_400_000_000.0,
        )
    ]


def test_stores_of_other_prefixes_see_nothing_of_each_other(opened: Opened) -> None:
    one, other = opened(prefix="one."), opened(prefix="other.")
    one.fill([[(change(), 1)]])
    with pytest.raises(ContextIncomplete):
        between(other, [question(0, 9)])
    other.fill([])
    assert between(other, [question(0, 9)]) == [[]]


def test_what_is_thirty_days_older_than_the_newest_goes(opened: Opened) -> None:
    store = opened()
    store.fill([])
    store.add([(change(-DAY_MINUTES, "edge"), 1), (change(-DAY_MINUTES - 0.001, "old"), 1)])
    store.add([(change(-DAY_MINUTES - 1, "other", subject="churn"), 1)])
    everything = [question(-2 * DAY_MINUTES, 99 * DAY_MINUTES, subject=name) for name in ("fraud", "churn")]
    assert [ids(found) for found in between(store, everything)] == [["old", "edge"], ["other"]]
    store.add([(change(29 * DAY_MINUTES, "new"), 2)])
    assert [ids(found) for found in between(store, everything)] == [["edge", "new"], ["other"]]


class Counting(Connection):
    """A connection that counts what it sends at once."""

    sent = 0

    def send_packed_command(self, *command: Any, **how: Any) -> None:
        Counting.sent += 1
        super().send_packed_command(*command, **how)  # type: ignore[no-untyped-call]


def test_questions_leave_nothing_behind_that_only_the_collector_finds(server: servers.Server, client: Any) -> None:
    """An enricher asks a hundred times a minute; the collector comes to what died old after hours."""
    with closing(RedisContextStore.of_url(server.url, timeout_s=PATIENT_S)) as store:
        store.fill([[(change(1, "c1", "s"), 1)]])
        between(store, [question(0, 9, subject="s")])
        gc.collect()
        for _ in range(10):
            assert ids(*between(store, [question(0, 9, subject="s")])) == ["c1"]
        assert gc.collect() == 0
        client.info("server")  # the control: as the client itself asks
        assert gc.collect() > 0


def test_a_batch_of_questions_is_one_round_trip_and_asks_for_no_key_twice(server: servers.Server, client: Any) -> None:
    pool = ConnectionPool(host="127.0.0.1", port=int(server.address.rpartition(":")[2]), connection_class=Counting)
    store = RedisContextStore(Redis(connection_pool=pool))
    store.fill([[(change(at, f"c{at}", f"s{at % 2}"), 1) for at in range(100)]])
    store.between([])
    client.config_resetstat()
    before = Counting.sent
    found = between(store, [question(at, at + 50, subject=f"s{n}") for at in range(50) for n in (0, 1)])
    assert Counting.sent - before == 1
    assert client.info("commandstats")["cmdstat_zrange"]["calls"] == 2
    assert sum(map(len, found)) == 50 * 51
    store.add([(change(at, f"d{at}"), 1) for at in range(500)])
    assert Counting.sent - before == 2
    store.close()
    pool.disconnect()


def test_a_change_is_decoded_once_within_its_time_to_live(opened: Opened, client: Any, server: servers.Server) -> None:
    clock = Clock()
    size = len(b'{"change":%b,"seen_us":1}' % change(0, "c0").to_json())
    store = RedisContextStore(Redis.from_url(server.url), cached_bytes=3 * size, cache_ttl_s=60, clock_s=clock)
    store.fill([[(change(at, f"c{at}"), 1) for at in range(3)]])
    for _ in range(2):
        assert len(between(store, [question(0, 2)])[0]) == 3
    assert (store.misses, store.hits) == (3, 3)
    clock.now_s += 60
    between(store, [question(0, 2)])
    assert (store.misses, store.hits) == (6, 3)
    store.add([(change(9, "c9"), 1)])
    between(store, [question(9, 9)])  # the fourth pushes out the least used: c2, since the nearest are read first
    assert store.evicted == 1
    between(store, [question(2, 2)])
    assert (store.misses, store.hits) == (8, 3)
    store.close()


def test_large_changes_are_written_a_megabyte_at_a_time(opened: Opened, client: Any) -> None:
    store = opened()
    store.fill([])
    client.config_resetstat()
    store.add([(change(at, f"c{at}", link="x" * 200_000), 1) for at in range(20)])
    assert client.info("commandstats")["cmdstat_zadd"]["calls"] == 4
    assert len(between(store, [question(0, 20)])[0]) == 20


def test_of_a_crowded_subject_only_the_nearest_are_read(opened: Opened) -> None:
    store = opened()
    store.fill([[(change(at / 100, f"c{at}"), 1) for at in range(SPAN_MOST + 500)]])
    store.add([(change(25 + at / 1_000, f"late{at}"), 9) for at in range(3 * PAGE)])  # nearest in time, seen too late
    everything, early, edge = store.between([question(0, 99, 9), question(0, 1, 9), question(0, 0, 9)], 3)
    told, left_out = ids(everything.changes), everything.left_out
    assert told == [f"c{SPAN_MOST + 500 - at}" for at in (3, 2, 1)]
    assert left_out == SPAN_MOST + 500 - 3
    assert (ids(early.changes), early.left_out) == (["c98", "c99", "c100"], 98)
    assert (ids(edge.changes), edge.left_out) == (["c0"], 0)
    assert store.misses == 7  # all others were only counted
    whole = store.between([question(0, 99, 9)])[0]
    assert (len(whole.changes), whole.left_out) == (SPAN_MOST + 500, 0)


def test_a_cached_change_hides_no_new_one(opened: Opened) -> None:
    store, other = opened(), opened()
    store.fill([[(change(0, "a"), 1)]])
    assert ids(between(store, [question(0, 9)])[0]) == ["a"]
    other.add([(change(1, "b"), 1)])
    assert ids(between(store, [question(0, 9)])[0]) == ["a", "b"]


def test_members_errata_did_not_write_are_passed_over_and_counted(opened: Opened, client: Any) -> None:
    store = opened()
    store.fill([[(change(), 1)]])
    key = "errata:changes:default:fraud"
    stolen = change(0, "stolen", subject="churn").to_json()
    junk = [b"{", b"\xff", b"7", b'{"seen_us":1}', b'{"change":%b,"seen_us":1}' % stolen, b'{"change":{},"seen_us":1}']
    client.zadd(key, dict.fromkeys(junk, 1_767_614_400_000_000))
    assert ids(between(store, [question(0, 0)])[0]) == ["c1"]
    assert store.unreadable == len(junk)


def test_a_store_that_was_never_filled_does_not_say_that_there_was_nothing(opened: Opened) -> None:
    store = opened()
    store.add([(change(), 1)])
    with pytest.raises(ContextIncomplete, match="errata context rebuild"):
        between(store, [question(0, 9)])
    store.fill([])
    assert ids(between(store, [question(0, 9)])[0]) == ["c1"]


def test_a_store_that_was_emptied_says_so_until_it_is_filled(opened: Opened, client: Any) -> None:
    store = opened()
    store.fill([[(change(), 1)]])
    client.flushall()
    store.add([(change(1, "later"), 1)])
    for _ in range(9):  # it answers, so no breaker opens
        with pytest.raises(ContextIncomplete):
            between(store, [question(0, 9)])
    store.fill([[(change(), 1)]])
    assert ids(between(store, [question(0, 9)])[0]) == ["c1", "later"]


def test_a_store_emptied_while_it_is_filled_does_not_count_as_filled(opened: Opened, client: Any) -> None:
    store = opened()

    def batches() -> Iterator[list[Any]]:
        yield [(change(0, "lost"), 1)]
        client.flushall()
        yield [(change(1, "kept"), 1)]

    with pytest.raises(ContextIncomplete, match="while it was filled"):
        store.fill(batches())
    with pytest.raises(ContextIncomplete):
        between(store, [question(0, 9)])


def test_a_store_that_was_restarted_has_to_be_filled_even_from_a_snapshot(
    opened: Opened, client: Any, server: servers.Server
) -> None:
    store = opened()
    store.fill([[(change(), 1)]])
    kept = {key: client.dump(key) for key in client.scan_iter()}
    assert len(kept) == 2
    server.restart()
    for key, content in kept.items():
        client.restore(key, 0, content)
    with pytest.raises(ContextIncomplete):
        between(store, [question(0, 9)])
    store.fill([])
    assert ids(between(store, [question(0, 9)])[0]) == ["c1"]


def test_after_three_time_outs_in_a_row_a_frozen_redis_is_left_alone_for_growing_pauses(
    opened: Opened, server: servers.Server
) -> None:
    clock = Clock()
    store = opened(timeout_s=0.05, clock_s=clock)
    patient = opened()
    patient.fill([[(change(), 1)]])
    server.freeze()
    try:
        for _ in range(3):
            with pytest.raises(Unavailable, match="no answer in time"):
                between(store, [question(0, 9)])
        assert store.breaker.open
        for pause_s in (0.2, 0.4, 0.8):
            with pytest.raises(Unavailable, match=f"left alone for another {pause_s} s"):
                between(store, [question(0, 9)])
            clock.now_s += pause_s
            with pytest.raises(Unavailable, match="no answer in time"):
                store.add([(change(), 1)])
    finally:
        server.thaw()
    with pytest.raises(Unavailable, match="left alone"):  # although it would answer
        between(store, [question(0, 9)])
    clock.now_s += 1.6
    again = RedisContextStore(Redis.from_url(server.url, socket_timeout=PATIENT_S), clock_s=clock)
    assert ids(between(again, [question(0, 9)])[0]) == ["c1"]
    again.close()


def test_one_answer_makes_the_count_of_time_outs_begin_anew(opened: Opened, server: servers.Server) -> None:
    clock = Clock()
    store = opened(timeout_s=0.5, clock_s=clock)
    store.fill([])
    for _ in range(2):
        server.freeze()
        try:
            for _ in range(2):
                with pytest.raises(Unavailable, match="no answer in time"):
                    store.between([])
        finally:
            server.thaw()
        store.between([])
    assert not store.breaker.open


def test_a_stopped_redis_is_unavailable_and_back_after_the_pause(opened: Opened, server: servers.Server) -> None:
    clock = Clock()
    store = opened(clock_s=clock)
    store.fill([[(change(), 1)]])
    server.stop()
    try:
        for call in (lambda: store.between([]), lambda: store.add([(change(), 1)]), lambda: store.fill([])):
            with pytest.raises(Unavailable, match=r"^Redis \(context\): ConnectionError; .*ERRATA_REDIS_URL"):
                call()
        with pytest.raises(Unavailable, match="left alone"):
            store.between([])
    finally:
        server.restart()
    clock.now_s += 30
    with pytest.raises(ContextIncomplete):
        store.between([])
    assert (store.breaker.state, store.errors) == ("closed", 3)


def test_a_full_redis_is_unavailable(opened: Opened, client: Any) -> None:
    store = opened()
    store.fill([])
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(Unavailable, match="OutOfMemoryError"):
            store.add([(change(), 1)])
    finally:
        client.config_set("maxmemory", "64mb")


def test_a_wrong_password_is_told_at_the_start_and_never_shown(client: Any, server: servers.Server) -> None:
    client.config_set("requirepass", "right-one")
    url = server.url.replace("redis://", "redis://:guessed-one@")
    store = RedisContextStore.of_url(url, timeout_s=PATIENT_S)
    right = RedisContextStore.of_url(url.replace("guessed", "right"), timeout_s=PATIENT_S)
    try:
        with pytest.raises(Misconfigured, match="ERRATA_REDIS_URL") as refused:
            store.check()
        with pytest.raises(Unavailable, match="AuthenticationError") as away:
            store.between([])
        assert "guessed" not in f"{refused.value}{away.value}"
        right.check()
    finally:
        store.close()
        right.close()
        client.config_set("requirepass", "")


def test_an_address_nobody_answers_at_is_unavailable_at_the_start(tmp_path: Path) -> None:
    store = RedisContextStore.of_url("redis://127.0.0.1:1/0")
    with pytest.raises(Unavailable, match="ConnectionError"):
        store.check()


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://u:s3cret@host", "redis://host:s3cret/0"])
def test_what_is_no_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(Misconfigured, match="ERRATA_REDIS_URL: not a Redis URL") as refused:
        RedisContextStore.of_url(url)
    assert "s3cret" not in str(refused.value)
