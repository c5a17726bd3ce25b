"""Changes the number of shards of a fleet that is in use: takes conversations where they belong.

A conversation is packed in its old shard, arrives in its new one, and leaves the old one, in this
order; what was accepted meanwhile lets it stay for another try. So it is in one place for everybody
at any time, and whoever ends this in the middle may begin it again.

Source: docs/adr/0038-a-fleet-changes-its-number-of-shards.md
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec
from redis.exceptions import RedisError

from turnline.contracts.connection import AsyncRedis, Command
from turnline.contracts.errors import StoreFull, StoreUnavailable
from turnline.contracts.job_format import conversation_job
from turnline.contracts.keys import (
    ConversationKeys,
    ShardKeys,
    conversation_keys,
    conversation_of,
    shard_keys,
)
from turnline.contracts.layout import FIELDS, Layout, read_layout
from turnline.contracts.opening import open_servers
from turnline.contracts.patience import LOOP, PatientRedis
from turnline.contracts.protocol import Requests
from turnline.contracts.refusals import is_passing, told
from turnline.contracts.replication import confirmation
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.scripts import Call, text
from turnline.contracts.servers import AsyncServers
from turnline.ops.fleet import lua

PATIENCE_S: Final = 60.0
"""How long a server may be away, or full."""
MARKED_MS: Final = 24 * 3600 * 1000
"""Time for which a conversation's old shard says that it is elsewhere, to readers of its events."""
_TOGETHER: Final = 64
"""Conversations moved at once."""
_SCAN_COUNT: Final = 1_000
_ASKED: Final = 64
"""Shards that are asked how many there are, at least: the first one may have lost it."""
_NAMED: Final = 3
"""Busy conversations that are told by their ids."""
LEAVING_MS: Final = 2_000
"""Time for which producers of an idle conversation wait, if this ends in the middle."""
_PAUSE_S: Final = 0.01
"""Between two tries of conversations that are busy."""
_REFUSED_S: Final = 0.1
"""Between two tries of what a server refuses, such as one that is full."""
_CLEAN_SWEEPS: Final = 2
"""Looks in a row that find nothing to move, after which nothing is left: slots may move, too."""


class CannotReshard(Exception):
    """The number of shards cannot be changed now; the text says what to do."""


class Progress(msgspec.Struct):
    """How far it is."""

    shards: int = 0
    before: int = 0
    """Number of shards that the fleet had; 0: as many."""
    moved: int = 0
    busy: int = 0
    """Conversations with a turn that waits or runs: they stay until it has ended."""
    awaited: tuple[str, ...] = ()
    """Ids of some of these."""
    superseded: int = 0
    """Old copies of conversations that had gone on in their new shards already, as after a server
    lost what it had been told; the newer one stays."""
    is_done: bool = False


_Names: TypeAlias = tuple[ShardKeys, ConversationKeys]


class _Stay(NamedTuple):
    """A conversation where it is, and where it belongs."""

    conversation_id: str
    old: _Names
    new: _Names


class _View(NamedTuple):
    """What a shard says of the number of shards."""

    layout: Layout | None
    epoch: int
    """Of the mover who told it."""
    found: bytes
    """As announce.lua compares it."""

    @staticmethod
    def read(answer: Sequence[bytes | None]) -> "_View":
        """Read the values of FIELDS and `mover`."""
        shards, before, earlier, mover = (it or b"" for it in answer)
        epoch, named, _ = mover.partition(b" ")
        return _View(
            read_layout([shards, before, earlier]),
            int(epoch) if named and epoch.isdigit() else 0,
            b";".join([shards, before, mover]),
        )


class _Packed(NamedTuple):
    stay: _Stay
    last_turn: bytes
    arriving: lua.ArriveArgs


async def reshard(
    url: str,
    shards: int,
    *,
    prefix: str = "",
    wait_replicas: int = 0,
    tell: Callable[[Progress], object] = lambda _: None,
) -> Progress:
    """Change the number of shards, and return once each conversation is in its shard.

    It may be ended at any time; the same call goes on. Until it has ended once, workers have to
    serve the shards of both numbers.

    Args:
        url: Where the fleet is.
        shards: How many it is to have.
        prefix: The fleet's name.
        wait_replicas: How many replicas must have a conversation before its old shard gives it up.
        tell: Called with how far it is, now and then.

    Raises:
        CannotReshard: Something has to be done before.
        StoreUnavailable: A server was away for longer than `PATIENCE_S`.
        StoreFull: A server was full for as long.
    """
    servers = open_servers(url)
    try:
        redis = PatientRedis(cast("AsyncRedis", RoutedRedis(servers)), PATIENCE_S, LOOP)
        mover = _Mover(servers, redis, prefix, wait_replicas, tell)
        return await mover.reshard(shards)
    finally:
        await servers.aclose()


