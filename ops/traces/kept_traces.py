"""Finds turns and their spans: among the traces that workers keep, else in records and ledger."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Literal

import msgspec

from turnline.contracts.conversation import CallEntry, Usage
from turnline.contracts.keys import ShardKeys
from turnline.contracts.replies import TurnFailed, TurnRecord, decode_record
from turnline.contracts.scripts import text
from turnline.ops.fleet.operator_connection import Connection
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Attributes, Span, TurnSpans

PAGE: Final = 250
Choice = Literal["last", "slow", "failed"]
_decode_spans = msgspec.json.Decoder(TurnSpans).decode
_decode_call = msgspec.json.Decoder(CallEntry).decode
_MS: Final = 1_000_000


class TracedTurn(msgspec.Struct, kw_only=True):
    """A turn and its spans, from however many workers."""

    conversation_id: str
    turn_id: str
    trace_id: str
    state: str
    """`running` while it is not known to have ended."""
    code: str = ""
    """Why it failed."""
    kept: bool = True
    """False: made up from record and ledger, since no trace is kept."""
    began_ms: int = 0
    ended_ms: int = 0
    spans: list[Span]

    @property
    def duration_ms(self) -> int:
        """From acceptance to the end, as far as it is known."""
        return self.ended_ms - self.began_ms

    @property
    def usage(self) -> Usage:
        """The sum over its model calls, abandoned ones included."""
        chats = [span.attributes for span in self.spans if span.kind == "client"]

        def total(name: str) -> Any:
            return sum(chat.get(name, 0) for chat in chats)

        reasoning = total(n.USAGE_REASONING_TOKENS)
        return Usage(
            prompt_tokens=total(n.USAGE_INPUT_TOKENS),
            completion_tokens=total(n.USAGE_OUTPUT_TOKENS) - reasoning,
            reasoning_tokens=reasoning,
            cached_tokens=total(n.USAGE_CACHED_TOKENS),
            cost_usd_ticks=round(total(n.USAGE_COST_AMOUNT) * 1e10),
            unpriced_calls=sum(n.USAGE_COST_STATE in chat for chat in chats),
        )

    @property
    def attempts(self) -> int:
        """How many attempts are known."""
        return sum(span.name == n.PROCESS for span in self.spans)


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a shard's traces, not decoded yet."""

    entry_id: str
    conversation_id: str
    turn_id: str
    trace_id: str
    state: str
    duration_ms: int
    data: bytes

    @property
    def turn(self) -> tuple[str, str]:
        return self.conversation_id, self.turn_id

    @property
    def at(self) -> tuple[int, int]:
        ms, _, number = self.entry_id.partition("-")
        return int(ms), int(number)


def choose(connection: Connection, choice: Choice, limit: int) -> list[TracedTurn]:
    """Return turns that have ended: the newest, the slowest or the newest that failed."""
    wanted = {"failed"} if choice == "failed" else {"completed", "failed", "interrupted"}
    rows = [row for row in _rows(connection) if row.state in wanted]
    if choice == "slow":
        rows.sort(key=lambda row: -row.duration_ms)
    else:
        rows.sort(key=lambda row: row.at, reverse=True)
    chosen = list(dict.fromkeys(row.turn for row in rows))[:limit]
    found = {turn.turn_id: turn for turn in _gather(connection, lambda row: row.turn in chosen)}
    return [found[turn_id] for _, turn_id in chosen]


def find(connection: Connection, target: str, limit: int) -> list[TracedTurn]:
    """Return what a turn id, trace id or conversation stands for, the oldest first."""
    turns = _gather(
        connection, lambda row: target in {row.turn_id, row.trace_id, row.conversation_id}
    )
    known = {turn.turn_id for turn in turns if turn.state != "running"}
    if not turns or any(turn.conversation_id == target for turn in turns):
        told = [turn for turn in _from_records(connection, target) if turn.turn_id not in known]
    else:  # the end of a turn may be known before its trace is
        open_ids = {it.turn_id: it.conversation_id for it in turns if it.state == "running"}
        told = [
            turn
            for conversation_id in set(open_ids.values())
            for turn in _from_records(connection, conversation_id)
            if turn.turn_id in open_ids and turn.state != "running"
        ]
    ended = {turn.turn_id for turn in told}
    turns = [turn for turn in turns if turn.turn_id not in ended] + told
    turns.sort(key=lambda turn: turn.began_ms)
    return turns[-limit:]


def recent(connection: Connection, since_ms: int, most: int) -> list[TracedTurn]:
    """Return what attempts since a moment told, the newest `most` of each shard, in no order."""
    newest = (
        row
        for shard in connection.shards
        for row in islice(_rows_of(connection, shard), most)
        if row.at[0] >= since_ms
    )
    return _join(newest)


def _rows(connection: Connection) -> Iterator[_Row]:
    """Yield all entries of all shards, per shard the newest first."""
    for shard in connection.shards:
        yield from _rows_of(connection, shard)


def _rows_of(connection: Connection, shard: ShardKeys) -> Iterator[_Row]:
    below = "+"
    while True:
        entries = connection.redis.execute_command(
            "XREVRANGE", shard.traces, below, "-", "COUNT", PAGE
        )
        for entry_id, fields in entries:
            yield _Row(
                entry_id=text(entry_id),
                conversation_id=text(fields[b"c"]),
                turn_id=text(fields[b"t"]),
                trace_id=text(fields[b"i"]),
                state=text(fields[b"s"]),
                duration_ms=int(fields[b"d"]),
                data=fields[b"j"],
            )
        if len(entries) < PAGE:
            return
        below = "(" + text(entries[-1][0])


