"""Finds conversations and turns by the index, the newest first, a page at a time.

The verbs of `TurnClient` for who looks for them stand at the end.
"""

import datetime as dt
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from turnline.contracts.connection import AsyncRedis, Command, pipelined
from turnline.contracts.conversation import CallEntry
from turnline.contracts.errors import InvalidCursor, StoreIncompatible
from turnline.contracts.homes import Homes
from turnline.contracts.index_lines import IndexLine, mark, read_line, slowness
from turnline.contracts.keys import ConversationKeys, ShardKeys, conversation_keys
from turnline.contracts.numbers import number
from turnline.contracts.protocol import TOTAL_FIELDS, Requests, read_totals
from turnline.contracts.replies import (
    ConversationPage,
    FoundConversation,
    FoundTurn,
    TurnFailed,
    TurnPage,
    TurnRecord,
    decode_record,
)
from turnline.contracts.scripts import Call, FindArgs, FindKeys, find, run_together, text

MOST: Final = 10_000
"""Conversations in one page."""
_AT_ONCE: Final = (64, 256, 504)
"""Pages of the index in one call: first a few, since the newest mostly are enough."""
_FIRST: Final = 400
"""Pages of each shard that are asked for at first."""
_RECORDS: Final = 256
"""Newest turns of a conversation that are looked at."""
LOOKED_AT: Final = 100_000
"""Conversations among which a turn is looked for by its id alone."""
_LOOKS: Final = 20
"""Pages of conversations that one page of turns is made from, at most."""
_NEVER_MS: Final = 2**53 - 1
_decode_call = msgspec.json.Decoder(CallEntry, float_hook=number).decode


class Query(NamedTuple):
    """What is looked for; what is None does not matter."""

    since: dt.datetime | dt.timedelta | None = None
    tenant: str | None = None
    agent: str | None = None
    metadata: Mapping[str, str] = {}
    failed: bool = False
    slow_s: float | None = None

    @property
    def since_ms(self) -> int:
        """From when on, ms since the Unix epoch."""
        if self.since is None:
            return 0
        if isinstance(self.since, dt.timedelta):
            return max(0, int((time.time() - self.since.total_seconds()) * 1000))
        return max(0, int(self.since.timestamp() * 1000))

    @property
    def marks(self) -> tuple[str, ...]:
        """What the index has for it."""
        named = (("tenant", self.tenant), ("agent", self.agent))
        pairs = ((f"metadata {key}", value) for key, value in self.metadata.items())
        return tuple(mark(kind, it) for kind, it in (*named, *pairs) if it is not None)


class _Cursor(NamedTuple):
    """A conversation behind which a page begins, or None."""

    at_ms: int = _NEVER_MS
    conversation_id: str = ""

    @staticmethod
    def read(cursor: str | None) -> "_Cursor":
        """Read one.

        Raises:
            InvalidCursor: It is none.
        """
        if cursor is None:
            return _Cursor()
        at_ms, colon, conversation_id = cursor.partition(":")
        if not (colon and at_ms.isascii() and at_ms.isdecimal() and len(at_ms) < 16):
            raise InvalidCursor("a cursor is what `after` of the page before says, such as "
                                "1750000000123:trip")  # fmt: skip
        return _Cursor(int(at_ms), conversation_id)

    def is_before(self, line: IndexLine) -> bool:
        return (-self.at_ms, self.conversation_id) < (-line.at_ms, line.conversation_id)


class Found(NamedTuple):
    """A line of the index, and where it was found."""

    line: IndexLine
    keys: ConversationKeys

    @property
    def cursor(self) -> str:
        """Behind this conversation."""
        return f"{self.line.at_ms}:{self.line.conversation_id}"


class _Head(NamedTuple):
    """A page of the index, and when it was written to last; in the order of reading."""

    before_ms: float
    """That time, negative."""
    shard: int
    page: str


