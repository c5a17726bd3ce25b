"""TurnClient: submit, stream, result, interrupt, history, usage, forget.

How messages are put in and replies are read stands in `turnline.contracts.protocol`.
"""

import datetime as dt
import functools
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Self, cast, overload

from turnline.contracts import protocol
from turnline.contracts.connection import AsyncRedis, pipelined
from turnline.contracts.consuming import ConsumingVerbs
from turnline.contracts.conversation import Totals
from turnline.contracts.daily_spend import PARTS, Part, Question, Spend, read_spend
from turnline.contracts.errors import ResultTimeout, StoreUnavailable, TurnUnknown
from turnline.contracts.event_iterators import ConversationEvents, Events, TurnEvents
from turnline.contracts.history import read_history
from turnline.contracts.homes import Homes
from turnline.contracts.keys import ConversationKeys
from turnline.contracts.lookup import FindingVerbs
from turnline.contracts.messages import Feedback, Inbound, Interrupt, new_turn_id
from turnline.contracts.noticed_streams import noticed_streams
from turnline.contracts.opening import open_async
from turnline.contracts.patience import PATIENCE_S, at_most, patient
from turnline.contracts.producer_spans import ProducerSpans
from turnline.contracts.readers import StreamReading, TurnReading
from turnline.contracts.replication import MOST_REPLICAS, put_and_wait
from turnline.contracts.replies import (
    TERMINAL,
    AnyEvent,
    AnyTerminal,
    History,
    Receipt,
    TurnRecord,
    decode_record,
)
from turnline.contracts.scripts import run, text
from turnline.contracts.waiting import Streams

SLACK_S = 0.4
"""Seconds beyond the time given that a last answer of the server may take."""