def _gather(connection: Connection, wanted: Callable[[_Row], bool]) -> list[TracedTurn]:
    """Join what all attempts at a turn told."""
    return _join(row for row in _rows(connection) if wanted(row))


def _join(newest_first: Iterable[_Row]) -> list[TracedTurn]:
    rows: dict[tuple[str, str], list[_Row]] = {}
    for row in newest_first:
        rows.setdefault(row.turn, []).append(row)
    return [joined([_decode_spans(row.data) for row in reversed(found)]) for found in rows.values()]


def joined(told: Sequence[TurnSpans]) -> TracedTurn:
    """Return one turn from what its attempts told, in the order in which they did.

    Two workers may tell of the same attempt: a killed one is told by its successor, and may turn
    out to have been only slow. The later word counts.
    """
    ending = next((turn for turn in reversed(told) if turn.state), None)
    last = ending or told[-1]
    spans: dict[str, Span] = {}
    for it in told:
        for span in it.spans:
            span.trace_id = span.trace_id or it.trace_id
            spans[span.span_id] = span
    ordered = sorted(
        spans.values(), key=lambda span: (span.start_ns, span.name != n.WAIT, -span.end_ns)
    )
    turn = TracedTurn(
        conversation_id=last.conversation_id,
        turn_id=last.turn_id,
        trace_id=last.trace_id,
        state=last.state or "running",
        code=last.code if last.state in {"", "failed"} else "",
        spans=ordered,
    )
    began_ns = min(span.start_ns for span in ordered)
    turn.began_ms = began_ns // _MS
    turn.ended_ms = turn.began_ms + round((max(s.end_ns for s in ordered) - began_ns) / _MS)
    return turn


# -- where no trace is kept ---------------------------------------------------------------------


def _from_records(connection: Connection, conversation_id: str) -> list[TracedTurn]:
    keys = connection.names(conversation_id)
    pipe = connection.redis.pipeline(transaction=False)
    pipe.execute_command("HGETALL", keys.turns)
    pipe.execute_command("LRANGE", keys.calls, 0, -1)
    pipe.execute_command("TIME")
    records, ledger, clock = pipe.execute()
    now_ms = int(clock[0]) * 1000 if clock else int(time.time() * 1000)
    calls: dict[str, list[CallEntry]] = {}
    for data in ledger:
        call = _decode_call(data)
        calls.setdefault(call.turn_id, []).append(call)
    return [
        _from_record(
            conversation_id,
            text(turn_id),
            decode_record(data),
            calls.get(text(turn_id), []),
            now_ms,
        )
        for turn_id, data in records.items()
    ]


def _from_record(
    conversation_id: str, turn_id: str, record: TurnRecord, calls: Sequence[CallEntry], now_ms: int
) -> TracedTurn:
    ending = record.terminal()
    code = ending.code if isinstance(ending, TurnFailed) else ""
    ended_ms = max(record.finished_at_ms or now_ms, record.accepted_at_ms)
    ids: Attributes = {n.CONVERSATION_ID: conversation_id, n.TURN_ID: turn_id}
    turn = Span(
        name=n.TURN,
        span_id=turn_id,
        start_ns=record.accepted_at_ms * _MS,
        end_ns=ended_ms * _MS,
        attributes={**ids, n.TURN_OUTCOME: record.state, n.TURN_ATTEMPTS: record.attempts},
        error=code,
    )
    return TracedTurn(
        conversation_id=conversation_id,
        turn_id=turn_id,
        trace_id=record.trace_id or (ending.trace_id if ending is not None else ""),
        state="running" if ending is None else record.state,
        code=code,
        kept=False,
        began_ms=record.accepted_at_ms,
        ended_ms=ended_ms,
        spans=[turn, *(_from_call(call, turn, ids) for call in calls)],
    )


def _from_call(call: CallEntry, turn: Span, ids: Attributes) -> Span:
    usage, began_ns = call.usage, call.started_at_ms * _MS
    return Span(
        name=f"{n.CHAT} {call.model}",
        kind="client",
        span_id=call.call_id,
        parent_id=turn.span_id,
        start_ns=began_ns,
        end_ns=began_ns + call.duration_ms * _MS,
        attributes={
            **ids,
            n.ATTEMPT: call.attempt,
            n.USAGE_STATE: call.state,
            n.USAGE_INPUT_TOKENS: usage.prompt_tokens,
            n.USAGE_CACHED_TOKENS: usage.cached_tokens,
            n.USAGE_OUTPUT_TOKENS: usage.completion_tokens + usage.reasoning_tokens,
            n.USAGE_REASONING_TOKENS: usage.reasoning_tokens,
            **({n.USAGE_COST_AMOUNT: usage.cost_usd} if usage.cost_usd is not None else {}),
            **({n.USAGE_COST_STATE: "unknown"} if usage.unpriced_calls else {}),
            **({n.RESPONSE_FINISH_REASONS: [call.finish_reason]} if call.finish_reason else {}),
        },
        error=call.error or "",
    )
