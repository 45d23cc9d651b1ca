"""The context store that all enrichers share: in Redis, one sorted set a tenant and subject, scored by change time.

Only commands of Redis 7.0. Redis Cluster is not supported: one call asks for many keys. Nothing here is the only copy,
so Redis needs no persistence; it must not evict keys on its own (``maxmemory-policy noeviction``).
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote
from uuid import uuid4

import msgspec
from pydantic import ValidationError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from errata.adapters.breaker import Breaker
from errata.contracts import ChangeEvent
from errata.contracts.base import Part
from errata.contracts.strict import to_us
from errata.errors import Misconfigured, Unavailable
from errata.ports import ChangesFound, ContextIncomplete

TIMEOUT_S: Final = 0.05
KEPT_US: Final = 30 * 86_400 * 1_000_000  # as long as their topic keeps them
EXPIRY_S: Final = 31 * 86_400
BATCH, BATCH_BYTES = 500, 1_000_000  # changes of one round trip, and their bytes but for the one that passes it
SPAN_MOST, PAGE = 2_000, 200  # members read of a subject at once; then, a question
FILLING_EXPIRY_S: Final = 86_400
CACHED_BYTES, CACHE_TTL_S = 16 * 2**20, 600.0

Question = tuple[str, str, int, int, int]
T = TypeVar("T")


class _Entry(Part):
    """A member of a set. ``seen_us``: record time of the change."""

    change: ChangeEvent
    seen_us: int


class _ChangeHead(msgspec.Struct, gc=False):
    change_id: str
    tenant: str
    subject: str
    time: datetime


class _Head(msgspec.Struct, gc=False):
    """What of an `_Entry` decides whether it is an answer: a tenth of the work of reading all of it."""

    change: _ChangeHead
    seen_us: int


_head = msgspec.json.Decoder(_Head).decode


class _Seen(NamedTuple):
    """A readable member; sorts by time and id."""

    time_us: int
    change_id: str
    seen_us: int
    member: bytes


class RedisContextStore:
    """A ``ContextStore`` in Redis.

    A change is kept until the newest of its subject is 30 days younger. Of one change id the record seen first is
    told, among those in the asked time. ``between`` answers only while Redis holds all that a `fill` gave it: a server
    that was emptied, restarted or replaced by its replica raises `ContextIncomplete` until the next `fill`.
    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str = "",
        cached_bytes: int = CACHED_BYTES,
        cache_ttl_s: float = CACHE_TTL_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """``client``: with time-outs, as `of_url` makes it. ``cached_bytes``: of changes as Redis has them.

        ``clock_s``: seconds that never go back.
        """
        self._client = client
        self._root = f"{prefix}errata:changes"
        self._decoded = _Decoded(cached_bytes, cache_ttl_s, clock_s)
        self.breaker = Breaker(clock_s)
        self.errors = 0  # calls that failed, so far

    @classmethod
    def of_url(
        cls, url: str, *, prefix: str = "", timeout_s: float = TIMEOUT_S, clock_s: Callable[[], float] = time.monotonic
    ) -> "RedisContextStore":
        """On the Redis at ``url``, which is not connected to yet. Connecting and each answer have ``timeout_s``."""
        try:
            client = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),  # one try a call; the breaker knows when to try again
                protocol=2,
            )
        except ValueError:
            raise Misconfigured(
                "ERRATA_REDIS_URL: not a Redis URL; write redis://host:6379/0, or rediss:// with TLS"
            ) from None
        return cls(client, prefix=prefix, clock_s=clock_s)

    @property
    def hits(self) -> int:
        """Changes that were read and needed no decoding, so far."""
        return self._decoded.hits

    @property
    def misses(self) -> int:
        return self._decoded.misses

    @property
    def evicted(self) -> int:
        """Changes that had to make room for others, so far."""
        return self._decoded.evicted

    @property
    def unreadable(self) -> int:
        """Members passed over so far because errata did not write them."""
        return self._decoded.unreadable

    def check(self) -> None:
        """Ask once. ``Unavailable`` when there is no answer, ``Misconfigured`` when the password is wrong."""
        try:
            self._client.ping()
        except AuthenticationError:
            raise Misconfigured("ERRATA_REDIS_URL: Redis refuses this user or password; mend the URL") from None
        except RedisError as error:
            raise _unavailable(error) from None

    def add(self, changes: Sequence[tuple[ChangeEvent, int]]) -> None:
        for batch in _batches(changes):
            self._call(self._adding(batch).execute)

    def fill(self, batches: Iterable[Sequence[tuple[ChangeEvent, int]]]) -> int:
        """See ``ContextStore.fill``. What was emptied or restarted in between is not taken for filled."""
        server = self._call(lambda: _ask_server(self._client))
        token = f"{self._root}-filling:{uuid4().hex}"
        self._call(lambda: self._client.set(token, _server_id(server), ex=FILLING_EXPIRY_S))
        count = 0
        for batch in batches:
            self.add(batch)
            count += len(batch)
        self._call(lambda: self._declare_filled(token))
        return count

    def between(self, wanted: Sequence[Question], most: int | None = None) -> list[ChangesFound]:
        """See ``ContextStore.between``; one round trip for all questions. No question: only whether it may be asked.

        A subject with more changes than `SPAN_MOST` in the asked time costs a round trip for each question of it,
        which reads the nearest only: then what is left out is counted as records, a change told twice as two.
        """
        spans = _spans(wanted)
        found = self._call(lambda: self._read(spans, None if most is None else SPAN_MOST + 1))
        seen: dict[tuple[str, str], list[_Seen]] = {}
        crowded: set[tuple[str, str]] = set()
        for (tenant, subject, _, _), members in zip(spans, found, strict=True):
            if most is not None and len(members) > SPAN_MOST:
                crowded.add((tenant, subject))
            else:
                seen.setdefault((tenant, subject), []).extend(self._decoded.seen(members, tenant, subject))
        read = self._decoded.reading()
        return [
            self._nearest(question, most or 0, read)
            if question[:2] in crowded
            else _answer(seen[question[:2]], question, most, read)
            for question in wanted
        ]

    def _nearest(self, question: Question, most: int, read: Callable[[bytes], ChangeEvent | None]) -> ChangesFound:
        """The answer to one question from as few members as it takes."""
        tenant, subject, from_us, until_us, _ = question
        key = self._key(tenant, subject)
        seen: list[_Seen] = []
        asked = total = 0
        while True:
            pipeline = self._client.pipeline(transaction=False)
            pipeline.zcount(key, from_us, until_us)
            pipeline.zrange(key, until_us, from_us, desc=True, byscore=True, offset=asked, num=PAGE)
            total, members = self._call(pipeline.execute)
            asked += len(members)
            seen += self._decoded.seen(members, tenant, subject)
            answer = _answer(seen, question, most, read)
            if len(answer.changes) == most or len(members) < PAGE:
                return ChangesFound(answer.changes, answer.left_out + max(0, total - asked))

    def close(self) -> None:
        self._client.close()

    def _adding(self, batch: Sequence[tuple[str, str, int, bytes]]) -> Any:
        sets: dict[str, dict[bytes, int]] = {}
        for tenant, subject, time_us, member in batch:
            sets.setdefault(self._key(tenant, subject), {})[member] = time_us
        pipeline = self._client.pipeline(transaction=False)
        for key, members in sets.items():
            pipeline.zadd(key, members)
            pipeline.zremrangebyscore(key, "-inf", f"({max(members.values()) - KEPT_US}")
            pipeline.expire(key, EXPIRY_S)
        return pipeline

    def _read(self, spans: Sequence[tuple[str, str, int, int]], most: int | None) -> list[list[bytes]]:
        """The members of each span, or its last ``most``."""
        limit: Any = {} if most is None else {"offset": 0, "num": most}
        pipeline = self._client.pipeline(transaction=False)
        pipeline.get(self._root)
        _ask_server(pipeline)
        for tenant, subject, from_us, until_us in spans:
            pipeline.zrange(self._key(tenant, subject), until_us, from_us, desc=True, byscore=True, **limit)
        filled, server, *found = pipeline.execute()
        if filled != _server_id(server):
            raise ContextIncomplete(
                "Redis (context): it was emptied, restarted or never filled; errata context rebuild fills it"
            )
        return list(found)

    def _declare_filled(self, token: str) -> None:
        pipeline = self._client.pipeline(transaction=True)
        pipeline.rename(token, self._root)
        pipeline.persist(self._root)
        try:
            pipeline.execute()
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
            raise ContextIncomplete("Redis (context): it was emptied while it was filled; fill it again") from None

    def _key(self, tenant: str, subject: str) -> str:
        return f"{self._root}:{quote(tenant, safe='')}:{quote(subject, safe='')}"

    def _call(self, call: Callable[[], T]) -> T:
        """``call`` with the breaker around it, and every error of the client as ``Unavailable``."""
        wait_s = self.breaker.wait_s
        if wait_s > 0:
            raise Unavailable(f"Redis (context): left alone for another {wait_s:.1f} s, since it does not answer")
        try:
            result = call()
        except ContextIncomplete:
            self.breaker.answered()
            raise
        except RedisError as error:
            self.breaker.failed()
            self.errors += 1
            raise _unavailable(error) from None
        self.breaker.answered()
        return result


