"""Gathers what tasks want of Redis in one event-loop tick into one pipeline for each server.

While one batch is on its way the next one gathers, so that batches grow with the load and a lone
call is sent at once. Calls of one task keep their order, since each awaits its reply. Shards that
live on one server share its pipeline, and the one connection that it keeps.

Source: docs/adr/0035-one-pipeline-for-each-server.md
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError

from turnline.contracts.connection import Arg, Command, RawConnection
from turnline.contracts.refusals import word
from turnline.contracts.scripts import Call
from turnline.contracts.servers import SILENCE_S as DOUBT_S
from turnline.contracts.servers import AsyncServers, Server
from turnline.contracts.topology import slot_of
from turnline.worker.outage_log import Outage

log = logging.getLogger("turnline.queue")
SILENCE_S: Final = 5.0
"""A server that says nothing for so long is gone; the callers try again on a new connection."""
_CLOSE_S: Final = 0.5
_ELSEWHERE: Final = frozenset({"MOVED", "READONLY"})
"""Words of a server that has done nothing, since another one has the shard."""
_CLOSING: Final = "the worker is closing"
_MOST: Final = 256
"""Calls per pipeline: bounds the time for which one batch holds the server."""


class _Asked(NamedTuple):
    """A command that waits for its reply."""

    words: Command
    call: Call | None
    """If it runs a script."""
    batcher: "ScriptBatcher"
    reply: "asyncio.Future[Any]"
    is_again: bool = False
    """Whether another server has said already that it is not the right one."""

    def answer(self, reply: Any) -> None:
        """Hand over a reply, or why there is none; ask again where it belongs, once."""
        if self.reply.done():  # its task was cancelled
            return
        if not self.is_again and isinstance(reply, ResponseError) and word(reply) in _ELSEWHERE:
            self.batcher.route(self._replace(is_again=True))
            return
        if isinstance(reply, BaseException):
            self.reply.set_exception(reply)
        else:
            self.reply.set_result(reply)


class ScriptBatcher:
    """Runs scripts and commands of one shard, together with those of its server's others."""

    def __init__(self, pipelines: "Pipelines", tag: str) -> None:
        """Use the pipelines to wherever the shard with this hash tag, such as `{s0}`, lives."""
        self.slot: Final = slot_of(tag)
        self._pipelines = pipelines
        self._waiting: list[_Asked] = []
        self._finding: asyncio.Task[None] | None = None

    def run(self, call: Call) -> "asyncio.Future[Any]":
        """Return the future of a script's reply.

        Raises (when awaited):
            redis.exceptions.RedisError, OSError: The server refused the call or could not be
                reached; in the latter case the script may have run.
        """
        return self._ask(call.words, call)

    def send(self, *words: Arg) -> "asyncio.Future[Any]":
        """Return the future of the reply to a command that does not block; as `run`."""
        return self._ask(words, None)

    def _ask(self, words: Command, call: Call | None) -> "asyncio.Future[Any]":
        asked = _Asked(words, call, self, asyncio.get_running_loop().create_future())
        self.route(asked)
        return asked.reply

    def route(self, asked: _Asked) -> None:
        """Have a command sent, once it is known where to."""
        if self._pipelines.is_closed:
            asked.answer(LostConnection(_CLOSING))
            return
        pipeline = self._pipelines.known(self.slot) if self._finding is None else None
        if pipeline is not None:
            pipeline.add(asked)
            return
        self._waiting.append(asked)
        if self._finding is None:
            self._finding = asyncio.create_task(self._find())

    async def found(self) -> None:
        """Wait until it is known where to send what waits."""
        while self._finding is not None:
            await asyncio.shield(self._finding)

    def close(self) -> None:
        """Have nothing wait any more for whoever says where it is to be sent."""
        if self._finding is not None:
            self._finding.cancel()
        for asked in self._waiting:
            asked.answer(LostConnection(_CLOSING))

    async def _find(self) -> None:
        try:
            pipeline = await self._pipelines.find(self.slot)
        except Exception as error:  # noqa: BLE001  whoever waits must hear of it, or waits for ever
            for asked in self._waiting:
                asked.answer(error)
        else:
            for asked in self._waiting:
                pipeline.add(asked)
        finally:
            self._waiting = []
            self._finding = None


