"""Conversations on Redis: load, emit, checkpoint, commit, each one script under the lease."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
from redis.exceptions import RedisError

from turnline.contracts.connection import Arg
from turnline.contracts.conversation import CallEntry, ConversationSettings
from turnline.contracts.daily_spend import SPEND_DAYS, day_of, spent_by
from turnline.contracts.keys import ConversationKeys, ShardKeys, conversation_keys
from turnline.contracts.protocol import RETENTION_MS, USAGE_FIELDS, TextAssembler, decode_settings
from turnline.contracts.replies import TurnRecord, decode_record, encode_event, read_event
from turnline.contracts.scripts import Call, text
from turnline.worker.batching import ScriptBatcher
from turnline.worker.effects import Committed, ConversationSnapshot, Copy, Effects, Entry
from turnline.worker.errors import LeaseLost, StoreUnavailable
from turnline.worker.lease import Lease
from turnline.worker.states import LeaseEvent
from turnline.worker.store import lua
from turnline.worker.store.cache import CachedContext, ContextCache
from turnline.worker.store.purse import Purse
from turnline.worker.store.replicas import Replicas

_encode = msgspec.json.Encoder().encode
_PATIENCE_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.0, 2.0)
"""Waits between tries of a script that was not answered; all of them bear repetition."""


class StoreLimits(NamedTuple):
    """How much is kept per conversation and per shared stream."""

    retention_ms: int = RETENTION_MS
    """Sliding expiry of a conversation's keys."""
    events: int = 4_096
    """Newest events kept, about; a long reply in small pieces may need that many."""
    calls: int = 10_000
    copies: int = 10_000
    shared: int = 100_000
    """Entries of a reply stream, or dead letters of a shard, about."""
    batch: int = 64
    """Inbox entries fetched at once."""
    spend_ms: int = SPEND_DAYS * 86_400_000
    """Expiry of what was spent on a day."""
    is_indexed: bool = True
    """Whether conversations are entered in the index."""


class _Prefetch(NamedTuple):
    """A load on its way, and what the worker had cached when it was sent."""

    cached: CachedContext
    reply: "asyncio.Future[list[Any]]"


