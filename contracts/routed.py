"""A client for all shards: each command goes to the server that holds its key."""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError

from turnline.contracts.connection import Command
from turnline.contracts.routing import key_of
from turnline.contracts.servers import Server, Servers
from turnline.contracts.topology import slot_of


class RoutedRedis:
    """A client for all shards, with the part of redis-py's clients that is in use."""

    def __init__(self, servers: Servers) -> None:
        """Use these connections."""
        self.servers = servers

    async def execute_command(self, *args: Any) -> Any:
        """Send one command and return its reply; one without keys goes to any primary."""
        slot = slot_of(key_of(args) or "")
        server = self.servers.known(slot) or await self.servers.find(slot)
        reply = await server.redis.execute_command(*args)
        if self.servers.is_watched:
            await self.servers.check(server)
        return reply

    def pipeline(self, transaction: bool = False) -> "_RoutedPipeline":  # noqa: FBT001, FBT002
        """Begin a pipeline; never a transaction."""
        del transaction
        return _RoutedPipeline(self.servers)

    async def aclose(self) -> None:
        """Close all connections."""
        await self.servers.aclose()


class _RoutedPipeline:
    """Commands that travel together to each server; what has no key goes to all of these."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._commands: list[Command] = []

    def execute_command(self, *args: Any) -> None:
        self._commands.append(args)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
        """Return the replies in order; in the place of those that did not come, why."""
        replies: list[Any] = [None] * len(self._commands)
        parts = await self._parts(replies)
        answers = await self._servers.together([self._send(*part) for part in parts])
        for (_, places), answer in zip(parts, answers, strict=True):
            for place, reply in zip(places, answer, strict=True):
                if not isinstance(replies[place], Exception):  # of several servers
                    replies[place] = reply
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies

    async def _parts(self, replies: list[Any]) -> list[tuple[Server, Sequence[int]]]:
        """Return which commands go to which server, each in the order given.

        Of those whose server is not known, the reply is why.
        """
        slots = [None if (key := key_of(it)) is None else slot_of(key) for it in self._commands]
        places: dict[Server, list[int]] = {}
        lost: dict[int, Exception] = {}
        for slot in dict.fromkeys(it for it in slots if it is not None) or (0,):
            try:
                server = self._servers.known(slot) or await self._servers.find(slot)
            except (RedisError, OSError) as error:
                lost[slot] = error
                continue
            places.setdefault(server, [])
            places[server] += [n for n, it in enumerate(slots) if it == slot]
        for n, its_slot in enumerate(slots):
            if its_slot is None:
                for found in places.values():
                    found.append(n)
            else:
                replies[n] = lost.get(its_slot)
        return [(server, sorted(found)) for server, found in places.items()]

    async def _send(self, server: Server, places: Sequence[int]) -> Sequence[Any]:
        pipe = server.redis.pipeline(transaction=False)
        for place in places:
            pipe.execute_command(*self._commands[place])
        try:
            replies: list[Any] = await pipe.execute(raise_on_error=False)
            if self._servers.is_watched:
                await self._servers.check(server)
        except (RedisError, OSError) as error:
            return [error] * len(places)
        return replies
