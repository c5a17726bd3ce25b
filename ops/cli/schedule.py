"""`turnline schedule`: turns that begin again and again, by cron lines."""

import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import get_args
from zoneinfo import ZoneInfo

import click
import msgspec

from turnline.contracts import InvalidMessage, UserMessage
from turnline.contracts.job_format import named_job
from turnline.contracts.keys import ShardKeys
from turnline.contracts.scripts import run_sync, text
from turnline.ops.cli import output
from turnline.ops.cli.chat import warn_if_nobody_works
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed, Failure
from turnline.ops.fleet.operator_connection import Connection
from turnline.worker.queue.lua import WakeArgs, wake
from turnline.worker.schedules.lua import ChangeArgs, change
from turnline.worker.schedules.timetable import (
    MOST,
    InvalidSchedule,
    Missed,
    Schedule,
    check_schedule,
    encode_schedule,
    notes_of,
    read_schedule,
    ticks_at,
)

_TRIES = 5


@click.group(
    epilog="\b\nFor example:\n"
    "  turnline schedule add standup '0 9 * * mon-fri' --conversation team "
    "--text 'What is due today?'\n"
    "  turnline schedule list\n"
    "  turnline schedule remove standup"
)
def schedule() -> None:
    """Have turns begin again and again, by cron lines.

    Each tick is one message of the user in the schedule's conversation. Workers of shard 0 submit
    it; the turn id is schedule/NAME/TICK.
    """


@schedule.command(
    "add",
    epilog="\b\nFor example:\n"
    "  turnline schedule add standup '0 9 * * mon-fri' --timezone Europe/Berlin "
    "--conversation team --text 'What is due today?'\n"
    "  turnline schedule add watch '*/15 * * * *' --conversation ops --text - < question.txt",
)
@click.argument("name")
@click.argument("cron", metavar="CRON")
@click.option(
    "--conversation", "conversation_id", metavar="ID", required=True, help="Whose turns these are."
)
@click.option("--text", "words", required=True, help="What the user says; - reads it from stdin.")
@click.option("--agent", metavar="NAME", help="Profile of the workers' agents file.")
@click.option("--tenant", default="", metavar="NAME", help="Whose spend the turns are.")
@click.option(
    "--timezone",
    metavar="ZONE",
    default="UTC",
    show_default=True,
    help="Of the IANA database, such as Europe/Berlin.",
)
@click.option(
    "--missed",
    type=click.Choice(get_args(Missed)),
    default="last",
    show_default=True,
    help="Of the ticks at which no worker ran: catch up the last one, or none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as list has it.")
@redis_options
def add(
    *,
    name: str,
    cron: str,
    conversation_id: str,
    words: str,
    agent: str | None,
    tenant: str,
    timezone: str,
    missed: Missed,
    as_json: bool,
    connect: Connect,
) -> None:
    """Add the schedule NAME: a message at each tick of CRON.

    CRON has five fields: minute, hour, day of the month, month, day of the week.
    """
    if words == "-":
        words = sys.stdin.read().removesuffix("\n")
    message = UserMessage(conversation_id=conversation_id, text=words, agent=agent, tenant=tenant)
    made = Schedule(cron=cron, message=message, timezone=timezone, missed=missed)
    try:
        check_schedule(name, made)
    except (InvalidSchedule, InvalidMessage) as error:
        raise Failure(str(error)) from None
    with connect() as connection:
        known = _read(connection)
        if name in known:
            raise Failed(f"there is a schedule {name}; `turnline schedule remove {name}` first")
        if len(known) >= MOST:
            raise Failed(f"there are {MOST} schedules, and no room for more; remove one first")
        if not _change(connection, name, b"", encode_schedule(made)):
            raise Failed(f"there is a schedule {name} by now")
        warn_if_nobody_works(connection)
        _tell(connection, name, as_json=as_json)