class Conversations:
    """The store of one shard."""

    def __init__(
        self,
        batcher: ScriptBatcher,
        shard: ShardKeys,
        *,
        cache: ContextCache,
        limits: StoreLimits | None = None,
        replicas: Replicas | None = None,
        purse: Purse | None = None,
    ) -> None:
        """Use the shard's batcher; `cache` may be shared by shards.

        `replicas` are waited for behind each commit; `purse` learns what it adds to what was spent.
        """
        self._purse = purse
        self._batcher = batcher
        self._replicas = replicas
        self._shard = shard
        self._cache = cache
        self._limits = limits = limits or StoreLimits()
        self._checkpoint_limits = f"{limits.copies} {limits.shared}"
        self._commit_limits = f"{limits.calls} {limits.events} {self._checkpoint_limits}"

    async def load(self, lease: Lease) -> ConversationSnapshot:
        """Begin an attempt and fetch what this worker has not cached: one round trip.

        Raises:
            LeaseLost: Somebody else holds the conversation now, or nobody.
            StoreUnavailable: Redis did not answer.

        Source: worker/store/lua/load.lua
        """
        prefetch, lease.prefetched = cast("_Prefetch | None", lease.prefetched), None
        reply = None if prefetch is None else await _prefetched_reply(prefetch, lease)
        if prefetch is not None and reply is not None:
            cached = prefetch.cached
        else:
            cached = self._cache.get(lease.conversation_id)
            reply = await self._run(lease, self._loading(lease.keys, lease.value, cached))
        _, _, epoch, start, *numbers, settings, messages, steps, entries = reply
        attempt, crashes, since_ms, now_ms, reasoning = map(int, numbers)
        if start == 0:
            cached = CachedContext(text(epoch), messages, sum(map(len, messages)))
        elif messages:
            cached = cached.grown(messages)
        if cached.epoch:
            self._cache.put(lease.conversation_id, cached)
        return ConversationSnapshot(
            attempt=attempt,
            crashes=crashes,
            settings=decode_settings(settings) if settings else ConversationSettings(),
            messages=cached.messages,
            steps=steps,
            entries=_read_entries(entries),
            since_ms=since_ms,
            now_ms=now_ms,
            reasoning_bytes=reasoning,
        )

    def prefetch(self, conversation_id: str, worker_id: str) -> object:
        """Send the load of a conversation that this worker is about to hold; `load` will use it.

        To be called right behind the claim: whether that won is found out on the server. What comes
        back belongs into `Lease.prefetched`; nothing is lost if it is thrown away.
        """
        keys = conversation_keys(self._shard.tag, conversation_id)
        cached = self._cache.get(conversation_id)
        reply = self._batcher.run(self._loading(keys, f" {worker_id}", cached))
        reply.add_done_callback(_consume_exception)
        return _Prefetch(cached, reply)

    def _loading(self, keys: ConversationKeys, claimed: str, cached: CachedContext) -> Call:
        last = b"".join(cached.messages[-2:])
        last_sha = hashlib.sha1(last, usedforsecurity=False).hexdigest()
        known = len(cached.messages)
        batch, retention_ms = self._limits.batch, self._limits.retention_ms
        # In order, since names would cost more than the rest of the call.
        args = lua.LoadArgs(claimed, cached.epoch, known, batch, retention_ms, last_sha)
        return lua.load(keys, args)

    async def more(self, lease: Lease, after: str) -> list[Entry]:
        """Return what came into the inbox behind the entry `after`.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return await self._behind(after, lease.keys.inbox, "COUNT", self._limits.batch)

    async def shown(self, lease: Lease, after: str, turn_id: str) -> str:
        """Return what the latest attempt at a turn has shown to readers so far.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        assembler = TextAssembler()
        for entry in await self._behind(after, lease.keys.events):
            event = read_event(entry.fields.get(b"e", b""), entry.entry_id)
            if event is not None and event.turn_id == turn_id:
                assembler.feed(event)
        return assembler.text

    async def records(self, lease: Lease, turn_ids: Sequence[str]) -> dict[str, TurnRecord]:
        """Return what is kept of turns, by their ids; what is not known is left out.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        words = ("HMGET", lease.keys.turns, *turn_ids)
        ask = partial(self._batcher.send, *words)
        try:
            found = await ask()
        except (RedisError, OSError) as error:
            found = await self._again(lease, "HMGET", ask, error)
        records = dict[str, TurnRecord]()
        for turn_id, data in zip(turn_ids, found, strict=True):
            if data is not None:
                with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
                    records[turn_id] = decode_record(data)
        return records

    async def _behind(self, after: str, stream: str, *options: Arg) -> list[Entry]:
        try:
            reply = await self._batcher.send("XRANGE", stream, f"({after}", "+", *options)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"XRANGE: {type(error).__name__}") from None
        return _read_entries(reply)

    async def emit(
        self,
        lease: Lease,
        events: Sequence[bytes],
        *,
        head: str,
        batch: int,
        call: CallEntry | None = None,
    ) -> None:
        """Publish encoded events; with `call`, also note that a model call begins now.

        Args:
            lease: Of the conversation.
            events: In order.
            head: Inbox entry whose turn they belong to; nothing is written once that is over.
            batch: Grows from call to call of a turn: a repeated one writes nothing.
            call: The model call that begins.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.

        Source: worker/store/lua/emit.lua
        """
        begun = _encode(call) if call is not None else b""
        most, retention_ms = self._limits.events, self._limits.retention_ms
        # In order, as in `_loading`.
        args = lua.EmitArgs(lease.value, begun, most, retention_ms, head, batch, events)
        await self._run(lease, lua.emit(lease.keys, args))

    async def checkpoint(
        self, lease: Lease, known: int, steps: Sequence[bytes], copies: Sequence[Copy] = ()
    ) -> int:
        """Make steps of a running turn safe.

        Args:
            lease: Of the conversation.
            known: Steps that are safe already, so that a repeated call adds nothing.
            steps: See `turnline.worker.turn.checkpoints`.
            copies: Entries for streams of the shard, written in the same moment.

        Returns:
            How many steps are safe now.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.

        Source: worker/store/lua/checkpoint.lua
        """
        limits, shared = self._limits, _streams(copies)
        copied = [word for copy in copies for word in _copied(copy, shared, first_key=5)]
        args = lua.CheckpointArgs(
            lease=lease.value,
            retention_ms=limits.retention_ms,
            known=known,
            limits=self._checkpoint_limits,
            lists=[len(steps), *steps, len(copies), *copied],
        )
        _, safe = await self._run(lease, lua.checkpoint(lease.keys, args, shared))
        return int(safe)

    async def commit(self, lease: Lease, effects: Effects, *, keep_lease: bool) -> Committed:
        """Let a turn take effect: all of it, once.

        Args:
            lease: Of the conversation.
            effects: What changes.
            keep_lease: Keep the lease while messages wait; else it is given up in the same step.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer; the commit may have happened.

        Source: worker/store/lua/commit.lua
        """
        limits, shared = self._limits, _streams(effects.copies)
        args = lua.CommitArgs(
            lease=lease.value,
            turn_id=effects.turn_id,
            job_id=lease.keys.job_id,
            retention_ms=limits.retention_ms,
            limits=self._commit_limits,
            afterwards="go_on" if keep_lease else "yield",
            batch=limits.batch,
            how="rewrite" if effects.rewrite else "append",
            settings=_encode(effects.settings) if effects.settings is not None else b"",
            attempt=effects.next_attempt,
            spend_ms=limits.spend_ms,
            listed=effects.listed if limits.is_indexed else "",
            lists=_counted(effects, shared),
        )
        spend = self._shard.spend_prefix + day_of(effects.at_ms)
        keys = lua.CommitKeys(*lease.keys[:15], spend, *lease.keys.in_index)
        lease.advance(LeaseEvent.SEND)
        call = lua.commit(keys, args, shared)
        with self._purse.committing(effects.calls) if self._purse else nullcontext():
            reply = await self._run(lease, call)
        match text(reply[0]):
            case "committed" | "released" as outcome:
                length = int(reply[2])
                self._remember(lease, effects, text(reply[1] or b""), length)
                lease.advance(LeaseEvent.GIVEN_UP if outcome == "released" else LeaseEvent.KEPT)
                done = Committed(outcome, length, _read_entries(reply[3]), int(reply[4]))
            case _:
                lease.advance(LeaseEvent.KEPT)
                self._cache.drop(lease.conversation_id)
                done = Committed("duplicate", 0, [], 0)
        if self._replicas is not None:
            await self._replicas.have_it(self._shard.tag)
        return done

    def _remember(self, lease: Lease, effects: Effects, epoch: str, length: int) -> None:
        """Bring the cache up to what was committed, or drop what no longer matches."""
        cached = self._cache.get(lease.conversation_id)
        if effects.rewrite:
            cached = CachedContext(epoch).grown(effects.messages)
        else:
            cached = cached.grown(effects.messages)
        if epoch and cached.epoch == epoch and len(cached.messages) == length:
            self._cache.put(lease.conversation_id, cached)
        else:
            self._cache.drop(lease.conversation_id)

    async def _run(self, lease: Lease, call: Call) -> list[Any]:
        """Run a script, again if it was not answered.

        Raises:
            LeaseLost: The script said so.
            StoreUnavailable: It was not answered in time.
        """
        name = call.script.name
        try:
            reply: list[Any] = await self._batcher.run(call)
        except (RedisError, OSError) as error:
            reply = await self._again(lease, name, partial(self._batcher.run, call), error)
        if reply[0] == b"fenced":
            lease.advance(LeaseEvent.FENCED)
            raise LeaseLost(f"{lease.conversation_id}: {name} refused, held {lease.value}")
        return reply

    async def _again(
        self,
        lease: Lease,
        name: str,
        ask: Callable[[], "asyncio.Future[list[Any]]"],
        error: Exception,
    ) -> list[Any]:
        """Ask again for something that bears repetition, behind this error.

        Raises:
            StoreUnavailable: There was no answer in time.
        """
        for wait_s in _PATIENCE_S:
            if lease.lost:
                break
            await asyncio.sleep(wait_s)
            try:
                return await ask()
            except (RedisError, OSError) as another:
                error = another
        raise StoreUnavailable(f"{name}: {type(error).__name__}") from None


def _consume_exception(reply: "asyncio.Future[Any]") -> None:
    """Take note of an error: a load that nobody waits for may fail."""
    if not reply.cancelled():
        reply.exception()


async def _prefetched_reply(prefetch: _Prefetch, lease: Lease) -> list[Any] | None:
    """Return what came back, if it is what this lease needs."""
    try:
        reply = await prefetch.reply
    except (RedisError, OSError):
        return None
    return reply if reply[0] == b"loaded" and text(reply[1]) == lease.value else None


def _read_entries(reply: Any) -> list[Entry]:
    """Read entries of a stream as XRANGE gives them."""
    return [
        Entry(text(entry_id), dict(zip(words[::2], words[1::2], strict=False)))
        for entry_id, words in reply
    ]


def _counted(effects: Effects, shared: Sequence[str]) -> list[Arg]:
    """Lay out commit.lua's counted lists."""
    totals, spent = _totals(effects), spent_by(effects.calls)
    lists: tuple[tuple[int, Iterable[Arg]], ...] = (
        (len(effects.entries), effects.entries),
        (len(effects.messages), effects.messages),
        (len(effects.calls), map(_encode, effects.calls)),
        (len(totals), (word for pair in totals for word in pair)),
        (len(spent), (word for pair in spent for word in pair)),
        (len(effects.events), map(encode_event, effects.events)),
        (
            len(effects.records),
            (word for name, record in effects.records for word in (name, _encode(record))),
        ),
        (
            len(effects.copies),
            (word for copy in effects.copies for word in _copied(copy, shared, first_key=20)),
        ),
    )
    return [word for count, words in lists for word in (count, *words)]


def _streams(copies: Sequence[Copy]) -> list[str]:
    """Return each stream that is written to, once."""
    return [] if not copies else list(dict.fromkeys(copy.stream for copy in copies))


def _copied(copy: Copy, shared: Sequence[str], *, first_key: int) -> list[Arg]:
    words: list[Arg] = [word for pair in copy.fields.items() for word in pair]
    return [first_key + shared.index(copy.stream), len(words), *words]


def _totals(effects: Effects) -> list[tuple[str, int]]:
    """Return what the totals grow by: `u.` for the answer, `a.` for abandoned spend."""
    grown: dict[str, int] = {"turns": effects.turns, "calls": len(effects.calls)}
    grown["reasoning_bytes"] = effects.reasoning_bytes  # a rewrite begins at 0
    for call in effects.calls:
        state = f"{call.state}_calls"
        grown[state] = grown.get(state, 0) + 1
        prefix = "a." if call.abandoned else "u."
        for name in USAGE_FIELDS:
            field = prefix + name
            grown[field] = grown.get(field, 0) + getattr(call.usage, name)
    return [(field, amount) for field, amount in grown.items() if amount]