class TurnClient(ConsumingVerbs, FindingVerbs):
    """Submit turns and read what becomes of them, from asyncio.

    Use one per process: it holds a pool of connections and may be shared by all tasks of an event
    loop. All that is waited for, thousands of open iterators too, takes two connections a server.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        *,
        shards: int = 1,
        prefix: str = "",
        limits: protocol.Limits | None = None,
        patience_s: float = PATIENCE_S,
        wait_replicas: int = 0,
        streams: Streams | None = None,
    ) -> None:
        """Wrap a redis-py client that does not decode responses.

        Args:
            redis: The connection pool to use.
            shards: Number of shards of the fleet, until the fleet itself says how many it has.
            prefix: Name of the fleet where several share a server: up to 32 letters, digits, `_`
                and `-`; must be the workers'.
            limits: How much may wait, and how long things are kept.
            patience_s: How long a verb waits for a server that is away, before it raises
                `StoreUnavailable`.
            wait_replicas: How many replicas `submit` waits for, 0.2 s and once more at most. The
                receipt says how many have the message: with fewer it may be lost with the primary.
            streams: How to wait for what comes; by default, for notices.

        Raises:
            ValueError: The prefix or the number of replicas is none.
        """
        if type(wait_replicas) is not int or not 0 <= wait_replicas <= MOST_REPLICAS:
            raise ValueError(f"wait_replicas: expected a whole number from 0 to {MOST_REPLICAS}")
        make = protocol.Requests(shards=shards, limits=limits, prefix=prefix)
        self._patient = patient(redis, patience_s)
        self._redis = cast("AsyncRedis", self._patient)
        streams = streams or noticed_streams(self._patient)
        super().__init__(make, Homes(make, streams, patience_s, self._patient.sleep), streams)
        self._wait_replicas = wait_replicas

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        url: str,
        *,
        shards: int = 1,
        prefix: str = "",
        limits: protocol.Limits | None = None,
        patience_s: float = PATIENCE_S,
        wait_replicas: int = 0,
    ) -> AsyncGenerator[Self, None]:
        """Open a client for a server, one behind sentinels, or a cluster; close it at the end.

        Args:
            url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://h:p,h:p/NAME/DB` or
                `redis+cluster://h:p,h:p` (and `rediss+...`).
            shards: As for the class.
            prefix: As for the class.
            limits: As for the class.
            patience_s: As for the class.
            wait_replicas: As for the class.

        Raises:
            InvalidAddress: The address is none.
        """
        redis = open_async(url)
        client = cls(
            redis,
            shards=shards,
            prefix=prefix,
            limits=limits,
            patience_s=patience_s,
            wait_replicas=wait_replicas,
        )
        try:
            yield client
        finally:
            await client.aclose()
            await redis.aclose()

    async def aclose(self) -> None:
        """End all waiting. The redis-py client that was given is left open."""
        await self._streams.aclose()

    async def submit(self, message: Inbound | bytes) -> Receipt:
        """Put one message into its conversation: one round trip, one script.

        Submitting the same message again, for instance after a lost connection, is safe: the
        answer is then `duplicate`.

        Raises:
            InvalidMessage: The message breaks the contract; nothing was sent.
            Refused: Nothing was accepted; see `retry_after_s`.
            StoreUnavailable: No server took it; it may have been accepted all the same.
            TurnIdReused: The turn id was used before for another content.

        Source: contracts/scripts/submit.lua
        """
        with ProducerSpans(self._make, [message]) as sending:
            put = self._put if self._wait_replicas else self._put_one
            outcomes = await self._homes.put(sending.submissions, put)
            (outcome,) = sending.outcomes(outcomes)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    async def submit_many(self, messages: Sequence[Inbound | bytes]) -> list[Receipt | Exception]:
        """Put many messages in with one round trip; outcomes in the order given.

        Each message stands alone: a refused one has its error in its place, the others are
        accepted all the same. Messages of one conversation keep their order.

        Raises:
            InvalidMessage: One of the messages breaks the contract; nothing was sent.
        """
        with ProducerSpans(self._make, messages) as sending:
            return sending.outcomes(await self._homes.put(sending.submissions, self._put))

    async def _put_one(
        self, submissions: Sequence[protocol.Submission]
    ) -> list[Receipt | Exception]:
        (submission,) = submissions
        return [submission.outcome(await run(self._redis, submission.call))]

    async def _put(self, submissions: Sequence[protocol.Submission]) -> list[Receipt | Exception]:
        """Put messages in with one round trip, and wait for replicas if that is asked for."""
        if not submissions:
            return []
        if self._wait_replicas:
            return await put_and_wait(self._patient, submissions, self._wait_replicas)
        teach = ("SCRIPT LOAD", submissions[0].call.script.text)
        commands = [teach, *(it.call.words for it in submissions)]
        _, *replies = await pipelined(self._redis, commands)
        return [it.outcome(reply) for it, reply in zip(submissions, replies, strict=True)]

    async def ask(
        self,
        conversation_id: str,
        text: str,
        *,
        timeout_s: float = 600,
        response_type: type[Any] | None = None,
        agent: str | None = None,
    ) -> AnyTerminal:
        """Submit a user message and wait for the event that ends its turn.

        Args:
            conversation_id: Whose turn.
            text: What the user says.
            timeout_s: How long to wait.
            response_type: A struct or another type with a JSON Schema; the reply is JSON that fits
                it, and `parsed_as` of the event returns the value.
            agent: Profile of the workers' agents file for this turn.

        Raises:
            ResultTimeout: The turn goes on; its result can still be asked for.
            StoreUnavailable: It may have been accepted; no server said so in time.
        """
        message = protocol.question(conversation_id, text, response_type, agent)
        deadline_s = time.monotonic() + timeout_s
        try:
            with at_most(timeout_s + SLACK_S):  # also where the server says nothing
                receipt = await self.submit(message)
        except TimeoutError:
            raise StoreUnavailable(
                f"turn {message.turn_id} is not known to be accepted", retry_after_s=5
            ) from None
        return await self.result(receipt, timeout_s=max(0.0, deadline_s - time.monotonic()))

    @overload
    def events(self, receipt: Receipt, *, after: str | None = None) -> Events[AnyEvent]: ...
    @overload
    def events(
        self, receipt: Receipt, *, after: str | None = None, keep_alive_s: float
    ) -> Events[AnyEvent | None]: ...
    def events(
        self, receipt: Receipt, *, after: str | None = None, keep_alive_s: float | None = None
    ) -> Events[Any]:
        """Yield the events of one turn until its terminal one.

        A step of the iteration may be cancelled, as by `asyncio.wait_for`: the next one goes on.

        Args:
            receipt: From `submit`, in this or any other process.
            after: `event_id` of the last event already seen; the iteration goes on behind it.
                Behind the terminal event there is nothing. An empty one, as of an event that came
                from the turn's record, is none.
            keep_alive_s: Yield None each time that so many seconds pass without an event.

        Raises:
            InvalidCursor: `after` (or `receipt.after`) is no `event_id`; nothing was sent.
            TurnUnknown: The turn is not, or no longer, known.
        """
        after = protocol.read_cursor(after) if after else None
        start = after or protocol.read_cursor(receipt.after)
        reading = TurnReading(receipt.conversation_id, start, receipt.turn_id)
        return TurnEvents(
            *(self._streams, self._homes, reading, lambda: self.record(receipt)),
            seen=after,
            is_fresh=receipt.accepted and after is None,
            keep_alive_s=keep_alive_s,
        )

    async def text(self, receipt: Receipt) -> AsyncGenerator[str, None]:
        """Yield the whole reply so far, each time it changed; the last is the committed text.

        For callers who only want to show text: when an attempt has to be made again, the next
        value simply is the new attempt's text.

        Raises:
            TurnUnknown: The turn is not, or no longer, known.
        """
        reply = protocol.TextAssembler()
        async with aclosing(self.events(receipt)) as events:
            async for event in events:
                if reply.feed(event):
                    yield reply.text

    def follow(self, conversation_id: str, *, after: str = "$") -> Events[AnyEvent]:
        """Yield all events of a conversation, from now on or behind an `event_id`; never ends.

        A step of the iteration may be cancelled, as by `asyncio.wait_for`: the next one goes on.

        Raises:
            InvalidCursor: `after` is neither `$` nor an `event_id`; nothing was sent.
        """
        if after != "$":
            after = protocol.read_cursor(after)
        reading = StreamReading(conversation_id, after)
        return ConversationEvents(self._streams, self._homes, reading, None)

    async def result(self, receipt: Receipt, *, timeout_s: float = 600) -> AnyTerminal:
        """Wait for the event that ends a turn.

        Raises:
            ResultTimeout: It did not end in time. It goes on; ask again.
            TurnUnknown: The turn is not, or no longer, known.
        """
        protocol.read_cursor(receipt.after)  # before anything is sent
        done = None
        with suppress(TimeoutError):
            async with self._streams.within(timeout_s + SLACK_S):  # also if a server says nothing
                done = await self._result(receipt, time.monotonic() + timeout_s)
        if done is None:
            raise ResultTimeout(
                f"turn {receipt.turn_id} did not end within {timeout_s:g} s; it goes on"
            )
        return done

    async def _result(self, receipt: Receipt, deadline_s: float) -> AnyTerminal | None:
        done = (await self.record(receipt)).terminal()
        left_s = deadline_s - time.monotonic()
        if done is None and left_s > 0:
            async with aclosing(self.events(receipt, keep_alive_s=left_s)) as events:
                async for event in events:
                    if event is None or time.monotonic() > deadline_s:
                        break
                    if isinstance(event, TERMINAL):
                        return event
        return done

    async def interrupt(
        self, conversation_id: str, *, heard: str | None = None, turn_id: str | None = None
    ) -> Receipt:
        """Stop the turn at the head of a conversation; what it said so far is kept.

        Args:
            conversation_id: Whose turn.
            heard: What the user actually heard; the kept text is cut to it.
            turn_id: Idempotency key of this interrupt itself.
        """
        turn_id = turn_id or new_turn_id()
        message = Interrupt(conversation_id=conversation_id, heard=heard, turn_id=turn_id)
        return await self.submit(message)

    async def configure(self, /, conversation_id: str, **settings: Any) -> Receipt:
        """Change settings from here on, by the names of `ConversationSettings`; None clears one.

        Raises:
            InvalidMessage: An unknown setting, or a value out of range.
        """
        return await self.submit(protocol.configure_message(conversation_id, settings))

    async def feedback(
        self,
        turn: Receipt,
        score: float | None = None,
        *,
        name: str = "user_feedback",
        label: str | None = None,
        explanation: str | None = None,
        feedback_id: str | None = None,
    ) -> Receipt:
        """Rate a turn, once it has ended: the rating becomes part of its record.

        At least one of score, label and explanation says something. If the turn is not known (any
        more), the rating itself ends as `turn_failed`, with the code `unknown_turn`.

        Args:
            turn: Which; it may still be running.
            score: A finite number.
            name: What is rated, or who rates, 64 characters at most. A rating takes the place of
                an earlier one of its name.
            label: The same in a word, 64 characters at most.
            explanation: Why, 4,096 characters at most.
            feedback_id: Idempotency key of the rating itself.

        Raises:
            InvalidMessage: Nothing is said, or a value is out of range.
        """
        message = Feedback(
            conversation_id=turn.conversation_id,
            of_turn=turn.turn_id,
            name=name,
            score=score,
            label=label,
            explanation=explanation,
            turn_id=feedback_id or new_turn_id(),
        )
        return await self.submit(message)

    async def history(self, conversation_id: str) -> History:
        """Return the committed context (n messages, oldest first)."""
        look = functools.partial(read_history, self._redis, conversation_id)
        return await self._homes.read(conversation_id, look)

    async def usage(self, conversation_id: str) -> Totals:
        """Return the conversation's token and cost totals."""

        async def look(keys: ConversationKeys) -> tuple[Totals, bool]:
            asked = ("HMGET", keys.state, *protocol.TOTAL_FIELDS)
            totals = await self._redis.execute_command(*asked)
            return protocol.read_totals(totals), any(totals)

        return await self._homes.read(conversation_id, look)

    async def spend(
        self,
        *,
        since: dt.date | str | None = None,
        until: dt.date | str | None = None,
        tenant: str | None = None,
        agent: str | None = None,
        model: str | None = None,
        by: Sequence[Part] = PARTS,
    ) -> list[Spend]:
        """Return what was spent, to the tick what the ledgers of all conversations say.

        A turn's calls count on the day (UTC) on which it ends; calls without an answer count, too.
        Forgetting a conversation changes nothing here.

        Args:
            since: First day, such as `2026-11-30`; by default 30 days are summed up.
            until: Last day; by default today.
            tenant: Only this one's; `""` is what names none.
            agent: Only of this agent; `""` is without one.
            model: Only of this model.
            by: What rows are told apart by; `("tenant",)` makes one row for each tenant.

        Raises:
            ValueError: A day is none, or there are more than ten years; or a part is none.
        """
        await self._homes.refresh(at_once=True)  # shards that the fleet had at some time
        question = Question(since, until, tenant, agent, model, by)
        return await read_spend(self._redis, self._make.shards, question)

    async def record(self, receipt: Receipt) -> TurnRecord:
        """Return what is kept of a turn.

        Raises:
            TurnUnknown: The turn is not, or no longer, known.
        """

        async def look(keys: ConversationKeys) -> tuple[bytes | None, bool]:
            asked = ("HGET", keys.turns, receipt.turn_id)
            data = await self._streams.execute(keys.turns, *asked)
            return data, data is not None

        data = await self._homes.read(receipt.conversation_id, look)
        if data is None:
            raise TurnUnknown(
                f"turn {receipt.turn_id} of {receipt.conversation_id} is not known: it was never "
                "accepted, was forgotten, or is past its retention"
            )
        return decode_record(data)

    async def forget(self, conversation_id: str) -> bool:
        """Remove every trace of a conversation, also while a turn of it runs.

        Returns:
            Whether there was anything to remove.

        Source: contracts/scripts/forget.lua
        """
        count = 0
        async for shards in self._homes.every_home():
            count += await self._forget(conversation_id, shards)
        return count > 0

    async def _forget(self, conversation_id: str, shards: int) -> int:
        """Remove what a shard has of a conversation; return how many keys that were."""
        while True:
            noted = self._make.names(conversation_id, shards)[1].copies
            copies = await self._redis.execute_command("LRANGE", noted, 0, -1)
            call = self._make.forget(conversation_id, copies, shards)
            answer, gone = await run(self._redis, call)
            if text(answer) == "forgotten":
                return int(gone)
