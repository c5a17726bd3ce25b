"""The verbs of `TurnClient` for who consumes: replies that were asked for, and tool calls."""

import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any, TypeVar

from turnline.contracts import protocol
from turnline.contracts.errors import TurnIdReused
from turnline.contracts.homes import Homes
from turnline.contracts.keys import ShardKeys
from turnline.contracts.messages import Inbound
from turnline.contracts.readers import TAKE_OVER_S, GroupReader, read_terminal, read_tool_call
from turnline.contracts.replies import AnyTerminal, Receipt, ToolRequest
from turnline.contracts.waiting import Streams

T = TypeVar("T")


class ConsumingVerbs(ABC):
    """What services do that consume what conversations send out."""

    def __init__(self, make: protocol.Requests, homes: Homes, streams: Streams) -> None:
        """Use a client's parts."""
        self._make = make
        self._homes = homes
        self._streams = streams

    @abstractmethod
    async def submit(self, message: Inbound | bytes) -> Receipt:
        """See `TurnClient.submit`."""

    def replies(
        self,
        stream: str,
        group: str,
        consumer: str,
        *,
        batch: int = 32,
        take_over_s: float | None = TAKE_OVER_S,
    ) -> AsyncGenerator[AnyTerminal, None]:
        """Consume the terminal events that name `stream` as their `reply_to`, at least once each.

        An event is acknowledged when the next one is asked for; what a consumer of this name took
        and did not acknowledge is delivered to it again first. What a consumer of another name
        left so for long is taken over.

        Args:
            stream: Name as given in `reply_to`.
            group: Consumers of one group share the events.
            consumer: Name of this consumer; keep it stable over restarts.
            batch: Events fetched at once.
            take_over_s: Seconds after which an event that another consumer was given, and has not
                acknowledged, counts as abandoned: more than a whole batch takes. None: never.
        """
        return self._consume(
            lambda shard: shard.reply_prefix + stream,
            read_terminal,
            (group, consumer),
            batch,
            take_over_s,
        )

    def tool_calls(
        self,
        group: str,
        consumer: str,
        *,
        names: Collection[str] | None = None,
        batch: int = 32,
        take_over_s: float | None = TAKE_OVER_S,
    ) -> AsyncGenerator[ToolRequest, None]:
        """Consume the tool calls that no worker can run, at least once each; see `answer`.

        A call is acknowledged when the next one is asked for; what a consumer of this name took
        and did not acknowledge is delivered to it again first. What a consumer of another name
        left so for long is taken over. Calls past their deadline are left out: nobody waits for
        them any more.

        Args:
            group: Consumers of one group share the calls; use one per service.
            consumer: Name of this consumer; keep it stable over restarts.
            names: Tools that this service has; None for all.
            batch: Calls fetched at once.
            take_over_s: As in `replies`.
        """
        read = functools.partial(read_tool_call, names=names)
        return self._consume(
            lambda shard: shard.tool_calls, read, (group, consumer), batch, take_over_s
        )

    async def answer(
        self, call: ToolRequest, result: Any = None, *, is_error: bool = False
    ) -> Receipt:
        """Hand in the result of a tool call, once: later answers to the same call change nothing.

        Args:
            call: From `tool_calls`, in this or any other process.
            result: Any JSON value.
            is_error: Whether `result` says why there is none.

        Raises:
            InvalidMessage: The result is no JSON value, or too large.
            Refused: Nothing was accepted; see `retry_after_s`.
        """
        message = call.result(result, is_error=is_error)
        try:
            return await self.submit(message)
        except TurnIdReused:
            return Receipt(
                conversation_id=message.conversation_id, turn_id=message.turn_id, status="duplicate"
            )

    def _consume(
        self,
        stream_of: Callable[[ShardKeys], str],
        read: Callable[[bytes, str], T | None],
        group: tuple[str, str],
        batch: int,
        idle_s: float | None,
    ) -> AsyncGenerator[T, None]:
        async def names() -> Sequence[str]:
            await self._homes.refresh()
            return [*map(stream_of, self._make.shards)]

        kept_ms = self._make.limits.retention_ms
        reader = GroupReader(
            *(self._streams, names, read, group), batch=batch, idle_s=idle_s, retention_ms=kept_ms
        )
        return reader.items()
