"""What one attempt at a turn leaves: for readers, for the next attempt, for the ledger and traces.

It is handed down to the model's service, the tap and the tools, and read when the attempt is over.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import msgspec

from turnline.contracts.conversation import CallEntry, Citation, ConversationSettings
from turnline.contracts.replies import (
    ServerToolFinished,
    ServerToolStarted,
    ToolCallFinished,
    ToolCallStarted,
)
from turnline.contracts.trace_context import TurnTrace
from turnline.worker.effects import Copy
from turnline.worker.errors import LeaseLost, StoreUnavailable
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import Message, OpenAILLMContext
from turnline.worker.pipeline.frames import (
    FunctionCallFromLLM,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
)
from turnline.worker.pipeline.reply_frames import LLMServerToolFrame
from turnline.worker.pipeline.reply_items import CITATIONS
from turnline.worker.turn.checkpoints import (
    Checkpoints,
    External,
    Finished,
    Left,
    call_step,
    external_step,
    finished_step,
    left_step,
    message_step,
    rollback_step,
)
from turnline.worker.turn.event_writer import EventWriter
from turnline.worker.turn.grants import Grants
from turnline.worker.turn.ledger import Ledger, Payer, entry_of, note_of
from turnline.worker.turn.observer import AttemptObserver

BETWEEN_ANSWERS = "\n\n"
"""Stands between the texts of one turn where tools ran in between."""


def text_of(messages: Iterable[Message]) -> str:
    """Return what the assistant says in messages."""
    return BETWEEN_ANSWERS.join(texts_of(messages))


def texts_of(messages: Iterable[Message]) -> list[str]:
    """Return what it says in each, where that is text."""
    texts = (it.get("content") for it in messages if it.get("role") == "assistant")
    return [text for text in texts if isinstance(text, str) and text.strip()]


def citations_of(messages: Iterable[Message]) -> tuple[Citation, ...]:
    """Return the sources of what the assistant says in messages, as parts of `text_of` them.

    Of a text that was cut, those are left out that name a part which is gone.
    """
    found: list[Citation] = []
    before = 0
    for message in messages:
        for text in texts_of([message]):
            cited = (msgspec.convert(it, Citation) for it in message.get(CITATIONS) or ())
            found += [
                msgspec.structs.replace(it, start=before + it.start, end=before + it.end)
                if it.end
                else it
                for it in cited
                if it.end <= len(text)
            ]
            before += len(text) + len(BETWEEN_ANSWERS)
    return tuple(found)


class TurnFacts(NamedTuple):
    """Which attempt it is, at which turn."""

    conversation_id: str
    turn_id: str
    attempt: int
    trace: TurnTrace
    payer: Payer = Payer()

    @property
    def ids(self) -> dict[str, Any]:
        """The fields that all events of the attempt have in common."""
        return {
            "conversation_id": self.conversation_id,
            "turn_id": self.turn_id,
            "attempt": self.attempt,
            "trace_id": self.trace.trace_id,
        }


class AttemptLog:
    """Events, checkpoints, ledger and observer of one attempt. The service's `CallObserver`."""

    def __init__(
        self,
        facts: TurnFacts,
        writer: EventWriter,
        checkpoints: Checkpoints,
        ledger: Ledger,
        observer: AttemptObserver,
        *,
        context: OpenAILLMContext,
        settings: ConversationSettings,
        opening: Sequence[bytes],
        grants: Grants,
    ) -> None:
        """Begin with no call.

        Args:
            facts: Which attempt it is.
            writer: Publishes events.
            checkpoints: What earlier attempts left stands there already.
            ledger: Gets an entry for each call.
            observer: Learns what happens.
            context: That the model answers.
            settings: By which it is asked.
            opening: Steps before the first response of the turn; none if one is safe already.
            grants: Lets its calls be made.
        """
        self.facts = facts
        self.writer = writer
        self.context = context
        self._checkpoints = checkpoints
        self._ledger = ledger
        self._observer = observer
        self._settings = settings
        self._opening = opening
        self.grants = grants
        self._unsent: LLMCall | None = None
        """The call that waits for its grant."""
        self._calls: list[LLMCall] = []
        """Model calls of this attempt that are not in the ledger yet."""
        self._separate = False
        self.has_shown = False
        """Whether readers have seen anything of the reply to the last call."""

    # -- the model ------------------------------------------------------------------------------

    def on_call_started(self, call: LLMCall) -> Awaitable[None]:
        """Announce a call and leave a note of it; its request is sent once that is safe."""
        return self._begin(call) if self.grants.has_spare else self._wait_and_begin(call)

    async def _wait_and_begin(self, call: LLMCall) -> None:
        self._unsent = call
        await self.grants.wait()
        self._unsent = None
        await self._begin(call)

    def _begin(self, call: LLMCall) -> Awaitable[None]:
        self.grants.begin(call)
        self._observer.call_started(call, self.context, self._settings)
        if any(it.error for it in self._calls):  # a request was refused, and this is the mended one
            self.abandon_calls()
        self._calls.append(call)
        self.has_shown = False
        return self._note(call)

    async def _note(self, call: LLMCall) -> None:
        facts = self.facts
        await self.save_abandoned()  # the note takes the place of the one before
        await self.writer.begin_call(note_of(call, facts.turn_id, facts.attempt, facts.payer))
        self.grants.sent()

    async def on_call_finished(self, call: LLMCall) -> None:
        """Take note that a call is over; what it cost is read when the attempt ends."""
        if call is not self._unsent:
            self.grants.settle(call)
            self._observer.call_finished(call)

    def response_started(self) -> None:
        """Keep the text of this response apart from that of the one before."""
        self._separate = self.writer.chars > 0

    def on_text(self, text: str) -> None:
        """Show what the model says."""
        self.has_shown = True
        if self._separate:
            self._separate = False
            self.writer.text(BETWEEN_ANSWERS)
        self.writer.text(text)
        self._observer.on_text(text)

    def on_thought(self, text: str) -> None:
        """Show a piece of what the model tells of its thoughts."""
        self.has_shown = True
        self.writer.thought(text)

    def server_tool(self, frame: LLMServerToolFrame) -> None:
        """Show that a tool which the provider runs was called, or is done."""
        self.has_shown = True
        ids, call_id, ok = self.facts.ids, frame.call_id, frame.ok
        if ok is None:
            self.writer.event(ServerToolStarted(**ids, call_id=call_id, name=frame.tool))
        else:
            self.writer.event(ServerToolFinished(**ids, call_id=call_id, name=frame.tool, ok=ok))

    # -- its tools ------------------------------------------------------------------------------

    async def response(self, calls: Sequence[FunctionCallFromLLM]) -> None:
        """Make the model's response safe before any of its calls runs, and show them.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        spent, context = self._entries(), self.context
        message = context.get_llm_adapter().encode_message(context.new_messages[-1 - len(calls)])

        def saved() -> None:
            self._ledger.keep(spent)
            self._calls, self._opening = self._calls[len(spent) :], ()

        steps = [*self._opening, *map(call_step, spent), message_step(message)]
        await self._checkpoints.save(steps, on_saved=saved)
        for call in calls:
            self.show_call(call)

    def show_call(self, call: FunctionCallFromLLM) -> None:
        """Show readers that a tool is called."""
        self.writer.event(
            ToolCallStarted(
                **self.facts.ids,
                call_id=call.tool_call_id,
                name=call.function_name,
                arguments=call.raw_arguments or "{}",
            )
        )

    def tool_started(self, frame: FunctionCallInProgressFrame) -> None:
        """Take note that a call begins to run."""
        self._observer.tool_started(frame.tool_call_id, frame.function_name, frame.arguments)

    def tool_finished(self, frame: FunctionCallResultFrame) -> None:
        """Take note that a call has its result."""
        self._observer.tool_finished(frame.tool_call_id, frame.result, frame.failure)

    def tool_runs(self, call_id: str) -> AbstractContextManager[None]:
        """Hold while a function runs: what it does belongs to its call."""
        return self._observer.tool_runs(call_id)

    def traceparent(self, call_id: str) -> str:
        """Return the trace context of a call; that of the turn, if nobody traces calls."""
        trace = self.facts.trace
        turns = f"00-{trace.trace_id}-{trace.span_id}-{int(trace.sampled):02d}"
        return self._observer.traceparent(call_id) or turns

    async def tool_result(self, name: str, result: Finished, *, ok: bool) -> None:
        """Make a result safe, and show that it is there.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        await self._checkpoints.save([finished_step(result)])
        event = ToolCallFinished(**self.facts.ids, call_id=result.call_id, name=name, ok=ok)
        self.writer.event(event)

    async def sent_out(self, call: External, request: Copy) -> None:
        """Publish a call for whoever has the tool; once, and noted in the same moment.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        await self._checkpoints.save([external_step(call)], copies=[request])

    # -- its end --------------------------------------------------------------------------------

    def keep_calls(self) -> None:
        """Enter the calls since the last response that is safe: they made the answer."""
        self._ledger.keep(self._entries())
        self._calls = []

    def abandon_calls(self) -> None:
        """Enter them as ones that led to nothing."""
        self._ledger.abandon(self._entries())
        self._calls = []

    @property
    def calls(self) -> list[CallEntry]:
        """Entries of all calls of the turn so far, of this attempt and earlier ones."""
        return [*self._ledger.entries, *self._entries()]

    def _entries(self) -> list[CallEntry]:
        facts = self.facts
        return [entry_of(it, facts.turn_id, facts.attempt, facts.payer) for it in self._calls]

    async def save_abandoned(self, left: Iterable[Left] = ()) -> None:
        """Make the calls safe that led to nothing, and which models are left for others.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        if steps := [*map(call_step, self._ledger.note_abandoned()), *map(left_step, left)]:
            await self._checkpoints.save(steps)

    async def flush(self) -> None:
        """Wait until what is being made safe is safe, or is known not to be."""
        await self._checkpoints.flush()

    async def hand_over(self) -> None:
        """Leave a note of what was spent, if the server still allows it."""
        if not self._calls:
            return
        try:
            async with asyncio.timeout(1):
                await self._checkpoints.flush()
                self.abandon_calls()
                await self.save_abandoned()
        except (LeaseLost, StoreUnavailable, TimeoutError):
            pass  # the call that was open is noted as unknown by the next attempt

    async def roll_back(self, entry_id: str) -> None:
        """Forget what was said and done, as this entry asks; what was spent stays known.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        self.abandon_calls()
        if not self._opening:  # a response is safe
            await self._checkpoints.save([rollback_step(entry_id)])
            self._ledger.roll_back()
        await self.save_abandoned()
