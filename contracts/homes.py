"""Finds the shards of conversations for one client, also while the fleet is resharded.

Nothing is asked for it as long as all is where it is expected: a shard that is asked to take a
message refuses what is not its own, and whoever finds nothing asks how many shards there are.

Source: docs/adr/0038-a-fleet-changes-its-number-of-shards.md
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

from turnline.contracts.errors import StoreIncompatible, StoreUnavailable
from turnline.contracts.keys import ConversationKeys
from turnline.contracts.layout import FIELDS, Elsewhere, Layout, read_layout
from turnline.contracts.protocol import Requests, Submission
from turnline.contracts.replies import Receipt
from turnline.contracts.waiting import Streams

T = TypeVar("T")
TRUST_S: Final = 60.0
"""Longest time for which a reader trusts the number of shards that it knows."""
TRUST_WHILE_MOVING_S: Final = 1.0
"""The same while conversations are being moved."""
_IN_A_ROW: Final = 4
"""Refusals by shards, one after the other, before there is a pause: they are being told."""
_PAUSE_S: Final = 0.02
_DISAGREE: Final = "the conversation is being moved, or its shards disagree on how many there are"


class Homes:
    """Where the conversations of a fleet are."""

    def __init__(
        self,
        make: Requests,
        streams: Streams,
        patience_s: float,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Know nothing yet but the number of shards that the client was given.

        Args:
            make: Goes by what is learnt here.
            streams: Sends what is asked.
            patience_s: How long a message is kept for a conversation that is being moved.
            sleep: Waits for so many seconds.
        """
        self._patience_s = patience_s
        self._sleep = sleep
        self._make = make
        self._streams = streams
        self._is_told = False
        self._asked_at_s = -TRUST_S

    @property
    def layout(self) -> Layout:
        """What is known; another object each time that it changes."""
        return self._make.layout

    async def put(
        self,
        submissions: Sequence[Submission],
        send: Callable[[Sequence[Submission]], Awaitable[list[Receipt | Exception]]],
    ) -> list[Receipt | Exception]:
        """Put messages in where their conversations are; return what became of each, in order.

        Args:
            submissions: To where they are expected.
            send: Puts them in there; `Elsewhere` where a conversation is not.
        """
        if not self._is_told:  # a shard that nobody serves would take it
            await self._ask()
        layout = self.layout
        submissions = [it if it.home.layout is layout else it.by(layout) for it in submissions]
        outcomes: dict[int, Receipt | Exception] = {}
        is_careful, refusals, ends_s = bool(layout.before), 0, 0.0
        while len(outcomes) < len(submissions):
            pending = [n for n in range(len(submissions)) if n not in outcomes]
            if is_careful:  # a message must not come in before one that has to be sent again
                first = {submissions[n].conversation_id: n for n in reversed(pending)}
                pending = sorted(first.values())
            answers = await send([submissions[n] for n in pending])
            is_refused = is_moving = False
            for n, answer in zip(pending, answers, strict=True):
                if not isinstance(answer, Elsewhere):
                    outcomes[n] = answer
                    continue
                is_careful = is_refused = True
                is_moving |= answer.is_here and submissions[n].home.layout == answer.layout
                submissions[n] = submissions[n].following(answer)
                self._learn(answer.layout)
            refusals += is_refused
            if is_moving or (is_refused and refusals % _IN_A_ROW == 0):
                ends_s = ends_s or time.monotonic() + self._patience_s
                if time.monotonic() > ends_s:
                    unknown = StoreUnavailable(_DISAGREE, retry_after_s=1)
                    return [outcomes.get(n, unknown) for n in range(len(submissions))]
                await self._sleep(_PAUSE_S)
        return [outcomes[n] for n in range(len(submissions))]

    async def read(
        self, conversation_id: str, look: Callable[[ConversationKeys], Awaitable[tuple[T, bool]]]
    ) -> T:
        """Return what is found where the conversation is; if it is nowhere, what is found there.

        Args:
            conversation_id: Whose.
            look: Reads by these names; also returns whether the conversation is there.
        """
        await self.refresh()
        while True:
            layout = self.layout
            first, *others = (self._make.names(conversation_id, it)[1] for it in layout.homes)
            found, is_there = await look(first)
            for keys in others:
                found, is_there = (found, True) if is_there else await look(keys)
            if is_there:
                return found
            await self._ask()
            if self.layout is layout:
                return found

    async def events_of(self, conversation_id: str) -> str:
        """Return the stream of a conversation's events, by what is known."""
        for shards in self.layout.homes[:-1]:
            keys = self._make.names(conversation_id, shards)[1]
            if await self._streams.execute(keys.log, "LRANGE", keys.log, 0, 0):
                return keys.events
        return self._make.names(conversation_id)[1].events

    async def every_home(self) -> AsyncGenerator[int, None]:
        """Yield all numbers of shards by which something may be left; again if they change."""
        layout: Layout | None = None
        while layout is not self.layout:
            await self._ask()
            layout = self.layout
            for shards in layout.every:
                yield shards
            await self._ask()

    async def refresh(self, *, at_once: bool = False) -> None:
        """Ask how many shards there are, if that was not asked for a while."""
        limit_s = 0.0 if at_once else TRUST_WHILE_MOVING_S if self.layout.before else TRUST_S
        if not self._is_told or time.monotonic() - self._asked_at_s >= limit_s:
            await self._ask()

    async def _ask(self) -> None:
        """Ask; a fleet that has not begun, or does not say, leaves things as they are."""
        asked_at_s, self._asked_at_s = self._asked_at_s, time.monotonic()
        fleet = self._make.shards[0].fleet
        try:
            values = await self._streams.execute(fleet, "HMGET", fleet, *FIELDS)
        except StoreIncompatible:  # others may have written there
            values = (None,) * len(FIELDS)
        except BaseException:  # a cancellation, too: nobody was told, so the next one asks again
            self._asked_at_s = asked_at_s
            raise
        self._is_told = True
        if (layout := read_layout(cast("Sequence[Any]", values))) is not None:
            self._learn(layout)

    def _learn(self, layout: Layout) -> None:
        if layout != self.layout:
            self._make.learn(layout)
