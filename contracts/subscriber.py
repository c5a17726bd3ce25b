"""Subscriber: hears what is published on sharded channels, over one connection for each server.

A message may be lost; that the subscription stands again is told, so that whoever listens looks
for itself then.
"""

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias

from redis.exceptions import ResponseError

from turnline.contracts.errors import CLOSED, WrongEventLoop
from turnline.contracts.subscriber_link import GONE_AFTER_S, Heard, Link, Place, Slot, tag_of

Locate: TypeAlias = Callable[[str], Awaitable[Place]]
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
_MOST_DOUBLINGS: Final = 10
log = logging.getLogger("turnline.subscriber")


def pause_s(failures: int) -> float:
    """Return how long to wait before the next try: longer each time, and not all at once."""
    if not failures:
        return 0.0
    longest: float = FIRST_PAUSE_S * 2 ** min(failures - 1, _MOST_DOUBLINGS)
    return min(LONGEST_PAUSE_S, longest) * random.uniform(0.5, 1.0)


class Subscriber:
    """Listens to sharded channels (SSUBSCRIBE), wherever their slots live, and keeps listening.

    Lost connections, servers that say nothing any more, refusals and slots that move are followed
    by looking for the slot again, with short growing pauses, for ever. It belongs to the event
    loop in which it is used first.
    """

    def __init__(self, locate: Locate) -> None:
        """Prepare a subscriber; it connects when somebody listens.

        Args:
            locate: Returns where a channel's slot is served at the moment. It is asked once for
                all channels with the same hash tag, and again whenever it may have changed.
        """
        self._locate = locate
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._slots: dict[bytes, Slot] = {}
        self._links: dict[str, Link] = {}
        self._failures: dict[str, int] = {}  # by address, since the last success
        self._troubled: set[str | bytes] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def listen(self, channel: str, heard: Heard) -> bool:
        """Have `heard` called in the event loop with the bytes of each message of a channel.

        It is called with None once the channel is subscribed to, and each time it is again: what
        was published before may have been lost. It must be quick, and leave no error to others.

        Returns:
            Whether it is called with None within a round trip, as things are.

        Raises:
            WrongEventLoop: It was used first in another event loop, or before a fork.
        """
        loop = self.at_home()
        name = channel.encode()
        tag = tag_of(name)
        slot = self._slots.get(tag)
        if slot is None:
            slot = self._slots[tag] = Slot(tag, channel)
            self._start(self._keep(slot))
        listeners = slot.channels.get(name, ())
        slot.channels[name] = (*listeners, heard)
        if slot.link is None:
            return False
        if not listeners:
            slot.link.change((name,))
        if slot.link.is_confirmed(name):  # so no confirmation follows
            loop.call_soon(self._begin, name, heard)
        return slot.link.is_live and not slot.failures

    def is_heard(self, channel: str) -> bool:
        """Return whether the server has said that it sends what is published on a channel."""
        name = channel.encode()
        slot = self._slots.get(tag_of(name))
        return slot is not None and slot.link is not None and slot.link.is_confirmed(name)

    def leave(self, channel: str, heard: Heard) -> None:
        """End what `listen` with the same arguments began, if it was not ended before."""
        if self._is_closed:
            return
        self.at_home()
        name = channel.encode()
        slot = self._slots.get(tag_of(name))
        listeners = list(slot.channels.get(name, ())) if slot is not None else []
        if slot is None or heard not in listeners:
            return
        listeners.remove(heard)
        if listeners:
            slot.channels[name] = tuple(listeners)
            return
        del slot.channels[name]
        if slot.link is not None:
            slot.link.change((name,))

    def relocate(self) -> None:
        """Look for all slots again, because some may have moved; those that have not stay."""
        if not self._is_closed and self._home is not None:
            self.at_home()
            for slot in self._slots.values():
                slot.failures = min(slot.failures, 1)
                slot.look_again.set()

    async def aclose(self) -> None:
        """Stop listening and close the connections."""
        if not self._is_closed and self._home is not None:
            self.at_home()
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._slots.clear()

    # -- keeping the slots located ------------------------------------------------------------

    async def _keep(self, slot: Slot) -> None:
        """Have a link carry a slot, for ever; when it is lost unneeded, forget the slot."""
        while slot.channels or slot.link is not None:
            if slot.failures:
                await _set_within(slot.look_again, pause_s(slot.failures))
            slot.look_again.clear()
            try:
                async with asyncio.timeout(GONE_AFTER_S):
                    place = await self._locate(slot.channel)
            except Exception as error:  # noqa: BLE001  whatever it is, to ask again is all there is
                self._say(slot.tag, error)
                slot.failures += 1
                continue
            self._move(slot, self._link(place))
            await slot.look_again.wait()
            slot.look_again.clear()
        del self._slots[slot.tag]
        self._troubled.discard(slot.tag)

    def _link(self, place: Place) -> Link:
        link = self._links.get(place.address)
        if link is None:
            link = self._links[place.address] = Link(place, self, self._owner_of)
            self._start(link.run(pause_s(self._failures.get(place.address, 0))))
        return link

    def _move(self, slot: Slot, link: Link) -> None:
        if slot.link is link:
            return
        if slot.link is not None:
            slot.link.drop(slot)
        slot.link = link
        link.carry(slot)

    def _owner_of(self, channel: bytes) -> Slot | None:
        slot = self._slots.get(tag_of(channel))
        return slot if slot is not None and channel in slot.channels else None

    # -- what links tell ----------------------------------------------------------------------

    def heard(self, channel: bytes, data: bytes | None) -> None:
        """Call those who listen to a channel."""
        slot = self._slots.get(tag_of(channel))
        if slot is None:
            return
        if data is None:
            self._stands(slot)
        for heard in slot.channels.get(channel, ()):
            _call(heard, data)

    def refused(self, link: Link, slot: Slot, error: Exception) -> None:
        """Look for a slot again after a pause: this server does not carry it, or not any more."""
        slot.failures += 1
        self._say(slot.tag, error, link.place.address)
        self._leave_link(slot, link)

    def lost(self, link: Link, error: Exception | None) -> None:
        """Look for all slots of a link again, at once; a link to the same server waits."""
        if self._links.get(link.place.address) is link:
            del self._links[link.place.address]
        if error is not None:
            self._failures[link.place.address] = self._failures.get(link.place.address, 0) + 1
            self._say(link.place.address, error, link.place.address)
        for slot in tuple(link.slots):
            self._leave_link(slot, link)

    def _leave_link(self, slot: Slot, link: Link) -> None:
        link.drop(slot)
        if slot.link is link:
            slot.link = None
            slot.look_again.set()

    def _stands(self, slot: Slot) -> None:
        """Take note that a slot's link works: the next trouble is a new one."""
        slot.failures = 0
        address = slot.link.place.address if slot.link is not None else ""
        self._failures.pop(address, None)
        for trouble in (slot.tag, address):
            if trouble in self._troubled:
                self._troubled.discard(trouble)
                log.info("subscriber.back", extra={"server": address})

    def _say(self, trouble: str | bytes, error: Exception, server: str = "") -> None:
        """Log what went wrong, once until it works again."""
        if trouble not in self._troubled:
            self._troubled.add(trouble)
            log.warning("subscriber.lost", extra={"server": server, "error": _reason(error)})

    # -- where it belongs ---------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(self, channel: bytes, heard: Heard) -> None:
        """Tell one who came to a channel that was subscribed to already."""
        slot = self._owner_of(channel)
        if slot is not None and heard in slot.channels[channel]:
            _call(heard, None)

    def at_home(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that it belongs to, which is the running one.

        Raises:
            WrongEventLoop: It was used first in another event loop, or before a fork.
        """
        if self._home is None:
            self._home = (os.getpid(), asyncio.get_running_loop())
        process, loop = self._home
        if process != os.getpid() or loop is not asyncio.get_running_loop():
            raise WrongEventLoop(
                "the client was first used in another process or event loop: make one in each "
                "event loop, and after a fork one in each process"
            )
        if self._is_closed:
            raise RuntimeError(CLOSED)
        return loop


def _call(heard: Heard, data: bytes | None) -> None:
    try:
        heard(data)
    except Exception as error:  # noqa: BLE001  one bad callback stops nobody
        log.error("subscriber.callback_failed", extra={"error": type(error).__name__})  # noqa: TRY400  the text may be a user's


def _reason(error: Exception) -> str:
    """Name an error without its text: that of a server may repeat a channel's name."""
    word = str(error).partition(" ")[0] if isinstance(error, ResponseError) else ""
    return word if word.isupper() else type(error).__name__


async def _set_within(event: asyncio.Event, wait_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await event.wait()
