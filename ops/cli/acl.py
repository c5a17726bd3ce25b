"""`turnline acl`: the users that a fleet needs in Redis, with no more rights than it uses."""

from typing import get_args

import click
import msgspec

from turnline.contracts.keys import check_prefix
from turnline.ops.cli.failures import Failure
from turnline.ops.fleet.access import Role, rules


@click.command(
    epilog="\b\nFor example:\n"
    "  redis-cli $(turnline acl worker --password PASSWORD)\n"
    "  turnline acl producer --file >> /etc/redis/users.acl"
)
@click.argument("role", type=click.Choice(get_args(Role)))
@click.option("--user", metavar="NAME", help="Name of the user.  [default: the role]")
@click.option("--password", default="PASSWORD", show_default=True, help="Its password.")
@click.option(
    "--prefix",
    envvar="TURNLINE_PREFIX",
    default="",
    help="Name of the fleet, where several share a server.",
)
@click.option("--file", "as_line", is_flag=True, help="A line of Redis' file of users instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, without password.")
def acl(
    *,
    role: Role,
    user: str | None,
    password: str,
    prefix: str,
    as_line: bool,
    as_json: bool,
) -> None:
    """Print the command that gives a user the rights of a worker, a producer or an operator.

    These are the commands, keys and channels that Turnline's code uses, and no others. INFO may be
    added for workers: with it they check the version and the eviction policy when they start.
    Sentinels have users of their own; those need `+subscribe +sentinel|master &*`.
    """
    try:
        check_prefix(prefix)
    except ValueError as error:
        raise Failure(f"--prefix (or TURNLINE_PREFIX): {error}.") from None
    name = user or role
    if as_json:
        facts = {"user": name, "role": role, "rules": rules(role, prefix).split()}
        click.echo(msgspec.json.encode(facts))
        return
    begin = f"user {name} reset on" if as_line else f"ACL SETUSER {name} reset on"
    click.echo(f"{begin} >{password} {rules(role, prefix)}")