class _Mover:
    def __init__(
        self,
        servers: AsyncServers,
        redis: PatientRedis,
        prefix: str,
        wait_replicas: int,
        tell: Callable[[Progress], object],
    ) -> None:
        self._servers = servers
        self._redis = redis
        self._prefix = prefix
        self._wait_replicas = wait_replicas
        self._tell = tell
        self._make = Requests(prefix=prefix)
        self._mover = secrets.token_hex(8)
        """Its name; once it has begun, `<epoch> <name>`."""
        self._found = b""
        """What the first shard said when this began."""
        self._epoch = 0
        """The highest one that any shard knew then."""
        self.progress = Progress()

    async def reshard(self, shards: int) -> Progress:
        layout = await self._begin(shards)
        self.progress.shards, self.progress.before = layout.homes[-1], layout.before
        await self._announce(layout, "begin")
        clean = 0 if layout.before else _CLEAN_SWEEPS
        while clean < _CLEAN_SWEEPS:
            clean = 0 if await self._sweep() else clean + 1
            await self._announce(layout)  # again: a server may have lost it
        await self._announce(layout._replace(before=0), "end")
        self.progress.is_done = True
        self._tell(self.progress)
        return self.progress

    # -- the number of shards -------------------------------------------------------------------

    async def _begin(self, shards: int) -> Layout:
        """Return what the fleet is to know while it is resharded.

        Raises:
            CannotReshard: It cannot be, now.
        """
        known = await self._known(shards)
        if known is None:
            fleet = self._make.shards[0].fleet
            raise CannotReshard(
                f"{fleet} has no number of shards. Is --prefix right? The first worker of a fleet "
                f"says how many it has: start workers with TURNLINE_SHARDS={shards}."
            )
        if known.before and shards != known.shards:
            raise CannotReshard(
                f"the fleet is on its way from {known.before} to {known.shards} shards; finish "
                f"that first: `turnline reshard {known.shards}`."
            )
        layout = known
        if not known.before and shards != known.shards:
            earlier = dict.fromkeys((*known.earlier, known.shards))
            layout = Layout(shards, known.shards, tuple(it for it in earlier if it != shards))
        self._make.learn(layout)
        if layout.before:
            await self._check_served(max(layout.homes))
        return layout

    async def _known(self, wanted: int) -> Layout | None:
        """Return what the shards say of their number.

        That is the word of the first one, unless others know of a later mover: then it has lost
        what it was told.
        """
        views: list[_View] = []
        count = max(wanted, _ASKED)
        while len(views) < count:
            shards = [shard_keys(n, self._prefix).fleet for n in range(len(views), count)]
            asked = [("HMGET", fleet, *FIELDS, "mover") for fleet in shards]
            answers = await self._redis.send_together(asked, all_or_none=True)
            views += [_View.read(answer) for answer in answers]
            widest = [it.layout.widest for it in views if it.layout is not None]
            count = max(count, max(widest, default=0))
        first, latest = views[0], max(views, key=lambda it: it.epoch)
        self._found, self._epoch = first.found, latest.epoch
        is_lost = first.layout is None or latest.epoch > first.epoch
        known = (latest.layout or first.layout) if is_lost else first.layout
        if known is None:
            return None
        every = [n for it in views if it.layout is not None for n in it.layout.every]
        earlier = dict.fromkeys((*known.earlier, *every))
        return known._replace(earlier=tuple(it for it in earlier if it != known.shards))

    async def _check_served(self, count: int) -> None:
        """Look whether workers serve as many shards, if there are workers at all."""
        seconds, _ = await self._redis.execute_command("TIME")
        now_ms = int(seconds) * 1000
        shards = [shard_keys(number, self._prefix) for number in range(count)]
        asked = [("ZCOUNT", shard.workers, now_ms, "+inf") for shard in shards]
        counts = await self._redis.send_together(asked, all_or_none=True)
        unserved = [number for number, alive in enumerate(counts) if alive == 0]
        if unserved and len(unserved) < count:
            raise CannotReshard(
                f"no worker serves shard {unserved[0]}"
                + (f" and {len(unserved) - 1} others" if unserved[1:] else "")
                + f": first start all workers again with TURNLINE_SHARDS={count}."
            )

    async def _announce(self, layout: Layout, how: str = "go_on") -> None:
        """Have each shard know the number of shards; the first one decides whether this mover may.

        Raises:
            CannotReshard: Another mover has taken over.
        """
        first, *others = self._make.shards[: layout.widest]
        self._mover = await self._say([first], layout, how)
        await self._say(others, layout, "follow")

    async def _say(self, shards: Sequence[ShardKeys], layout: Layout, how: str) -> str:
        """Have shards know the number of shards, and return the name of this mover."""
        words = layout.fields()[1::2]
        args = lua.AnnounceArgs(self._mover, how, self._epoch, self._found, *words)
        answers = await self._scripts(
            [(shard, lua.announce(lua.FleetKey(shard.fleet), args)) for shard in shards]
        )
        if any(text(answer) == "fenced" for answer, _ in answers):
            raise CannotReshard(
                "another `turnline reshard` has taken over. Only one may run at a time; "
                "`turnline reshard` with the number that the fleet is to have goes on."
            )
        return text(answers[0][1]) if answers else self._mover

    # -- conversations --------------------------------------------------------------------------

    async def _sweep(self) -> int:
        """Move all that can be found; return how many conversations were not where they belong."""
        staying, delayed = await self._find()
        found = len(staying)
        while staying:
            busy: list[_Stay] = []
            for at in range(0, len(staying), _TOGETHER):
                busy += await self._move(staying[at : at + _TOGETHER])
                self.progress.busy = len(busy)
                self.progress.awaited = tuple(it.conversation_id for it in busy[:_NAMED])
                self._tell(self.progress)
            if len(busy) == len(staying):
                await asyncio.sleep(_PAUSE_S)
            staying = busy
        await self._rouse_delayed(delayed)
        return found

    async def _find(self) -> tuple[list[_Stay], set[str]]:
        """Look through all servers for conversations that are in their old shard.

        Also for those in their new one that have delayed messages, by their ids.

        Raises:
            StoreUnavailable: A server is away.
        """
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._look_through()
            except (RedisError, OSError) as error:
                if not is_passing(error) or time.monotonic() > ends_s:
                    raise told(error) from None
            await asyncio.sleep(_REFUSED_S)

    async def _look_through(self) -> tuple[list[_Stay], set[str]]:
        log = conversation_keys("*", "*").log.removesuffix("log")
        tags = shard_keys(0, self._prefix).tag.replace("s0", "s*")
        pattern = log.replace("*", tags, 1) + "l*"  # `log` and `later`
        shape = re.escape(log).replace(r"\*", "(.*?)", 1).replace(r"\*", "(.*)") + "(log|later)"
        found: dict[str, _Stay] = {}
        delayed: set[str] = set()
        for server in await self._servers.primaries():
            cursor: Any = 0
            while cursor is not None:
                asked = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
                following, names = await server.redis.execute_command(*asked)
                cursor = following if int(following) else None
                for name in names:
                    match = re.fullmatch(shape, name.decode(errors="replace"), re.DOTALL)
                    if match is None:
                        continue
                    tag, conversation_id, key = match.groups()
                    if key == "later":
                        if self._make.names(conversation_id)[0].tag == tag:
                            delayed.add(conversation_id)
                    elif (stay := self._stay(tag, conversation_id)) is not None:
                        found[stay.conversation_id] = stay
        return list(found.values()), delayed

    def _stay(self, tag: str, conversation_id: str) -> _Stay | None:
        """Return a conversation if this is its old shard, and not its new one too."""
        old = self._make.names(conversation_id, self._make.layout.before)
        new = self._make.names(conversation_id)
        return _Stay(conversation_id, old, new) if old[0].tag == tag != new[0].tag else None

    async def _move(self, staying: Sequence[_Stay]) -> list[_Stay]:
        """Move those that are idle; return those that are not."""
        forgot, is_fenced = await self._ask({shard for it in staying for shard, _ in it[1:]})
        packed: list[_Packed] = []
        again: list[_Stay] = []
        answers = await self._scripts(
            [
                (it.old[0], lua.pack(it.old[1], lua.PackArgs(it.old[1].job_id, LEAVING_MS)))
                for it in staying
            ]
        )
        for stay, (answer, last_turn, cursor, *items) in zip(staying, answers, strict=True):
            if text(answer) == "packed":
                args = lua.ArriveArgs(text(cursor), forgot[stay.new[0]], self._mover, items)
                packed.append(_Packed(stay, last_turn, args))
            elif text(answer) == "busy":
                again.append(stay)
        answers = await self._scripts(
            [(it.stay.new[0], lua.arrive(it.stay.new[1], it.arriving)) for it in packed]
        )
        is_fenced |= any(text(answer) == "fenced" for answer, _ in answers)
        is_there = [text(answer) in {"arrived", "ahead"} for answer, _ in answers]
        self.progress.superseded += sum(text(answer) == "ahead" for answer, _ in answers)
        again += (it.stay for it, so in zip(packed, is_there, strict=True) if not so)
        packed = [it for it, so in zip(packed, is_there, strict=True) if so]
        answers = await self._scripts([self._leaving(it) for it in packed])
        await self._rouse(
            it.stay.new
            for it, (word, _) in zip(packed, answers, strict=True)
            if text(word) == "left"
        )
        for it, (answer, _) in zip(packed, answers, strict=True):
            self.progress.moved += text(answer) == "left"
            if text(answer) in {"changed", "fenced"}:
                again.append(it.stay)
            is_fenced |= text(answer) == "fenced"
        if is_fenced:  # or a server has lost who moves
            await self._announce(self._make.layout)
        return again

    async def _rouse(self, there: Iterable[_Names]) -> None:
        """Put conversations on the queue for their delayed messages, now that they have moved."""
        now_ms = int(time.time() * 1000)
        calls: list[tuple[ShardKeys, Call]] = []
        for shard, keys in there:
            name = conversation_of(keys.job_id, shard.tag) or ""
            args = lua.RouseArgs(keys.job_id, conversation_job(name, now_ms))
            calls.append((shard, lua.rouse(keys, args)))
        await self._scripts(calls)

    async def _rouse_delayed(self, names: Iterable[str]) -> None:
        """Do so for those that an earlier command left behind between their move and that."""
        every = sorted(names)
        for at in range(0, len(every), _TOGETHER):
            some = every[at : at + _TOGETHER]
            olds = [self._make.names(it, self._make.layout.before) for it in some]
            asked = (self._run(shard, [("LINDEX", keys.log, -1)]) for shard, keys in olds)
            news = [self._make.names(it) for it in some]
            has_left = [last is None for (last,) in await asyncio.gather(*asked)]
            await self._rouse(
                new for new, old, so in zip(news, olds, has_left, strict=True) if so or new == old
            )

    async def _ask(self, shards: Iterable[ShardKeys]) -> tuple[dict[ShardKeys, bytes], bool]:
        """Return what each shard says of forgotten conversations, and if one has another mover.

        That is asked before anything is packed.
        """

        async def ask(shard: ShardKeys) -> tuple[ShardKeys, bytes, bool]:
            ((forgot, mover),) = await self._run(shard, [("HMGET", shard.fleet, "forgot", "mover")])
            return shard, forgot or b"", mover != self._mover.encode()

        said = await asyncio.gather(*map(ask, shards))
        return {shard: forgot for shard, forgot, _ in said}, any(other for *_, other in said)

    def _leaving(self, packed: _Packed) -> tuple[ShardKeys, Call]:
        shard, keys = packed.stay.old
        shards = self._make.layout.shards
        last_turn, cursor = packed.last_turn, packed.arriving.cursor
        args = lua.LeaveArgs(keys.job_id, last_turn, shards, MARKED_MS, self._mover, cursor)
        return shard, lua.leave(keys, args)

    async def _scripts(self, calls: Sequence[tuple[ShardKeys, Call]]) -> list[Any]:
        """Run scripts, those of one shard together; return their answers in order."""
        places: dict[str, list[int]] = {}
        for place, (shard, _) in enumerate(calls):
            places.setdefault(shard.tag, []).append(place)
        answers: dict[int, Any] = {}

        async def run(those: list[int]) -> None:
            # Whole: a script that is called by its hash may be forgotten in between.
            commands = [calls[n][1].whole_command() for n in those]
            replies = await self._run(calls[those[0]][0], commands)
            answers.update(zip(those, replies, strict=True))

        await asyncio.gather(*map(run, places.values()))
        return [answers[n] for n in range(len(calls))]

    async def _run(self, shard: ShardKeys, commands: Sequence[Command]) -> list[Any]:
        """Send commands to a shard, again while they are refused or replicas do not have them.

        All of them bear that, also those that were carried out.

        Raises:
            StoreUnavailable: The server, or its replicas, are away.
            StoreFull: The server has no memory left.
        """
        confirm = confirmation(shard.written, self._wait_replicas) if self._wait_replicas else []
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            replies = await self._redis.send_together([*commands, *confirm], all_or_none=True)
            error = next((it for it in replies if isinstance(it, Exception)), None)
            if error is None and confirm and replies[-1] < self._wait_replicas:
                error = StoreUnavailable(
                    f"{self._wait_replicas} replicas do not have what was written", retry_after_s=5
                )
            if error is None:
                return replies[: len(commands)]
            if not isinstance(error, (StoreFull, StoreUnavailable)) or time.monotonic() > ends_s:
                raise error
            await asyncio.sleep(_REFUSED_S)
