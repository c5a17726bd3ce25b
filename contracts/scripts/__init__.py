"""Lua scripts and the one typed way to call them.

A script is named by its file and addressed by its content (EVALSHA), so that two versions of
Turnline can share a server. The header of each file is its contract: where a script is bound to
the types that its callers fill in, they are compared with the header at import.

Source: docs/adr/0026-scripts-are-called-by-name.md
"""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import resources
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar, cast, get_origin, get_type_hints, overload

import msgspec
from redis.exceptions import NoScriptError

from turnline.contracts.connection import AsyncRedis, Command, SyncRedis, pipelined
from turnline.contracts.keys import ConversationKeys

K = TypeVar("K", bound="tuple[str, ...]")
A = TypeVar("A", bound="tuple[object, ...]")
_TYPES = {"int": int, "str": str, "bytes": bytes}


class Script(NamedTuple):
    """A Lua script as the server knows it."""

    name: str
    text: str
    sha: str


class Call(msgspec.Struct, frozen=True, gc=False):
    """One script with its keys and arguments, ready to be sent by any client."""

    script: Script
    words: Command
    """Of the EVALSHA command."""

    @property
    def keys(self) -> Command:
        """What the script knows as KEYS."""
        return self.words[3 : 3 + int(self.words[2])]

    @property
    def args(self) -> Command:
        """What the script knows as ARGV."""
        return self.words[3 + int(self.words[2]) :]

    def whole_command(self) -> Command:
        """Return the words of the EVAL command, which also teaches the server the script."""
        return ("EVAL", self.script.text, *self.words[2:])


class Row(NamedTuple):
    """One entry of KEYS, ARGV or of the answers, from a script's header."""

    name: str
    type: str
    meaning: str


class Header(NamedTuple):
    """What the header of a Lua script says."""

    keys: tuple[Row, ...]
    args: tuple[Row, ...]
    more_keys: str
    """Name of the keys of any number at the end of KEYS; '' if there are none."""
    more_args: str
    """The same for ARGV."""
    returns: tuple[Row, ...]


@functools.cache
def load_script(name: str, package: str = "turnline.contracts.scripts") -> Script:
    """Read `<name>.lua` from a package.

    Raises:
        FileNotFoundError: There is no such script.
    """
    text = resources.files(package).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name, text, sha)


def read_header(script: Script) -> Header:
    """Read the tables in a script's header; continuation lines belong to the line before."""
    header = script.text.partition("\n]]\n")[0]
    rows: dict[str, list[Row]] = {"KEYS": [], "ARGV": [], "KEYS..": [], "ARGV..": []}
    entry = r"^(KEYS|ARGV)\[\d+(\.\.)?\] +(\S+) +(\S+)(?: +(.+))?$"
    for table, dots, name, kind, meaning in re.findall(entry, header, re.MULTILINE):
        rows[table + dots].append(Row(name, kind, meaning))
    answers = re.findall(r"^  \{'(\w+)', ([^}]*)\} +(.+)$", header, re.MULTILINE)
    more_keys, more_args = ("".join(it.name for it in rows[end]) for end in ("KEYS..", "ARGV.."))
    returns = tuple(Row(*words) for words in answers)
    return Header(tuple(rows["KEYS"]), tuple(rows["ARGV"]), more_keys, more_args, returns)