@schedule.command(
    "list", epilog="\b\nFor example:\n  turnline schedule list --json | jq '.[].next_at_ms'"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@redis_options
def list_(*, as_json: bool, connect: Connect) -> None:
    """List the schedules, with their next and their last tick."""
    with connect() as connection:
        rows = _rows(connection)
    if as_json:
        click.echo(msgspec.json.encode(rows))
        return
    shown = output.table("name", "cron", "time zone", "conversation", "next", "last", "text")
    for row in rows:
        shown.add_row(
            output.printable(row.name),
            output.printable(row.cron),
            output.printable(row.timezone),
            output.word(row.conversation_id),
            row.state if row.next_at_ms is None else _at(row.next_at_ms, row.timezone),
            "" if row.last_at_ms is None else _at(row.last_at_ms, row.timezone),
            output.printable(row.text.partition("\n")[0][:60]),
        )
    if rows:
        output.console().print(shown)
    else:
        click.echo("no schedules", err=True)


@schedule.command("remove", epilog="\b\nFor example:\n  turnline schedule remove standup")
@click.argument("name")
@redis_options
def remove(*, name: str, connect: Connect) -> None:
    """Remove the schedule NAME. Turns that it began go on."""
    with connect() as connection:
        _rewrite(connection, name, lambda _: b"")
    click.echo(f"removed: {output.printable(name)}")


@schedule.command("pause", epilog="\b\nFor example:\n  turnline schedule pause standup")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as list has it.")
@redis_options
def pause(*, name: str, as_json: bool, connect: Connect) -> None:
    """Have no turns of NAME begin until it is resumed."""
    _set_paused(connect, name, is_paused=True, as_json=as_json)


@schedule.command("resume", epilog="\b\nFor example:\n  turnline schedule resume standup")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as list has it.")
@redis_options
def resume(*, name: str, as_json: bool, connect: Connect) -> None:
    """Go on with NAME, from its next tick."""
    _set_paused(connect, name, is_paused=False, as_json=as_json)


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as it is shown."""

    name: str
    state: str
    """`active`, `paused` or `unusable`."""
    cron: str = ""
    timezone: str = ""
    conversation_id: str = ""
    text: str = ""
    agent: str | None = None
    missed: str = ""
    next_at_ms: int | None = None
    last_at_ms: int | None = None
    """Last tick that was seen to."""


def _set_paused(connect: Connect, name: str, *, is_paused: bool, as_json: bool) -> None:
    def changed(value: bytes) -> bytes:
        try:
            known = read_schedule(value)
        except InvalidSchedule as error:
            raise Failed(f"{name}: {error}; it can only be removed") from None
        return encode_schedule(msgspec.structs.replace(known, is_paused=is_paused))

    with connect() as connection:
        _rewrite(connection, name, changed)
        _tell(connection, name, as_json=as_json)


def _rewrite(connection: Connection, name: str, changed: Callable[[bytes], bytes]) -> None:
    """Replace the value of a schedule by what is made of it.

    Raises:
        Failed: There is none, or others change it all the time.
    """
    for _ in range(_TRIES):
        known = _read(connection)
        if name not in known:
            raise Failed(f"there is no schedule {name}; `turnline schedule list` names them")
        if _change(connection, name, known[name], changed(known[name])):
            return
    raise Failed(f"others change the schedule {name} at the same time; try again")


def _change(connection: Connection, name: str, before: bytes, value: bytes) -> bool:
    """Change a schedule, unless others have; have somebody look what is due then."""
    shard = _shard(connection)
    job_data = named_job("schedules", int(time.time() * 1000))
    args = ChangeArgs(shard.schedules_id, name, before, value, job_data)
    answer, _ = run_sync(connection.redis, change(shard, args))
    run_sync(connection.redis, wake(shard, WakeArgs()))
    return text(answer) == "changed"


def _shard(connection: Connection) -> ShardKeys:
    return connection.shards[0]


def _hash(connection: Connection, key: str) -> list[tuple[bytes, bytes]]:
    return list(connection.redis.execute_command("HGETALL", key).items())


def _read(connection: Connection) -> dict[str, bytes]:
    pairs = _hash(connection, _shard(connection).schedules)
    return {name.decode(errors="replace"): value for name, value in pairs}


def _rows(connection: Connection) -> list[_Row]:
    """Read all schedules, by name."""
    seconds, _ = connection.redis.execute_command("TIME")
    notes = notes_of(_hash(connection, _shard(connection).ticks))
    rows: list[_Row] = []
    for name, value in sorted(_read(connection).items()):
        note = notes.get(name)
        last_ms = note.at_ms if note is not None and note.is_tick else None
        try:
            it = read_schedule(value)
            next_ms = None if it.is_paused else ticks_at(it, int(seconds) * 1000).next_ms
        except InvalidSchedule:
            rows.append(_Row(name=name, state="unusable", last_at_ms=last_ms))
            continue
        rows.append(
            _Row(
                name=name,
                state="paused" if it.is_paused else "active",
                cron=it.cron,
                timezone=it.timezone,
                conversation_id=it.message.conversation_id,
                text=it.message.text,
                agent=it.message.agent,
                missed=it.missed,
                next_at_ms=next_ms,
                last_at_ms=last_ms,
            )
        )
    return rows


def _tell(connection: Connection, name: str, *, as_json: bool) -> None:
    """Print what a schedule is like now."""
    for row in _rows(connection):
        if row.name == name and as_json:
            click.echo(msgspec.json.encode(row))
        elif row.name == name:
            next_ms = row.next_at_ms
            at = row.state if next_ms is None else f"next {_at(next_ms, row.timezone)}"
            click.echo(f"{output.printable(name)}: {at}")


def _at(ms: int, timezone: str) -> str:
    """Return a tick in its schedule's time zone."""
    at = datetime.fromtimestamp(ms / 1000, ZoneInfo(timezone))
    return f"{at:%Y-%m-%d %H:%M %Z}"
