"""`turnline dead`: list, show, replay and drop dead letters."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click
import msgspec

from turnline.contracts import InvalidMessage, TurnlineError
from turnline.ops.cli import output
from turnline.ops.cli.connecting import Connect, redis_options
from turnline.ops.cli.failures import Failed, Failure
from turnline.ops.fleet.dead_letters import (
    DeadLetter,
    chosen,
    drop_letter,
    in_order,
    message_again,
    next_turn_id,
    read_letters,
)
from turnline.ops.fleet.operator_connection import Connection

Choose = Callable[[Connection], list[DeadLetter]]
"""Reads the letters that a command is about."""


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--conversation", "conversation_id", metavar="ID", help="Only of this conversation."
    )(command)
    return click.option("--code", help="Only with this error code, such as bad_request.")(command)


def _choice(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose letters; the command gets `choose`."""

    @click.argument("ids", nargs=-1, metavar="[ID]...")
    @click.option("--all", "every", is_flag=True, help="All that the filters leave.")
    @_filters
    @wraps(command)
    def run(
        *,
        ids: tuple[str, ...],
        every: bool,
        code: str | None,
        conversation_id: str | None,
        **others: Any,
    ) -> Any:
        def choose(connection: Connection) -> list[DeadLetter]:
            if bool(ids) == every:
                raise Failure(
                    "name the letters by ID, or say --all (with --code or --conversation)"
                )
            letters = _find(connection, ids) if ids else _read(connection)
            return chosen(letters, code=code, conversation_id=conversation_id)

        return command(choose=choose, **others)

    return run


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


@dead.command(
    "list",
    epilog="\b\nFor example:\n"
    "  turnline dead list --json | jq -r '.[].code'\n"
    "  turnline dead list --limit 20 --after 0:1700000000000-0",
)
@_filters
@click.option(
    "--limit", type=click.IntRange(min=1), help="Letters to list at most.  [default: all]"
)
@click.option("--after", metavar="ID", help="Go on behind this letter, also if it is gone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@redis_options
def list_(
    *,
    code: str | None,
    conversation_id: str | None,
    limit: int | None,
    after: str | None,
    as_json: bool,
    connect: Connect,
) -> None:
    """List dead letters, oldest first."""
    with connect() as connection:
        letters = _read(connection)
    letters = in_order(chosen(letters, code=code, conversation_id=conversation_id), after)
    left, letters = letters[limit:] if limit else [], letters[:limit]
    if as_json:
        click.echo(msgspec.json.encode([_as_json(letter) for letter in letters]))
        return
    columns = ("id", "at", "conversation", "turn", "attempts", "code", "error", "trace")
    shown = output.table(*columns, numbers=("attempts",), whole=("id",))
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
    if left:
        click.echo(f"there are {len(left):,} more: --after {letters[-1].id}", err=True)


@dead.command("show", epilog="\b\nFor example:\n  turnline dead show 0:1700000000000-0")
@click.argument("letter_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@redis_options
def show(*, letter_id: str, as_json: bool, connect: Connect) -> None:
    """Show one dead letter with the bytes it came in, which may hold what a user wrote."""
    with connect() as connection:
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
def replay(*, choose: Choose, connect: Connect) -> None:
    """Submit messages again and drop their letters.

    Each gets a turn id made from the old one (`t` becomes `t.r1`), so that doing this twice gives
    one turn. It goes to the end of its conversation; a deadline is left out.
    """
    with connect() as connection:
        letters = choose(connection)
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
def drop(*, choose: Choose, yes: bool, connect: Connect) -> None:
    """Remove dead letters and the bytes in them. There is no way back."""
    with connect() as connection:
        letters = choose(connection)
        if not yes and letters:
            click.confirm(f"Remove {len(letters)} dead letters for good?", abort=True, err=True)
        dropped = sum(drop_letter(connection.redis, connection.shards, it) for it in letters)
    click.echo(f"dropped: {dropped}")


def _read(connection: Connection) -> list[DeadLetter]:
    return read_letters(connection.redis, connection.shards)


def _find(connection: Connection, ids: Sequence[str]) -> list[DeadLetter]:
    """Return the letters with these ids.

    Raises:
        Failure: There is none with one of them.
    """
    letters = chosen(_read(connection), ids=ids)
    found = {letter.id for letter in letters} | {it.id.partition(":")[2] for it in letters}
    if unknown := [id_ for id_ in ids if id_ not in found]:
        raise Failed(f"there is no dead letter {unknown[0]}; `turnline dead list` names them")
    return letters


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    fields = msgspec.structs.asdict(letter)
    return {**fields, "message": letter.shown_message}