class _Decoded:
    """Members as changes, the most used ones kept: a member never changes, so what it says can only be out of use.

    To decode a change costs several times what it costs to read it.
    """

    def __init__(self, most_bytes: int, ttl_s: float, clock_s: Callable[[], float]) -> None:
        self._most_bytes, self._ttl_s, self._clock_s = most_bytes, ttl_s, clock_s
        self._kept: OrderedDict[bytes, tuple[float, ChangeEvent]] = OrderedDict()
        self._bytes = 0
        self.hits = self.misses = self.evicted = self.unreadable = 0

    def seen(self, members: Iterable[bytes], tenant: str, subject: str) -> list["_Seen"]:
        """The members of a subject's set. What is not one is counted and passed over: Redis is input like any other."""
        found: list[_Seen] = []
        for member in members:
            try:
                head = _head(member)
                change = head.change
                own = (change.tenant, change.subject) == (tenant, subject)
                one = _Seen(to_us(change.time), change.change_id, head.seen_us, member)
            except (msgspec.DecodeError, UnicodeDecodeError, TypeError):  # of these, a time without an offset
                own = False
            if own:
                found.append(one)
            else:
                self.unreadable += 1
        return found

    def reading(self) -> Callable[[bytes], ChangeEvent | None]:
        """Reads members now, each once; None for one that cannot be read."""
        now_s = self._clock_s()
        self._drop_unused_since(now_s - self._ttl_s)
        return lru_cache(maxsize=None)(lambda member: self._change(member, now_s))

    def _change(self, member: bytes, now_s: float) -> ChangeEvent | None:
        kept = self._kept.pop(member, None)
        if kept is not None:
            self.hits += 1
            self._kept[member] = (now_s, kept[1])
            return kept[1]
        self.misses += 1
        try:
            change = _Entry.model_validate_json(member).change
        except ValidationError:
            self.unreadable += 1
            return None
        self._kept[member] = (now_s, change)
        self._bytes += len(member)
        while self._bytes > self._most_bytes:
            self._drop_least_used()
            self.evicted += 1
        return change

    def _drop_unused_since(self, time_s: float) -> None:
        while self._kept and next(iter(self._kept.values()))[0] <= time_s:
            self._drop_least_used()

    def _drop_least_used(self) -> None:
        member, _ = self._kept.popitem(last=False)
        self._bytes -= len(member)