class Pipelines:
    """The pipelines of one event loop, one for each server."""

    def __init__(
        self,
        servers: AsyncServers,
        *,
        silence_s: float | None = None,
        events: tuple[str, str, str] = ("redis.unreachable", "redis.back", "redis.replaced"),
    ) -> None:
        """Send nothing yet.

        Args:
            servers: Know where each shard lives, and how to connect to that.
            silence_s: Seconds for which a server may say nothing before it counts as gone; None:
                `SILENCE_S`.
            events: What is logged once when a server fails, with the reason, and once when it is
                back, or was replaced.
        """
        self.servers: Final = servers
        self.is_closed = False
        """Whether nothing is sent any more."""
        self._silence_s = SILENCE_S if silence_s is None else silence_s
        self._events = events[:2]
        self._replaced = events[2]
        self._batchers: dict[str, ScriptBatcher] = {}
        self._pipelines: dict[Server, _Pipeline] = {}
        self._outages: dict[str, Outage] = {}
        self._unknown = Outage(log, *self._events, "primaries")
        self._retired: set[asyncio.Task[None]] = set()
        servers.on_moved.append(self._retire)

    def of(self, tag: str) -> ScriptBatcher:
        """Return what runs the scripts of the shard with a hash tag."""
        batcher = self._batchers.get(tag)
        if batcher is None:
            batcher = self._batchers[tag] = ScriptBatcher(self, tag)
        return batcher

    async def close(self) -> None:
        """Wait for the replies to what is under way, for a bounded time; close the connections.

        What is asked for from now on ends as if the server could not be reached.
        """
        self.is_closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                for batcher in self._batchers.values():
                    await batcher.found()
                await asyncio.gather(*(it.close() for it in self._pipelines.values()))
        for batcher in self._batchers.values():
            batcher.close()
        pipelines = self._pipelines.values()
        await asyncio.gather(*(it.close(at_once=True) for it in pipelines), *self._retired)

    def known(self, slot: int) -> "_Pipeline | None":
        """Return the pipeline to the server of a slot, if that is known beyond doubt."""
        server = self.servers.known(slot)
        if server is None:
            return None
        if self._unknown.is_on:
            self._unknown.worked(str(slot))
        return self._pipelines.get(server) or self._open(server)

    async def find(self, slot: int) -> "_Pipeline":
        """Return the pipeline to the server of a slot, having asked which one that is.

        Raises:
            redis.exceptions.RedisError, OSError: Nobody says so.
        """
        try:
            async with asyncio.timeout(self._silence_s):
                server = await self.servers.find(slot)
        except (RedisError, OSError) as error:
            self._unknown.failed(error, str(slot))
            raise
        self._unknown.worked(str(slot))
        return self._pipelines.get(server) or self._open(server)

    def _open(self, server: Server) -> "_Pipeline":
        where = server.address
        outage = self._outages.setdefault(where, Outage(log, *self._events, where))
        pipeline = _Pipeline(server, self.servers, self._silence_s, outage)
        self._pipelines[server] = pipeline
        return pipeline

    def _retire(self) -> None:
        """Leave servers that were given up; what one owes that was replaced ends at once."""
        for server, pipeline in list(self._pipelines.items()):
            if self.servers.has(server):
                continue
            del self._pipelines[server]
            is_replaced = server.node not in self.servers.topology.primaries
            if is_replaced and self._outages.pop(server.address).is_on:
                log.info(self._replaced, extra={"where": server.address})
            closing = asyncio.create_task(pipeline.close(at_once=is_replaced))
            self._retired.add(closing)
            closing.add_done_callback(self._retired.discard)


