"""`turnline dead`: list, show, replay and drop dead letters."""

from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from turnline.contracts import InvalidMessage, TurnlineError
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connection, connected, redis_options
from turnline.ops.cli.failures import Failed, Failure
from turnline.ops.fleet.dead_letters import (
    DeadLetter,
    chosen,
    drop_letter,
    message_again,
    next_turn_id,
    read_letters,
)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--conversation", "conversation_id", metavar="ID", help="Only of this conversation."
    )(command)
    return click.option("--code", help="Only with this error code, such as bad_request.")(command)


def _choice(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--all", "every", is_flag=True, help="All that the filters leave.")(
        _filters(command)
    )
    return click.argument("ids", nargs=-1, metavar="[ID]...")(command)


@click.group(
    epilog="\b\nFor example:\n"
    "  turnline dead list --code bad_request\n"
    "  turnline dead show 0:1700000000000-0\n"
    "  turnline dead replay --all --conversation trip\n"
    "  turnline dead drop 0:1700000000000-0"
)
def dead() -> None:
    """List, show, replay or drop dead letters: turns that could not be answered.

    A turn comes here when it failed for good, took its worker down several times, or was never a
    message. Its conversation has gone on without it.
    """


@dead.command("list", epilog="\b\nFor example:\n  turnline dead list --json | jq -r '.[].code'")
@_filters
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@redis_options
def list_(
    *, code: str | None, conversation_id: str | None, as_json: bool, redis_url: str, shards: int
) -> None:
    """List dead letters, oldest first."""
    with connected(redis_url, shards) as connection:
        letters = read_letters(connection.redis, connection.shards)
    letters = chosen(letters, code=code, conversation_id=conversation_id)
    if as_json:
        click.echo(msgspec.json.encode([_as_json(letter) for letter in letters]))
        return
    columns = ("id", "at", "conversation", "turn", "attempts", "code", "error", "trace")
    shown = output.table(*columns, numbers=("attempts",))
    for letter in letters:
        shown.add_row(
            letter.id,
            output.at(letter.at_ms),
            *map(output.word, (letter.conversation_id, letter.turn_id)),
            str(letter.attempts),
            *map(output.printable, (letter.code, letter.error, letter.trace_id)),
        )
    if letters:
        output.console().print(shown)
    else:
        click.echo("no dead letters", err=True)


@dead.command("show", epilog="\b\nFor example:\n  turnline dead show 0:1700000000000-0")
@click.argument("letter_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@redis_options
def show(*, letter_id: str, as_json: bool, redis_url: str, shards: int) -> None:
    """Show one dead letter with the bytes it came in, which may hold what a user wrote."""
    with connected(redis_url, shards) as connection:
        (letter,) = _find(connection, [letter_id])
    if as_json:
        click.echo(msgspec.json.encode(_as_json(letter)))
        return
    shown = output.table("", "")
    shown.show_header = False
    for name, value in _as_json(letter).items():
        shown.add_row(name.replace("_", " "), output.printable(str(value)))
    output.console().print(shown)


@dead.command(
    "replay",
    epilog="\b\nFor example:\n"
    "  turnline dead replay 0:1700000000000-0\n"
    "  turnline dead replay --all --code rate_limited",
)
@_choice
@redis_options
def replay(
    *,
    ids: tuple[str, ...],
    every: bool,
    code: str | None,
    conversation_id: str | None,
    redis_url: str,
    shards: int,
) -> None:
    """Submit messages again and drop their letters.

    Each gets a turn id made from the old one (`t` becomes `t.r1`), so that doing this twice gives
    one turn. It goes to the end of its conversation; a deadline is left out.
    """
    with connected(redis_url, shards) as connection:
        letters = _choose(connection, ids, every=every, code=code, conversation_id=conversation_id)
        left = [letter for letter in letters if not _replay(connection, letter)]
    if left:
        raise Failed(f"{len(left)} of {len(letters)} could not be replayed")


def _replay(connection: Connection, letter: DeadLetter) -> bool:
    """Submit one again; return whether that was possible."""
    try:
        receipt = connection.client.submit(message_again(letter))
    except InvalidMessage as error:
        click.echo(f"{letter.id}: not a message ({error}); it can only be dropped", err=True)
        return False
    except TurnlineError as error:
        click.echo(f"{letter.id}: {error}", err=True)
        return False
    drop_letter(connection.redis, connection.shards, letter)
    how = "submitted" if receipt.accepted else "had been submitted before"
    click.echo(f"{letter.id}: {how} as turn {output.word(next_turn_id(letter.turn_id))}")
    return True


@dead.command(
    "drop", epilog="\b\nFor example:\n  turnline dead drop --all --conversation trip --yes"
)
@_choice
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_options
def drop(
    *,
    ids: tuple[str, ...],
    every: bool,
    code: str | None,
    conversation_id: str | None,
    yes: bool,
    redis_url: str,
    shards: int,
) -> None:
    """Remove dead letters and the bytes in them. There is no way back."""
    with connected(redis_url, shards) as connection:
        letters = _choose(connection, ids, every=every, code=code, conversation_id=conversation_id)
        if not yes and letters:
            click.confirm(f"Remove {len(letters)} dead letters for good?", abort=True, err=True)
        dropped = sum(drop_letter(connection.redis, connection.shards, it) for it in letters)
    click.echo(f"dropped: {dropped}")


def _choose(
    connection: Connection,
    ids: Sequence[str],
    *,
    every: bool,
    code: str | None,
    conversation_id: str | None,
) -> list[DeadLetter]:
    """Return the letters named, or all that the filters leave.

    Raises:
        Failure: Neither or both were asked for, or an id is unknown.
    """
    if bool(ids) == every:
        raise Failure("name the letters by ID, or say --all (with --code or --conversation)")
    letters = _find(connection, ids) if ids else read_letters(connection.redis, connection.shards)
    return chosen(letters, code=code, conversation_id=conversation_id)


def _find(connection: Connection, ids: Sequence[str]) -> list[DeadLetter]:
    """Return the letters with these ids.

    Raises:
        Failure: There is none with one of them.
    """
    letters = chosen(read_letters(connection.redis, connection.shards), ids=ids)
    found = {letter.id for letter in letters} | {it.id.partition(":")[2] for it in letters}
    if unknown := [id_ for id_ in ids if id_ not in found]:
        raise Failed(f"there is no dead letter {unknown[0]}; `turnline dead list` names them")
    return letters


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    fields = msgspec.structs.asdict(letter)
    return {**fields, "message": letter.shown_message}