def _batches(changes: Iterable[tuple[ChangeEvent, int]]) -> Iterator[list[tuple[str, str, int, bytes]]]:
    """(tenant, subject, time in microseconds, member) in the batches of one round trip each."""
    batch: list[tuple[str, str, int, bytes]] = []
    size = 0
    for change, seen_us in changes:
        member = b'{"change":%b,"seen_us":%d}' % (change.to_json(), seen_us)
        batch.append((change.tenant, change.subject, to_us(change.time), member))
        size += len(member)
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _spans(wanted: Sequence[Question]) -> list[tuple[str, str, int, int]]:
    """(tenant, subject, from_us, to_us) that cover the questions; those of a subject neither overlap nor repeat."""
    spans: list[tuple[str, str, int, int]] = []
    for tenant, subject, from_us, until_us in sorted({question[:4] for question in wanted}):
        if spans and spans[-1][:2] == (tenant, subject) and from_us <= spans[-1][3]:
            spans[-1] = (tenant, subject, spans[-1][2], max(until_us, spans[-1][3]))
        else:
            spans.append((tenant, subject, from_us, until_us))
    return spans


def _answer(
    seen: Iterable[_Seen], question: Question, most: int | None, read: Callable[[bytes], ChangeEvent | None]
) -> ChangesFound:
    """The last ``most`` of what was asked for; only those are read."""
    in_order = _in_order(seen, question)
    changes: list[ChangeEvent] = []
    while in_order and (most is None or len(changes) < most):
        change = read(in_order.pop().member)
        if change is not None:
            changes.append(change)
    return ChangesFound(changes[::-1], len(in_order))


def _in_order(seen: Iterable[_Seen], question: Question) -> list[_Seen]:
    """What was asked for, by time and id; of each id the record seen first."""
    _, _, from_us, until_us, seen_before_us = question
    first: dict[str, _Seen] = {}
    for one in seen:
        if one.seen_us >= seen_before_us or not from_us <= one.time_us <= until_us:
            continue
        known = first.get(one.change_id)
        if known is None or (one.seen_us, one.time_us) < (known.seen_us, known.time_us):
            first[one.change_id] = one
    return sorted(first.values())


def _ask_server(client: Any) -> Any:
    """INFO as one name, which the client has no parser for: that of INFO leaves a cycle of objects at each call."""
    return client.execute_command("INFO server")


def _server_id(info: bytes) -> bytes:
    """What tells one run of a server from the next, and a replica from what it replaces.

    >>> _server_id(b"# Server\\r\\nredis_version:7.0.15\\r\\nrun_id:5f3c\\r\\n")
    b'5f3c'
    """
    return dict(line.partition(b":")[::2] for line in info.splitlines()).get(b"run_id", b"")


def _unavailable(error: RedisError) -> Unavailable:
    why = "no answer in time" if isinstance(error, RedisTimeout) else type(error).__name__
    return Unavailable(f"Redis (context): {why}; see that the server of ERRATA_REDIS_URL is up and may be written to")