class _Pipeline:
    """What waits for one server, and the batch that is on its way."""

    def __init__(
        self, server: Server, servers: AsyncServers, silence_s: float, outage: Outage
    ) -> None:
        self._server = server
        self._servers = servers
        self._silence_s = silence_s
        self._outage = outage
        self._waiting: list[_Asked] = []
        self._flight: asyncio.Task[None] | None = None
        self._connection: RawConnection | None = None
        self._limit: asyncio.Timeout | None = None
        """Ends the batch on its way without its replies."""
        self._sent_at = 0.0
        """When it was sent, by the loop's clock."""
        self._watch: asyncio.TimerHandle | None = None
        """Looks whether it is overdue; one for many batches, as most have their replies at once."""
        self._is_left = False
        """Whether nobody is to wait for the server any more."""

    def add(self, asked: _Asked) -> None:
        """Send it with what else is asked for in this tick, or behind the batch on its way."""
        self._waiting.append(asked)
        if self._flight is None:
            self._flight = asyncio.create_task(self._fly())

    async def close(self, *, at_once: bool = False) -> None:
        """Close the connection, once what is under way has its replies, or at once."""
        if at_once:
            self._is_left = True
            if self._limit is not None and not self._limit.expired():
                self._limit.reschedule(0)
        while self._flight is not None:
            await asyncio.shield(self._flight)
        await self._hang_up()

    async def _fly(self) -> None:
        try:
            while self._waiting:
                slot = self._waiting[0].batcher.slot
                if self._is_left or self._servers.known(slot) is not self._server:
                    self._pass_on()
                    return
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                for asked, reply in zip(batch, await self._replies(batch), strict=True):
                    asked.answer(reply)
        finally:
            if self._flight is asyncio.current_task():
                self._flight = None

    async def _replies(self, batch: Sequence[_Asked]) -> Sequence[Any]:
        """Return a reply to each, or the error because of which there is none."""
        replies: dict[int, Any] = {}
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        if self._watch is None or self._watch.when() > self._sent_at + DOUBT_S:
            self._watch_until(DOUBT_S)
        try:
            async with asyncio.timeout(None) as limit:
                self._limit = limit
                try:
                    await self._send(batch, replies)
                finally:
                    self._limit = None
        except Exception as error:  # noqa: BLE001  whoever waits must hear of it, or waits for ever
            await self._hang_up()
            if isinstance(error, (RedisError, OSError)) and not self._is_left:
                self._servers.doubt()
                self._outage.failed(error)
            came = [replies.get(n, error) for n in range(len(batch))]
            # Whose script the server does not know was to be sent again.
            return [error if isinstance(it, NoScriptError) else it for it in came]
        else:
            if not self._is_left:
                self._outage.worked()
            return list(replies.values())

    def _watch_until(self, after_s: float) -> None:
        """Look at the batch on its way when that much time has passed since it was sent."""
        if self._watch is not None:
            self._watch.cancel()
        at = self._sent_at + min(after_s, self._silence_s)
        self._watch = asyncio.get_running_loop().call_at(at, self._look)

    def _look(self) -> None:
        """Doubt a server that has said nothing for a while, and later wait for it no more."""
        self._watch = None
        if self._limit is None or self._limit.expired():
            return
        waited_s = asyncio.get_running_loop().time() - self._sent_at
        if waited_s >= self._silence_s:
            self._limit.reschedule(0)
        elif waited_s < DOUBT_S:  # another batch than the one that was to be looked at
            self._watch_until(DOUBT_S)
        else:
            self._servers.doubt()
            self._watch_until(self._silence_s)

    def _pass_on(self) -> None:
        """Have others send what was not sent yet: meanwhile the server was given up."""
        waiting, self._waiting = self._waiting, []
        self._flight = None
        for asked in waiting:
            asked.batcher.route(asked)

    async def _send(self, batch: Sequence[_Asked], replies: dict[int, Any]) -> None:
        """Note what the server answers to each, errors among it, as it comes.

        Args:
            batch: Is sent.
            replies: Takes what came, by place and in order.

        Raises:
            redis.exceptions.RedisError, OSError: The connection is of no more use.
        """
        await self._exchange({n: it.words for n, it in enumerate(batch)}, replies)
        whole = {
            n: call.whole_command()
            for n, it in enumerate(replies.values())
            if isinstance(it, NoScriptError) and (call := batch[n].call) is not None
        }
        if whole:
            await self._exchange(whole, replies)
        if self._servers.is_watched:
            try:
                await self._servers.check(self._server)
            except LostConnection:
                replies.clear()  # none of them counts
                raise

    async def _exchange(self, commands: Mapping[int, Command], replies: dict[int, Any]) -> None:
        pool, connection = self._server.pool, self._connection
        if connection is None:
            connection = self._connection = cast("RawConnection", pool.make_connection())
        await pool.ensure_connection(connection)  # that it was closed meanwhile is nobody's concern
        await connection.send_packed_command(connection.pack_commands(commands.values()))
        for n in commands:
            try:
                replies[n] = await connection.read_response()
            except ResponseError as error:
                replies[n] = error

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
