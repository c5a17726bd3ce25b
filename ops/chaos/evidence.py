"""Reads back what a run left: conversations, reply stream, dead letters, keys, model calls."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final, Literal

import msgspec

from turnline.contracts import Spend, SyncTurnClient
from turnline.contracts.addresses import read_address
from turnline.contracts.blocking_servers import BlockingServers, run
from turnline.contracts.connection import SyncRedis
from turnline.contracts.conversation import (
    CallEntry,
    ContextEntry,
    Totals,
    Usage,
    decode_context_entry,
)
from turnline.contracts.keys import ConversationKeys, conversation_keys, shard_keys, shard_of
from turnline.contracts.layout import FIELDS, Layout, read_layout
from turnline.contracts.opening import Blocking, open_sync
from turnline.contracts.protocol import TOTAL_FIELDS, read_totals
from turnline.contracts.readers import MOVED
from turnline.contracts.replies import AnyEvent, TurnRecord, decode_event, decode_record
from turnline.contracts.scripts import text
from turnline.ops.chaos.simulated import Entry, SimAdmin
from turnline.ops.chaos.traffic import REPLIES
from turnline.ops.simulator.request_ledger import Continuity

_decode_call = msgspec.json.Decoder(CallEntry).decode
_MANY: Final = 1_000_000
_PAGE: Final = 1_000
_ANSWER_S: Final = 10.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request that the model got, as the simulator noted it."""

    messages: tuple[tuple[str, str], ...]
    """(role, text), as the model was shown them."""
    seq: int = 0
    """Number of the request."""
    wire: Literal["chat", "responses"] = "chat"
    items: tuple[bytes, ...] = ()
    """What it holds, each part of it as it was sent: messages, and what stands between them."""
    continuity: Continuity | None = None
    """What the simulator noticed of what was said before, on `/v1/responses`."""
    from_ms: float
    outcome: str
    """`whole`, `cut`, `error` or `open`."""
    tokens_streamed: int
    reported: Usage | None
    """The usage that the client was told, if any."""
    faults: tuple[str, ...] = ()
    """Names of the simulator's scenarios that struck it."""


class Left(msgspec.Struct, kw_only=True):
    """What Redis holds of one conversation."""

    log: tuple[str, ...] = ()
    """Turn ids in the order accepted."""
    records: Mapping[str, TurnRecord] = {}
    events: tuple[AnyEvent, ...] = ()
    """The whole stream."""
    is_trimmed: bool = False
    """Whether the beginning of the stream is gone."""
    context: tuple[ContextEntry, ...] = ()
    calls: tuple[CallEntry, ...] = ()
    totals: Totals = Totals()
    inbox: int = 0
    """Messages still in it."""
    unfinished: tuple[str, ...] = ()
    """What only a running turn may have, and is still there: lease, steps, marks in the state."""
    strays: tuple[str, ...] = ()
    """What is in shards where it was once, and no mark that it is elsewhere."""


class Evidence(msgspec.Struct, kw_only=True):
    """Everything that a run left."""

    left: Mapping[str, Left]
    """By conversation id."""
    replies: Mapping[str, int]
    """Turn id to the number of its entries in the reply stream."""
    dead: Sequence[tuple[str, str, str]]
    """(conversation, turn, code) of each dead letter."""
    lives: Mapping[str, int]
    """Key to its time to live, ms; -1 if it has none."""
    requests: Mapping[str, Sequence[Request]]
    """By conversation id, oldest first."""
    layout: Layout = Layout(1)
    """How many shards the fleet has in the end, and had."""
    spend: Sequence[Spend] = ()
    """What was spent, by tenant, agent and model."""
    disagreeing: Sequence[int] = ()
    """Shards that say something else of that."""
    turn_tokens: int | None = None
    """Budget of a turn; None: it has none."""


def gather(url: str, sim: SimAdmin, conversations: Iterable[str]) -> Evidence:
    """Read everything back, from all shards, wherever they are.

    Args:
        url: Address of the servers.
        sim: The model.
        conversations: Their names.

    Raises:
        LedgerIncomplete: The simulator dropped part of its record.
        redis.exceptions.RedisError: Redis does not answer.
    """
    requests: dict[str, list[Request]] = {}
    for entry in sim.entries():
        requests.setdefault(entry.conversation_id or "", []).append(_request(entry))
    replies: Counter[str] = Counter()
    dead: list[tuple[str, str, str]] = []
    with closing(open_sync(url, patience_s=3)) as redis:
        layout, disagreeing = _layout(redis)
        for shard in map(shard_keys, range(layout.widest)):
            copies = redis.execute_command("XRANGE", shard.reply_prefix + REPLIES, "-", "+")
            replies.update(decode_event(fields[b"e"]).turn_id for _, fields in copies)
            dead += [
                (text(fields[b"c"]), text(fields[b"t"]), text(fields[b"code"]))
                for _, fields in redis.execute_command("XRANGE", shard.dead, "-", "+")
            ]
        return Evidence(
            left={
                name: msgspec.structs.replace(
                    _left(redis, _keys(name, layout.shards)), strays=_strays(redis, name, layout)
                )
                for name in conversations
            },
            replies=replies,
            dead=dead,
            lives=dict(_lives_everywhere(url)),
            requests=requests,
            layout=layout,
            spend=SyncTurnClient(redis).spend(by=("tenant", "agent", "model")),
            disagreeing=disagreeing,
        )


