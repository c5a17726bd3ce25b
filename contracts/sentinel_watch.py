"""Hears from sentinels that a primary is about to be replaced, and leaves it in time.

The old primary takes writes until the sentinels have told it that it is one no more, seconds after
its successor was chosen; all of them are lost. So nothing is written from the moment on at which
sentinels choose, until the chosen one says that it is the primary.

A program that was busy, or stopped, hears of that late. So an answer counts only once all that had
come from the sentinels by then was heard: they spoke before the successor was made. The first one
counts once it is known which sentinels can be heard.

Source: docs/adr/0034-connections-belong-to-servers.md,
https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/#pubsub-messages
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import redis.asyncio
from redis.exceptions import RedisError

from turnline.contracts.addresses import Address
from turnline.contracts.connection import how_to_connect
from turnline.contracts.redis_internals import may_have_come
from turnline.contracts.topology import Node, WatchedPrimary

_BEGINS: Final = "+failover-state-select-slave"
_CHOSEN: Final = "+selected-slave"
_PROMOTED: Final = "+promoted-slave"
_SWITCHED: Final = "+switch-master"
_ABORTED: Final = (
    "-failover-abort-master-is-back",
    "-failover-abort-no-good-slave",
    "-failover-abort-not-elected",
    "-failover-abort-slave-timeout",
)
_EVENTS: Final = (_BEGINS, _CHOSEN, _PROMOTED, _SWITCHED, *_ABORTED)
_ASK_S: Final = 0.02
"""Between two questions to the chosen one."""
_ANSWER_S: Final = 0.5
_CONFIRM_S: Final = 1.5
"""In which sentinels name the primary that they have made: their leader looks once a second."""
_AGAIN_S: Final = 0.5
"""Until a sentinel that was lost is tried again."""


class SentinelWatch:
    """Listens to all sentinels, for as long as `run` is awaited."""

    def __init__(
        self,
        address: Address,
        topology: WatchedPrimary,
        moved: Callable[[], object],
        doubt: Callable[[], object],
    ) -> None:
        """Prepare.

        Args:
            address: Of the sentinels.
            topology: Is told what they do.
            moved: Called once another server is the primary.
            doubt: Called where sentinels have to be asked which one is.
        """
        self._address = address
        self._topology = topology
        self._moved = moved
        self._doubt = doubt
        self._asking: asyncio.Task[None] | None = None
        self._connections: set[Any] = set()
        self._untried = set(address.nodes)
        """The sentinels of which it is not known yet whether they can be heard."""
        self._are_tried = asyncio.Event()
        self._leader: Node | None = None
        """The sentinel that has chosen."""

    @property
    def has_unheard(self) -> bool:
        """Whether something may have come that was not heard; from any thread."""
        return bool(self._untried) or any(map(may_have_come, [*self._connections]))

    async def catch_up(self) -> None:
        """Hear what has come by now: one turn of the loop finds it, the next one reads it."""
        if self._untried:
            with suppress(TimeoutError):  # it was ended before it had begun
                await asyncio.wait_for(self._are_tried.wait(), 2 * _ANSWER_S)
        for _ in range(3):
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Listen until cancelled."""
        try:
            await asyncio.gather(*(self._listen(Node(*it)) for it in self._address.nodes))
        finally:
            self._are_tried.set()  # nobody waits for what has ended
            if self._asking is not None:
                self._asking.cancel()

    async def _listen(self, sentinel: Node) -> None:
        while True:
            kind, options = how_to_connect(
                redis.asyncio, self._address, *sentinel, is_sentinel=True
            )
            connection = kind(**options)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await connection.connect()
                    await connection.send_command("SUBSCRIBE", *_EVENTS)
                    await connection.read_response()
                self._connections.add(connection)
                self._is_tried(sentinel)
                while True:
                    what, channel, data = await connection.read_response()
                    if what == b"message":
                        words = data.decode(errors="replace").split()
                        self._hear(sentinel, channel.decode(), words)
            except (RedisError, OSError, ValueError):
                if sentinel == self._leader:
                    self._take_back()
            finally:
                self._is_tried(sentinel)
                self._connections.discard(connection)
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(_AGAIN_S)

    def _is_tried(self, sentinel: Node) -> None:
        self._untried.discard(sentinel)
        if not self._untried:
            self._are_tried.set()

    def _hear(self, sentinel: Node, event: str, words: list[str]) -> None:
        topology, service = self._topology, self._address.service
        match event, words:
            case "+switch-master", [name, _, _, host, port] if name == service:
                self._replace(Node(host, int(port)))
            case "+failover-state-select-slave", ["master", name, *_] if name == service:
                topology.pause()
            case "+selected-slave", ["slave", _, host, port, "@", name, *_] if name == service:
                self._leader = sentinel
                if not topology.is_paused:
                    topology.pause()
                if self._asking is not None:
                    self._asking.cancel()
                self._asking = asyncio.create_task(self._ask(Node(host, int(port))))
            case "+promoted-slave", ["slave", _, host, port, "@", name, *_] if name == service:
                self._replace(Node(host, int(port)))
            case _ if event in _ABORTED and service in words:
                topology.go_on()
            case _:
                pass  # of another primary, or of a form that is not known

    async def _ask(self, chosen: Node) -> None:
        """Ask the chosen one what it is, until it is the primary or the failover is over.

        Sentinels look once a second. They cut all connections to the one that they promote. If
        their leader is gone before it has looked, the others make a replica of it again.
        """
        kind, options = how_to_connect(redis.asyncio, self._address, *chosen)
        connection = kind(**options)
        try:
            while self._topology.is_paused:
                with suppress(RedisError, OSError):
                    async with asyncio.timeout(_ANSWER_S):
                        await connection.connect()
                        await connection.send_command("ROLE")
                        role: Any = await connection.read_response()
                    if role[0] == b"master" and self._topology.is_paused:
                        self._replace(chosen, is_named=False)
                await asyncio.sleep(_ASK_S)
        finally:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
        await asyncio.sleep(_CONFIRM_S)
        self._take_back()

    def _take_back(self) -> None:
        """Have sentinels asked, if none has named the new primary."""
        if self._topology.is_unsure:
            self._topology.take_back()
            self._doubt()

    def _replace(self, primary: Node, *, is_named: bool = True) -> None:
        if self._topology.replace(primary, is_named=is_named):
            self._moved()
