"""One connection of a subscriber: it carries the channels of some slots until it is lost."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError, ResponseError

from turnline.contracts.connection import Command, RawConnection

Heard: TypeAlias = Callable[[bytes | None], object]
PING_AFTER_S = 2.0
"""Seconds of silence after which a server is asked whether it is there."""
GONE_AFTER_S = 5.0
"""Seconds without a word after that question, or to connect, after which it counts as gone."""
IDLE_S = 10.0
"""Seconds for which a connection that nobody needs is kept open."""
_AT_ONCE: Final = 500
"""Channels in one command: more would keep other clients of the server waiting."""
_CLOSE_S: Final = 1.0
_SUBSCRIBE: Final = b"ssubscribe"
_UNSUBSCRIBE: Final = b"sunsubscribe"


class Place(Protocol):
    """A server, and how connections to it are made."""

    @property
    def address(self) -> str:
        """Which server it is, in words for people; never a password."""
        ...

    @property
    def pool(self) -> ConnectionPool:
        """Makes the connections."""
        ...


class Slot:
    """Channels with the same hash tag: they are located, and move, together."""

    def __init__(self, tag: bytes, channel: str) -> None:
        """Begin without channels; `channel` is any that has the tag."""
        self.tag = tag
        self.channel = channel
        self.channels: dict[bytes, tuple[Heard, ...]] = {}
        """Who listens, by the channel's name."""
        self.link: Link | None = None
        """What carries them at the moment."""
        self.failures = 0
        """How often it was not to be had where it was looked for, since the last success."""
        self.look_again = asyncio.Event()
        """Set when the slot may be elsewhere."""


class Hearer(Protocol):
    """Who is told what comes over a link."""

    def heard(self, channel: bytes, data: bytes | None) -> None:
        """A message came; None: the channel's subscription was confirmed."""
        ...

    def refused(self, link: "Link", slot: Slot, error: Exception) -> None:
        """The server does not, or no longer, carry the channels of a slot."""
        ...

    def lost(self, link: "Link", error: Exception | None) -> None:
        """The link ended, with its connection; None: nobody needed it."""
        ...


class _Sent(NamedTuple):
    """A command that was not answered yet: by a push for each of its channels, or an error."""

    kind: bytes
    slot: Slot | None
    channels: set[bytes]


_PING = _Sent(b"pong", None, set())


def tag_of(channel: bytes) -> bytes:
    """Return the part of a name that decides on its slot.

    Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
    """
    _, brace, rest = channel.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if brace and closed and tag else channel


def _in_parts(names: list[bytes]) -> Iterator[list[bytes]]:
    following = iter(names)
    while part := list(islice(following, _AT_ONCE)):
        yield part