@overload
def bind(package: str, name: str, keys: type[K], args: type[A]) -> Callable[[K, A], Call]: ...
@overload
def bind(
    package: str, name: str, keys: type[K], args: type[A], *, more_keys: str
) -> Callable[[K, A, Sequence[str]], Call]: ...
def bind(
    package: str, name: str, keys: type[K], args: type[A], *, more_keys: str = ""
) -> Callable[..., Call]:
    """Return the typed call of a script; it takes keys, arguments and, if so, further keys.

    Args:
        package: Where `<name>.lua` stands.
        name: Of the script.
        keys: Named tuple with a field for each entry of KEYS, by the header's name; it may have
            others, and any order.
        args: Named tuple with the entries of ARGV, in the header's order and of its types. Where
            the header ends openly (`ARGV[5..]`), so does the tuple: its last field is a sequence.
        more_keys: The header's name for its open end of KEYS.

    Raises:
        TypeError: The header says something else.
    """
    script = load_script(name, package)
    header = read_header(script)
    fields: tuple[str, ...] = cast("Any", keys)._fields
    unknown = [row.name for row in header.keys if row.name not in fields]
    if unknown or header.more_keys != more_keys:
        raise TypeError(f"{name}.lua: KEYS {unknown}, {header.more_keys}.. not in {keys.__name__}")
    types = get_type_hints(args)
    given = [it for it in types.items() if get_origin(it[1]) is None]
    documented = [(row.name, _TYPES.get(row.type)) for row in header.args]
    rest = [it for it in types if get_origin(types[it]) is not None]
    if given != documented or "".join(rest) != header.more_args or [*types][len(given) :] != rest:
        raise TypeError(f"{name}.lua: ARGV {documented}, {header.more_args}.. are not {types}")

    places = [fields.index(row.name) for row in header.keys]
    count, sha = len(places), script.sha
    if count > 1 and places != list(range(count)):
        pick: Callable[[Any], tuple[str, ...]] = itemgetter(*places)
    else:  # those at the beginning, or one, or none
        first = min(places, default=0)
        pick = itemgetter(slice(first, first + count))

    def call(keys: Any, args: Any) -> Call:
        return Call(script, ("EVALSHA", sha, count, *pick(keys), *args))

    def open_call(keys: Any, args: Any, more: Sequence[str] = ()) -> Call:
        words = (*args[:-1], *args[-1]) if rest else args
        return Call(script, ("EVALSHA", sha, count + len(more), *pick(keys), *more, *words))

    return open_call if rest or more_keys else call


async def run(redis: AsyncRedis, call: Call) -> Any:
    """Run a script in one round trip; in two when the server does not know it (yet or any more)."""
    try:
        return await redis.execute_command(*call.words)
    except NoScriptError:
        return await redis.execute_command(*call.whole_command())


def run_sync(redis: SyncRedis, call: Call) -> Any:
    """As `run`, blocking."""
    try:
        return redis.execute_command(*call.words)
    except NoScriptError:
        return redis.execute_command(*call.whole_command())


async def run_together(redis: AsyncRedis, calls: Sequence[Call]) -> list[Any]:
    """Run scripts in one pipeline; return what each answered, errors among them."""
    replies = await pipelined(redis, [call.words for call in calls])
    unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        again = await pipelined(redis, [calls[n].whole_command() for n in unknown])
        for n, reply in zip(unknown, again, strict=True):
            replies[n] = reply
    return replies


def text(reply: object) -> str:
    """Return a word of a reply, whether or not the client decodes replies."""
    return reply.decode() if isinstance(reply, bytes) else cast("str", reply)


class SubmitArgs(NamedTuple):
    """What `submit` is given; the header of submit.lua says what each is."""

    job_id: str
    turn_id: str
    message: bytes
    digest: str
    act: str
    job_data: bytes
    inbox_limit: int
    queue_limit: int
    retention_ms: int
    log_limit: int
    conversation: str
    age_limit_ms: int
    trace_id: str
    shards: int
    told_from: int
    deliver_at_ms: int
    lane: str


class ForgetArgs(NamedTuple):
    """What `forget` is given; the header of forget.lua says what each is."""

    job_id: str
    channel: str
    conversation: str
    copies_read: int


class FindKeys(NamedTuple):
    """What `find` reads beside pages."""

    page_marks: str


class FindArgs(NamedTuple):
    """What `find` is given; the header of find.lua says what each is."""

    most: int
    since_ms: int
    until_ms: int
    failed_since: int
    slow: str
    marks: Sequence[str]


submit = bind(__name__, "submit", ConversationKeys, SubmitArgs)
forget = bind(__name__, "forget", ConversationKeys, ForgetArgs, more_keys="streams")
find = bind(__name__, "find", FindKeys, FindArgs, more_keys="pages")