async def look_up(
    redis: AsyncRedis, shards: Sequence[ShardKeys], query: Query, after: str | None, limit: int
) -> tuple[list[Found], bool]:
    """Return conversations by the index alone, the newest first, and whether there are more.

    Raises:
        InvalidCursor: `after` is none.
        ValueError: The limit is out of range.
    """
    if not 1 <= limit <= MOST:
        raise ValueError(f"limit: expected 1 to {MOST}")
    cursor, since_ms, most = _Cursor.read(after), query.since_ms, limit + 1
    slow = "" if query.slow_s is None else slowness(query.slow_s)
    failed_since = since_ms if query.failed else -1
    found: dict[str, Found] = {}
    async for heads in _in_steps(redis, shards, since_ms):
        if -heads[0].before_ms < since_ms:
            break
        args = FindArgs(most, since_ms, cursor.at_ms, failed_since, slow, query.marks)
        for it in await _read_pages(redis, shards, heads, args):
            known = found.get(it.line.conversation_id)
            if cursor.is_before(it.line) and (known is None or known.line.at_ms < it.line.at_ms):
                found[it.line.conversation_id] = it
        if len(found) >= most:  # older ones are of no use
            since_ms = sorted(it.line.at_ms for it in found.values())[-most]
    rows = sorted(found.values(), key=lambda it: (-it.line.at_ms, it.line.conversation_id))
    return rows[:limit], len(rows) > limit


async def _in_steps(
    redis: AsyncRedis, shards: Sequence[ShardKeys], since_ms: int
) -> AsyncGenerator[list[_Head], None]:
    """Yield the pages that were written to since then, the newest first, so many at a time.

    Mostly the first few are enough, and the others need not be asked for.
    """
    first, sure_ms = await _heads(redis, shards, since_ms, _FIRST)
    heads = [it for it in first if -it.before_ms >= sure_ms]
    at, sizes, size = 0, iter(_AT_ONCE), 0
    is_all = len(heads) == len(first) and sure_ms == 0
    while at < len(heads) or not is_all:
        if at >= len(heads):
            seen = {(it.shard, it.page) for it in heads}
            rest, _ = await _heads(redis, shards, since_ms, -1)
            heads += [it for it in rest if (it.shard, it.page) not in seen]
            is_all = True
            continue
        size = next(sizes, size)
        yield heads[at : at + size]
        at += size


async def _heads(
    redis: AsyncRedis, shards: Sequence[ShardKeys], since_ms: int, most: int
) -> tuple[list[_Head], float]:
    """Return so many pages of each shard (-1: all), and since when none of them is missing, ms."""
    limits = ("BYSCORE", "REV", "LIMIT", 0, most, "WITHSCORES")
    asked: list[Command] = [("ZRANGE", it.pages, "+inf", since_ms, *limits) for it in shards]
    heads: list[_Head] = []
    sure_ms = 0.0
    for shard, reply in enumerate(await pipelined(redis, asked)):
        if isinstance(reply, StoreIncompatible):  # others wrote there
            continue
        if isinstance(reply, Exception):
            raise reply
        pairs = reply if reply and isinstance(reply[0], list | tuple) else _pairs(reply)
        some = [_Head(-float(score), shard, text(page)) for page, score in pairs]
        if len(some) == most:
            sure_ms = max(sure_ms, -some[-1].before_ms)
        heads += some
    return sorted(heads), sure_ms


