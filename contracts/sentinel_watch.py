"""Hears from sentinels that a primary is about to be replaced, and leaves it in time.

The old primary takes writes until the sentinels have told it that it is one no more, seconds after
its successor was chosen; all of them are lost. So nothing is written from the moment on at which
sentinels choose, until the chosen one says that it is the primary.

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
_AGAIN_S: Final = 0.5
"""Until a sentinel that was lost is tried again."""


class SentinelWatch:
    """Listens to all sentinels, for as long as `run` is awaited."""

    def __init__(
        self, address: Address, topology: WatchedPrimary, moved: Callable[[], object]
    ) -> None:
        """Prepare.

        Args:
            address: Of the sentinels.
            topology: Is told what they do.
            moved: Called once another server is the primary.
        """
        self._address = address
        self._topology = topology
        self._moved = moved
        self._asking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Listen until cancelled."""
        try:
            await asyncio.gather(*(self._listen(Node(*it)) for it in self._address.nodes))
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def _listen(self, sentinel: Node) -> None:
        while True:
            kind, options = how_to_connect(
                redis.asyncio, self._address, *sentinel, is_sentinel=True
            )
            connection = kind(**options)
            try:
                await connection.connect()
                await connection.send_command("SUBSCRIBE", *_EVENTS)
                while True:
                    what, channel, data = await connection.read_response()
                    if what == b"message":
                        self._hear(channel.decode(), data.decode(errors="replace").split())
            except (RedisError, OSError, ValueError):
                pass
            finally:
                with suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(_AGAIN_S)

    def _hear(self, event: str, words: list[str]) -> None:
        topology, service = self._topology, self._address.service
        match event, words:
            case "+switch-master", [name, _, _, host, port] if name == service:
                self._replace(Node(host, int(port)))
            case "+failover-state-select-slave", ["master", name, *_] if name == service:
                topology.pause()
            case "+selected-slave", ["slave", _, host, port, "@", name, *_] if name == service:
                topology.pause()
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.create_task(self._ask(Node(host, int(port))))
            case "+promoted-slave", ["slave", _, host, port, "@", name, *_] if name == service:
                self._replace(Node(host, int(port)))
            case _ if event in _ABORTED and service in words:
                topology.go_on()
            case _:
                pass  # of another primary, or of a form that is not known

    async def _ask(self, chosen: Node) -> None:
        """Ask the chosen one what it is, until it is the primary or the failover is over."""
        kind, options = how_to_connect(redis.asyncio, self._address, *chosen)
        connection = kind(**options)
        try:
            async with asyncio.timeout(_ANSWER_S):
                await connection.connect()
            while self._topology.is_paused:
                async with asyncio.timeout(_ANSWER_S):
                    await connection.send_command("ROLE")
                    role: Any = await connection.read_response()
                if role[0] == b"master":
                    self._replace(chosen)
                await asyncio.sleep(_ASK_S)
        except (RedisError, OSError):
            pass  # the sentinels' own word comes a second later
        finally:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    def _replace(self, primary: Node) -> None:
        if self._topology.replace(primary):
            self._moved()
