"""`turnline show`, `usage` and `forget`: what is kept of a conversation, and its removal."""

from collections.abc import Mapping, Sequence

import click
import msgspec
from rich.table import Table

from turnline.contracts.conversation import Totals, Usage
from turnline.contracts.replies import History, TurnRecord, decode_record
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connection, connected, redis_options
from turnline.ops.cli.failures import Failed, Failure

_encode = msgspec.json.Encoder().encode


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One line of what happened in a conversation."""

    turn_id: str
    state: str
    worker: str
    attempts: int
    accepted_at_ms: int
    took_ms: int | None
    """From acceptance to its end; None while it waits or runs."""
    trace_id: str
    outcome: str


def turns_in_order(log: Sequence[bytes], records: Mapping[bytes, bytes]) -> list[Turn]:
    """Join the turn ids in the order accepted with their records.

    A turn that was written past `submit` stands in no log; it comes last.
    """
    order = {turn_id: place for place, turn_id in enumerate(log)}
    known = sorted(records, key=lambda turn_id: order.get(turn_id, len(order)))
    return [_turn(_shown(turn_id), decode_record(records[turn_id])) for turn_id in known]


def _shown(turn_id: bytes) -> str:
    """Return an id as text; one that was written past `submit` may be anything."""
    return turn_id.decode(errors="backslashreplace")


def _turn(turn_id: str, record: TurnRecord) -> Turn:
    ending = record.terminal()
    return Turn(
        turn_id=turn_id,
        state="waiting or running" if ending is None else record.state,
        worker=record.worker,
        attempts=record.attempts,
        accepted_at_ms=record.accepted_at_ms,
        took_ms=None if ending is None else max(0, record.finished_at_ms - record.accepted_at_ms),
        trace_id=record.trace_id or (ending.trace_id if ending is not None else ""),
        outcome="" if ending is None else output.outcome(ending),
    )


def read_turns(connection: Connection, conversation_id: str) -> list[Turn]:
    """Read a conversation's turns, in the order accepted."""
    _, keys = connection.requests.names(conversation_id)
    pipe = connection.redis.pipeline(transaction=False)
    pipe.execute_command("LRANGE", keys.log, 0, -1)
    pipe.execute_command("HGETALL", keys.turns)
    log, records = pipe.execute()
    return turns_in_order(log, records)


def history_table(history: History) -> Table:
    """Lay out a context."""
    shown = output.table("#", "role", "content")
    if history.system_prompt is not None:
        shown.add_row("", "system", output.printable(history.system_prompt))
    for number, entry in enumerate(history.messages):
        words = output.plain(entry.content)
        for call in getattr(entry, "tool_calls", ()):
            words += f"[calls {call.function.name}({call.function.arguments})]"
        mark = " [interrupted]" if number in history.interrupted else ""
        role = str(entry.__struct_config__.tag)
        shown.add_row(str(number), role, output.printable(words + mark))
    return shown


def turns_table(turns: Sequence[Turn]) -> Table:
    """Lay out turns."""
    columns = ("turn", "state", "worker", "attempts", "accepted", "took", "outcome")
    shown = output.table(*columns, numbers=("attempts", "took"))
    for turn in turns:
        shown.add_row(
            output.word(turn.turn_id),
            output.word(turn.state),
            output.word(turn.worker),
            str(turn.attempts or ""),
            output.at(turn.accepted_at_ms),
            "" if turn.took_ms is None else output.duration(turn.took_ms),
            output.printable(turn.outcome),
        )
    return shown


def totals_table(totals: Totals) -> Table:
    """Lay out totals: what answers took, and what was spent without one."""
    rows = [("answers", totals.usage)]
    if totals.abandoned != Usage():
        rows.append(("abandoned attempts", totals.abandoned))
    columns = ("", "input", "of it cached", "output", "reasoning", "total", "cost")
    shown = output.table(*columns, numbers=columns[1:])
    for name, usage in rows:
        shown.add_row(
            name,
            f"{usage.prompt_tokens:,}",
            f"{usage.cached_tokens:,}",
            f"{usage.completion_tokens:,}",
            f"{usage.reasoning_tokens:,}",
            f"{usage.total_tokens:,}",
            output.dollars(usage),
        )
    shown.caption = (
        f"turns: {totals.turns}, calls: {totals.calls} ({totals.reported_calls} reported by the "
        f"provider, {totals.estimated_calls} estimated, {totals.unknown_calls} unknown)"
    )
    if unpriced := totals.usage.unpriced_calls + totals.abandoned.unpriced_calls:
        shown.caption += f"; cost unknown for {unpriced}"
    shown.caption_justify = "left"
    return shown


def _unknown(conversation_id: str) -> Failure:
    return Failed(
        f"nothing is known of conversation {conversation_id}: it never had a message, was "
        "forgotten, or is past its retention"
    )


@click.command(
    epilog="\b\nFor example:\n  turnline show trip\n  turnline show trip --json | jq .turns"
)
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: context and turns.")
@redis_options
def show(*, conversation_id: str, as_json: bool, redis_url: str, shards: int) -> None:
    """Show the context of CONVERSATION, and its turns: state, worker, attempts."""
    with connected(redis_url, shards) as connection:
        history = connection.client.history(conversation_id)
        turns = read_turns(connection, conversation_id)
    if not turns and not history.messages:
        raise _unknown(conversation_id)
    if as_json:
        click.echo(_encode({**msgspec.structs.asdict(history), "turns": turns}))
        return
    to = output.console()
    if history.messages:
        to.print(history_table(history))
    to.print(turns_table(turns))


@click.command(epilog="\b\nFor example:\n  turnline usage trip\n  turnline usage trip --json")
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@redis_options
def usage(*, conversation_id: str, as_json: bool, redis_url: str, shards: int) -> None:
    """Show what CONVERSATION took: tokens and cost, as the provider reported them."""
    with connected(redis_url, shards) as connection:
        totals = connection.client.usage(conversation_id)
        if not totals.calls and not read_turns(connection, conversation_id):
            raise _unknown(conversation_id)
    if as_json:
        click.echo(_encode(_all_fields(totals)))
    else:
        output.console().print(totals_table(totals))


def _all_fields(totals: Totals) -> dict[str, object]:
    """Return the totals with their zeros, which the wire leaves out."""
    fields = msgspec.structs.asdict(totals)
    for name in ("usage", "abandoned"):
        fields[name] = msgspec.structs.asdict(fields[name])
    return fields


@click.command(epilog="\b\nFor example:\n  turnline forget trip\n  turnline forget trip --yes")
@click.argument("conversation_id", metavar="CONVERSATION")
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_options
def forget(*, conversation_id: str, yes: bool, redis_url: str, shards: int) -> None:
    """Remove every trace of CONVERSATION, also while a turn of it runs. There is no way back."""
    with connected(redis_url, shards) as connection:
        if not yes:
            click.confirm(f"Remove conversation {conversation_id} for good?", abort=True, err=True)
        if not connection.client.forget(conversation_id):
            raise _unknown(conversation_id)
    click.echo(f"forgotten: {output.word(conversation_id)}")