def _layout(redis: SyncRedis) -> tuple[Layout, list[int]]:
    """Return how many shards there are, and the numbers of those that know something else."""

    def read(shard: int) -> Layout | None:
        return read_layout(redis.execute_command("HMGET", shard_keys(shard).fleet, *FIELDS))

    layout = read(0) or Layout(1)
    return layout, [number for number in range(layout.widest) if read(number) != layout]


def _keys(conversation: str, shards: int) -> ConversationKeys:
    return conversation_keys(shard_keys(shard_of(conversation, shards)).tag, conversation)


def _strays(redis: SyncRedis, conversation: str, layout: Layout) -> tuple[str, ...]:
    """Return what a conversation left behind, beside marks and the list of its copies."""
    home, found = _keys(conversation, layout.shards), list[str]()
    for keys in {_keys(conversation, number) for number in layout.every} - {home}:
        pipe = redis.pipeline(transaction=False)
        pipe.execute_command("TYPE", keys.inbox)
        pipe.execute_command("XRANGE", keys.events, "-", "+")
        others = [it for it in keys.own if it not in {keys.inbox, keys.events, keys.copies}]
        for key in others:
            pipe.execute_command("EXISTS", key)
        inbox, events, *there = pipe.execute()
        if text(inbox) not in {"none", "string"}:
            found.append(keys.inbox)
        if len(events) > 1 or not all(MOVED in fields for _, fields in events):
            found.append(keys.events)
        found += [key for key, is_there in zip(others, there, strict=True) if is_there]
    return tuple(found)


def _left(redis: SyncRedis, keys: ConversationKeys) -> Left:
    pipe = redis.pipeline(transaction=False)
    for command in (
        ("LRANGE", keys.log, 0, -1),
        ("HGETALL", keys.turns),
        ("XRANGE", keys.events, "-", "+"),
        ("XINFO", "STREAM", keys.events),
        ("LRANGE", keys.context, 0, -1),
        ("LRANGE", keys.calls, 0, -1),
        ("HMGET", keys.state, *TOTAL_FIELDS),
        ("XLEN", keys.inbox),
        ("EXISTS", keys.in_progress),
        ("EXISTS", keys.job),
        ("LLEN", keys.steps),
        ("ZCARD", keys.later),
        ("HMGET", keys.state, "running", "call"),
    ):
        pipe.execute_command(*command)
    log, turns, events, info, context, calls, totals, inbox, *unfinished = pipe.execute(
        raise_on_error=False
    )
    lease, job, steps, delayed, marks = unfinished
    found = (
        ("lease", lease),
        ("job", job),
        ("steps", steps),
        ("delayed messages", delayed),
        ("mark `running`", marks[0]),
        ("mark `call`", marks[1]),
    )
    return Left(
        log=tuple(map(text, log)),
        records={text(turn): decode_record(data) for turn, data in turns.items()},
        events=tuple(
            decode_event(fields[b"e"], text(id_)) for id_, fields in events if b"e" in fields
        ),
        is_trimmed=_was_trimmed(info),
        context=tuple(map(decode_context_entry, context)),
        calls=tuple(map(_decode_call, calls)),
        totals=read_totals(totals),
        inbox=inbox,
        unfinished=tuple(what for what, there in found if there),
    )


def _was_trimmed(info: Any) -> bool:
    """Read the answer to XINFO, which is an error if there is no stream."""
    if isinstance(info, Exception):
        return False
    facts = dict(zip(map(text, info[::2]), info[1::2], strict=True))
    return bool(facts["entries-added"] != facts["length"])


def _lives_everywhere(url: str) -> Iterator[tuple[str, int]]:
    """Visit every key of every primary."""
    servers = BlockingServers(read_address(url), max_connections=2, timeout_s=_ANSWER_S)
    try:
        for server in run(servers.primaries()):
            yield from _lives(Blocking(server.redis))
    finally:
        run(servers.aclose())


def _lives(redis: SyncRedis) -> Iterator[tuple[str, int]]:
    cursor = 0
    while True:
        reply = redis.execute_command("SCAN", cursor, "COUNT", _PAGE)
        cursor, names = int(reply[0]), reply[1]
        pipe = redis.pipeline(transaction=False)
        for name in names:
            pipe.execute_command("PTTL", name)
        yield from zip(map(text, names), pipe.execute(), strict=True)
        if not cursor:
            return


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    role: str = ""
    """None where it is no message."""
    content: str | list[_Part] | None = None


class _Body(msgspec.Struct):
    messages: list[msgspec.Raw] = []
    """Of chat."""
    input: list[msgspec.Raw] = []
    """Of responses."""


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_message = msgspec.json.Decoder(_Message).decode


def _request(entry: Entry) -> Request:
    body = _decode_body(entry.body)
    items = tuple(map(bytes, body.messages or body.input))
    messages = (message for item in items if (message := _decode_message(item)).role)
    usage = entry.usage if entry.usage_reported else None
    return Request(
        messages=tuple((message.role, _words(message.content)) for message in messages),
        seq=entry.seq,
        wire="chat" if entry.path.endswith("/chat/completions") else "responses",
        items=items,
        continuity=entry.continuity,
        from_ms=entry.received_at_ms,
        outcome=entry.outcome,
        tokens_streamed=entry.tokens_streamed,
        faults=entry.scenarios,
        reported=Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.completion_tokens_details.reasoning_tokens,
            cached_tokens=usage.prompt_tokens_details.cached_tokens,
            total_tokens=usage.total_tokens,
            cost_usd_ticks=usage.cost_in_usd_ticks
            if isinstance(usage.cost_in_usd_ticks, int)
            else 0,
        )
        if usage is not None
        else None,
    )


def _words(content: str | list[_Part] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""
