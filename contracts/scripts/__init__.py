"""Lua scripts and the one typed way to call them.

A script is named by its file and addressed by its content (EVALSHA), so that two versions of
Turnline can share a server. The header of each file is its contract.
"""

import functools
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple, cast

from redis.exceptions import NoScriptError

from turnline.contracts.connection import Arg, AsyncRedis, Command, SyncRedis


class Script(NamedTuple):
    """A Lua script as the server knows it."""

    name: str
    text: str
    sha: str


class Call(NamedTuple):
    """One script with its keys and arguments, ready to be sent by any client."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Arg]

    def command(self) -> Command:
        """Return the words of the EVALSHA command."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    def whole_command(self) -> Command:
        """Return the words of the EVAL command, which also teaches the server the script."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.args)


@functools.cache
def load_script(name: str, package: str = "turnline.contracts.scripts") -> Script:
    """Read `<name>.lua` from a package.

    Raises:
        FileNotFoundError: There is no such script.
    """
    text = resources.files(package).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name, text, sha)


async def run(redis: AsyncRedis, call: Call) -> Any:
    """Run a script in one round trip; in two when the server does not know it (yet or any more)."""
    try:
        return await redis.execute_command(*call.command())
    except NoScriptError:
        return await redis.execute_command(*call.whole_command())


def run_sync(redis: SyncRedis, call: Call) -> Any:
    """As `run`, blocking."""
    try:
        return redis.execute_command(*call.command())
    except NoScriptError:
        return redis.execute_command(*call.whole_command())


def text(reply: object) -> str:
    """Return a word of a reply, whether or not the client decodes replies."""
    return reply.decode() if isinstance(reply, bytes) else cast("str", reply)