def _pairs(reply: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield members and scores of an answer of RESP2, which has one behind the other."""
    return zip(reply[::2], reply[1::2], strict=True)


async def _read_pages(
    redis: AsyncRedis, shards: Sequence[ShardKeys], heads: Sequence[_Head], args: FindArgs
) -> list[Found]:
    """Return the lines of these pages that fit, a call for each shard."""
    by_shard: dict[int, list[str]] = {}
    for it in heads:
        by_shard.setdefault(it.shard, []).append(shards[it.shard].page_prefix + it.page)
    calls: list[Call] = [
        find(FindKeys(shards[it].page_marks), args, pages) for it, pages in by_shard.items()
    ]
    found: list[Found] = []
    for shard, reply in zip(by_shard, await run_together(redis, calls), strict=True):
        if isinstance(reply, Exception):
            raise reply
        for data in reply[1]:
            line = read_line(data.decode(errors="replace") if isinstance(data, bytes) else data)
            if line is not None:
                keys = conversation_keys(shards[shard].tag, line.conversation_id)
                found.append(Found(line, keys))
    return found


async def describe(redis: AsyncRedis, found: Sequence[Found]) -> list[FoundConversation]:
    """Return what is known of conversations; those that there are no more are left out."""
    asked: list[Command] = []
    for _, keys in found:
        asked += [
            ("LRANGE", keys.log, -1, -1),
            ("LRANGE", keys.calls, -1, -1),
            ("HMGET", keys.state, *TOTAL_FIELDS),
        ]
    replies = await pipelined(redis, asked, raise_on_error=True) if asked else []
    there = [(it, *replies[3 * n : 3 * n + 3]) for n, it in enumerate(found) if replies[3 * n]]
    records = await pipelined(
        redis, [("HGET", it.keys.turns, log[0]) for it, log, *_ in there], raise_on_error=True
    ) if there else []  # fmt: skip
    return [
        _described(it, log[0], calls, read_totals(totals), _ended(data))
        for (it, log, calls, totals), data in zip(there, records, strict=True)
    ]


def _ended(data: bytes | None) -> TurnRecord | None:
    """Return the record of a turn that has ended; None for another."""
    if data is None:
        return None
    try:
        record = decode_record(data)
        return record if record.terminal() is not None else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _described(
    it: Found, turn_id: bytes, calls: Sequence[bytes], totals: Any, record: TurnRecord | None
) -> FoundConversation:
    try:
        call = _decode_call(calls[0]) if calls else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        call = None
    end = record.terminal() if record is not None else None
    return FoundConversation(
        conversation_id=it.line.conversation_id,
        active_at_ms=it.line.at_ms,
        outcome=it.line.outcome,
        failed_at_ms=it.line.failed_at_ms,
        turn_id=turn_id.decode(errors="replace"),
        turns=totals.turns,
        tenant=call.tenant if call else "",
        agent=call.agent if call else "",
        metadata=end.metadata if end is not None else {},
        usage=totals.usage,
    )


async def turns_of(
    redis: AsyncRedis, found: Sequence[Found], query: Query
) -> list[list[FoundTurn]]:
    """Return the turns of each conversation that fit, the newest first."""
    if not found:
        return []
    logs = await pipelined(
        redis, [("LRANGE", it.keys.log, -_RECORDS, -1) for it in found], raise_on_error=True
    )
    there = [(it, log) for it, log in zip(found, logs, strict=True) if log]
    asked: list[Command] = [("HMGET", it.keys.turns, *log) for it, log in there]
    replies = await pipelined(redis, asked, raise_on_error=True) if asked else []
    turns = {it.line.conversation_id: list(_fitting(it, log, records, query))
             for (it, log), records in zip(there, replies, strict=True)}  # fmt: skip
    return [turns.get(it.line.conversation_id, []) for it in found]


def _fitting(
    it: Found, log: Sequence[bytes], records: Sequence[bytes | None], query: Query
) -> Iterator[FoundTurn]:
    """Yield those turns of a conversation that fit, the newest first."""
    since_ms, slow_ms = query.since_ms, (query.slow_s or 0) * 1000
    wanted = query.metadata.items()
    ended = [(turn_id, _ended(data)) for turn_id, data in zip(log, records, strict=True)]
    newest_first = sorted(
        ((turn_id, record) for turn_id, record in reversed(ended) if record is not None),
        key=lambda pair: -pair[1].finished_at_ms,
    )
    for turn_id, record in newest_first:
        end = record.terminal()
        took_ms = max(0, record.finished_at_ms - record.accepted_at_ms)
        is_wanted = (
            end is not None
            and record.finished_at_ms >= since_ms
            and took_ms >= slow_ms
            and (not query.failed or record.state == "failed")
            and wanted <= end.metadata.items()
        )
        if is_wanted and end is not None:
            yield FoundTurn(
                conversation_id=it.line.conversation_id,
                turn_id=turn_id.decode(errors="replace"),
                state=record.state,
                code=end.code if isinstance(end, TurnFailed) else "",
                finished_at_ms=record.finished_at_ms,
                took_ms=took_ms,
                attempts=record.attempts,
                worker=record.worker,
                trace_id=record.trace_id or end.trace_id,
                metadata=end.metadata,
            )


async def every(
    redis: AsyncRedis, shards: Sequence[ShardKeys], query: Query, most: int
) -> AsyncGenerator[list[Found], None]:
    """Yield so many conversations at most, some thousand at a time, the newest first."""
    after, left, is_more = None, most, True
    while left > 0 and is_more:
        found, is_more = await look_up(redis, shards, query, after, min(left, 5_000))
        if found:
            yield found
            after = found[-1].cursor
        left -= len(found)


class FindingVerbs:
    """What operators and support desks do."""

    _make: Requests
    _homes: Homes
    _redis: AsyncRedis

    async def conversations(
        self,
        *,
        since: dt.datetime | dt.timedelta | None = None,
        tenant: str | None = None,
        agent: str | None = None,
        metadata: Mapping[str, str] | None = None,
        failed: bool = False,
        limit: int = 50,
        after: str | None = None,
    ) -> ConversationPage:
        """Return conversations, the one that was active last first, a page at a time.

        A conversation is listed from the end of its first turn on. It moves to the front when
        another turn ends, also while pages are read; a page may then be shorter than its limit.

        Args:
            since: Active then or later; a time, or how long ago. With `failed`, the failure was.
            tenant: One of its last turns was this one's.
            agent: One of its last turns was run by this agent.
            metadata: Its last turns had all these pairs.
            failed: A turn of it failed.
            limit: In one page, at most 10,000.
            after: `after` of the page before.

        Raises:
            InvalidCursor: `after` is none; nothing was asked.
            ValueError: The limit is out of range.
        """
        await self._homes.refresh(at_once=True)
        query = Query(since, tenant, agent, metadata or {}, failed)
        found, is_more = await look_up(self._redis, self._make.shards, query, after, limit)
        listed = await describe(self._redis, found)
        return ConversationPage(
            conversations=tuple(listed), after=found[-1].cursor if is_more else None
        )

    async def turns(
        self,
        *,
        since: dt.datetime | dt.timedelta | None = None,
        tenant: str | None = None,
        agent: str | None = None,
        metadata: Mapping[str, str] | None = None,
        failed: bool = False,
        slow_s: float | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> TurnPage:
        """Return turns that have ended, a page at a time.

        Those of the conversation that was active last come first, in it the newest first; its last
        256 turns are looked at. A page ends between two conversations, so it may be longer than its
        limit; it is shorter where few turns of the conversations that are listed fit.

        Args:
            since: Ended then or later; a time, or how long ago.
            tenant: Of conversations with turns of this one.
            agent: Of conversations with turns of this one.
            metadata: With all these pairs.
            failed: Only those that failed.
            slow_s: Only those that took so many seconds or longer, waits included.
            limit: In one page, at most 10,000.
            after: `after` of the page before.

        Raises:
            InvalidCursor: `after` is none; nothing was asked.
            ValueError: The limit is out of range.
        """
        await self._homes.refresh(at_once=True)
        query = Query(since, tenant, agent, metadata or {}, failed, slow_s)
        turns: list[FoundTurn] = []
        is_more, looks = True, 0
        while is_more and len(turns) < limit and looks < _LOOKS:
            looks += 1
            found, is_more = await look_up(self._redis, self._make.shards, query, after, limit)
            for it, fitting in zip(found, await turns_of(self._redis, found, query), strict=True):
                turns += fitting
                after = it.cursor
                if len(turns) >= limit:
                    is_more = is_more or it is not found[-1]
                    break
        return TurnPage(turns=tuple(turns), after=after if is_more else None)

    async def find_turn(self, turn_id: str) -> tuple[str, ...]:
        """Return the conversations that have a turn of this id, among those active last.

        Turns have no index of their own, so that a turn costs nothing for it: 100,000 conversations
        are asked, one after the other, until one has it.
        """
        await self._homes.refresh(at_once=True)
        async for found in every(self._redis, self._make.shards, Query(), LOOKED_AT):
            asked: list[Command] = [("HEXISTS", it.keys.turns, turn_id) for it in found]
            has_it = await pipelined(self._redis, asked, raise_on_error=True)
            named = [it.line.conversation_id for it, so in zip(found, has_it, strict=True) if so]
            if named:
                return tuple(named)
        return ()