class Link:
    """Subscribes one connection to the channels of the slots it carries, in few commands."""

    def __init__(
        self, place: Place, hearer: Hearer, owner_of: Callable[[bytes], Slot | None]
    ) -> None:
        """Prepare a link; `run` does the work.

        Args:
            place: Which server to connect to.
            hearer: Is told what comes.
            owner_of: Returns the slot of a channel that somebody listens to, None for others.
        """
        self.place = place
        self.slots: set[Slot] = set()
        self.is_live = False
        """Whether the connection stands."""
        self._hearer = hearer
        self._owner_of = owner_of
        self._subscribed: set[bytes] = set()  # once all that was sent is done
        self._confirmed: set[bytes] = set()
        self._changed: set[bytes] = set()
        self._has_changes = asyncio.Event()
        self._unanswered: deque[_Sent] = deque()
        self._heard_at = 0.0
        self._asked_at = 0.0

    def carry(self, slot: Slot) -> None:
        """Subscribe to a slot's channels from now on."""
        self.slots.add(slot)
        self.change(slot.channels)

    def drop(self, slot: Slot) -> None:
        """Leave a slot's channels to somebody else."""
        self.slots.discard(slot)
        self.change(slot.channels)

    def change(self, channels: Iterable[bytes]) -> None:
        """Look anew whether these channels are to be subscribed to; soon, and all together."""
        self._changed.update(channels)
        self._has_changes.set()

    def is_confirmed(self, channel: bytes) -> bool:
        """Whether the server has said that it sends what is published there."""
        return channel in self._confirmed and channel in self._subscribed

    async def run(self, pause_s: float) -> None:
        """Connect after a pause and carry the slots for as long as the connection lives."""
        connection: RawConnection | None = None
        error: Exception | None = None
        try:
            await asyncio.sleep(pause_s)
            if self.slots:  # they may have moved on
                connection = self._new_connection()
                await self._serve(connection)
        except Exception as lost:  # noqa: BLE001  whatever it is, the connection is of no more use
            error = lost
        finally:
            self._hearer.lost(self, error)
            if connection is not None:
                await _close(connection, is_alive=error is None)

    def _new_connection(self) -> RawConnection:
        made: RawConnection = cast("Any", self.place.pool).make_connection()
        return made

    async def _serve(self, connection: RawConnection) -> None:
        connection.socket_timeout = None  # silence is no fault; whether it is death, `_write` asks
        async with asyncio.timeout(GONE_AFTER_S):
            await connection.connect()
        self._heard_at = asyncio.get_running_loop().time()
        self.is_live = True
        reading = asyncio.create_task(self._read(connection))
        reading.add_done_callback(lambda _: self._has_changes.set())
        try:
            await self._write(connection, reading)
        finally:
            self.is_live = False
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _write(self, connection: RawConnection, reading: "asyncio.Task[None]") -> None:
        """Send what has changed, and ask a silent server whether it is there.

        Returns when nobody has needed the connection for a while.

        Raises:
            Exception: The connection, or whoever reads from it, has failed.
        """
        now = asyncio.get_running_loop().time
        needed_at = now()
        while not reading.done():
            commands = self._changes()
            if self._subscribed:
                needed_at = now()
            elif now() - needed_at > IDLE_S:
                return
            if self._is_to_be_asked(now()):
                self._unanswered.append(_PING)
                commands.append(("PING",))
            if commands:
                packed = connection.pack_commands(commands)
                async with asyncio.timeout(GONE_AFTER_S):
                    await connection.send_packed_command(packed, check_health=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_AFTER_S / 2):
                    await self._has_changes.wait()
        reading.result()

    def _is_to_be_asked(self, now_s: float) -> bool:
        """Tell whether it is time to ask the server for a sign of life.

        Raises:
            redis.exceptions.ConnectionError: It was asked, and has said nothing since.
        """
        if self._asked_at > self._heard_at:
            if now_s - self._asked_at >= GONE_AFTER_S:
                raise LostConnection("the server says nothing any more")
            return False
        if now_s - self._heard_at < PING_AFTER_S:
            return False
        self._asked_at = now_s
        return True

    def _changes(self) -> list[Command]:
        """Return the commands after which what is subscribed to is what is to be."""
        self._has_changes.clear()
        parts: dict[tuple[bytes, bytes], list[bytes]] = {}
        for channel in self._changed:
            is_wanted = self._owner_of(channel) in self.slots
            if is_wanted != (channel in self._subscribed):
                kind = _SUBSCRIBE if is_wanted else _UNSUBSCRIBE
                parts.setdefault((kind, tag_of(channel)), []).append(channel)
        self._changed.clear()
        commands: list[Command] = []
        for (kind, _), channels in parts.items():  # a command may name channels of one slot only
            for part in _in_parts(channels):
                commands.append((kind, *part))
                self._unanswered.append(_Sent(kind, self._owner_of(part[0]), set(part)))
                if kind == _SUBSCRIBE:
                    self._subscribed.update(part)
                else:
                    self._subscribed.difference_update(part)
                    self._confirmed.difference_update(part)
        return commands

    async def _read(self, connection: RawConnection) -> None:
        """Hand on what comes; ends only by an exception."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                push = await connection.read_response(
                    disable_decoding=True, disconnect_on_error=False
                )
            except ResponseError as error:
                self._heard_at = loop.time()
                self._refused(error)
                continue
            self._heard_at = loop.time()
            match push:
                case [b"smessage", channel, data]:
                    self._hearer.heard(channel, data)
                case [b"ssubscribe", channel, _]:
                    self._answered(_SUBSCRIBE, channel)
                    self._confirmed.add(channel)
                    self._hearer.heard(channel, None)
                case [b"sunsubscribe", channel, _]:
                    self._ended(channel)
                case _:  # PONG, in one of its shapes
                    self._ponged()

    def _answered(self, kind: bytes, channel: bytes) -> bool:
        """Tick a channel off; False if nothing was asked of it that is to be answered next."""
        if not self._unanswered:
            return False
        sent = self._unanswered[0]
        if sent.kind != kind or channel not in sent.channels:
            return False
        sent.channels.discard(channel)
        if not sent.channels:
            self._unanswered.popleft()
        return True

    def _ended(self, channel: bytes) -> None:
        """Take note of the end of a subscription: ours, or that of a slot that has moved."""
        if self._answered(_UNSUBSCRIBE, channel) or channel not in self._subscribed:
            return
        self._subscribed.discard(channel)
        self._refuse(self._owner_of(channel), ResponseError("MOVED"))

    def _refused(self, error: ResponseError) -> None:
        """Take an error for the answer to the oldest command: answers come in order.

        The command may have been answered before, where a slot moved meanwhile. Then it is taken
        for the answer to a later one, whose slot is looked for again without need.
        """
        if not self._unanswered:
            return
        sent = self._unanswered.popleft()
        if sent is _PING:
            raise LostConnection(str(error)) from error
        if sent.kind == _SUBSCRIBE:
            self._subscribed.difference_update(sent.channels)
            self._refuse(sent.slot, error)

    def _refuse(self, slot: Slot | None, error: Exception) -> None:
        if slot in self.slots:
            self._hearer.refused(self, slot, error)

    def _ponged(self) -> None:
        """Check that what was sent before the PING was answered before it."""
        if self._unanswered and self._unanswered.popleft() is not _PING:
            raise LostConnection("the server has left a command unanswered")


async def _close(connection: RawConnection, *, is_alive: bool) -> None:
    """Close a connection; one of a server that may be gone without waiting for it."""
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await connection.disconnect(nowait=not is_alive)
