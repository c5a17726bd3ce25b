"""One turn in the making: entries of the inbox, brought into a context by its user aggregator."""

from collections import deque
from functools import partial
from typing import Final, NamedTuple

import msgspec

from turnline.contracts import messages as inbound
from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.errors import InvalidMessage
from turnline.contracts.json_schemas import Schemas
from turnline.contracts.numbers import number
from turnline.contracts.replies import (
    AnyTerminal,
    TurnAbsorbed,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnRecord,
    TurnState,
    encode_event,
)
from turnline.contracts.trace_context import TraceContext, TurnTrace, turn_trace
from turnline.worker.effects import Entry
from turnline.worker.pipeline.aggregators import LLMUserContextAggregator
from turnline.worker.pipeline.context import Message
from turnline.worker.pipeline.frames import (
    Frame,
    InterimTranscriptionFrame,
    LLMMessagesAppendFrame,
    LLMMessagesUpdateFrame,
    OpenAILLMContextFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection, FrameProcessor
from turnline.worker.turn.inbox import Inbox

_to_message = partial(msgspec.to_builtins, enc_hook=msgspec.json.Decoder(float_hook=number).decode)
"""What a message holds as JSON of others' making becomes values as well."""
_SPEECH_EVENTS = (inbound.UserStartedSpeaking, inbound.UserStoppedSpeaking)
STATES: Final[dict[type[AnyTerminal], TurnState]] = {
    TurnCompleted: "completed",
    TurnFailed: "failed",
    TurnInterrupted: "interrupted",
    TurnAbsorbed: "absorbed",
}


class ConsumedEntry(NamedTuple):
    """An inbox entry that this turn uses up, and how it ends."""

    entry: Entry
    turn_id: str
    message: inbound.Inbound | None
    """None if it could not be decoded."""
    ending: AnyTerminal | None
    """None: it becomes part of the turn, and ends with it."""
    trace: TurnTrace


class Gate(FrameProcessor):
    """Stands behind the user aggregator and notes that an answer is wanted."""

    def __init__(self) -> None:
        """Begin closed."""
        super().__init__()
        self.wanted = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Note a context frame; everything else ends here."""
        await super().process_frame(frame, direction)
        self.wanted = self.wanted or isinstance(frame, OpenAILLMContextFrame)


class Turn:
    """Entries of the inbox on their way into the context, until an answer is wanted.

    No I/O: entries go in, frames go through the aggregator, and what each entry came to is noted.
    """

    def __init__(
        self,
        conversation_id: str,
        settings: ConversationSettings,
        user: LLMUserContextAggregator,
        *,
        since_ms: int,
        schemas: Schemas,
    ) -> None:
        """Collect through `user`, the aggregator of this turn's context.

        Args:
            conversation_id: Whose inbox it is.
            settings: As they are before this turn.
            user: Brings what is said into its context.
            since_ms: When the first attempt at this turn began, Redis' clock.
            schemas: Compiles the schemas in messages: what cannot be used ends by name.
        """
        self.conversation_id = conversation_id
        self.settings = settings
        self.settings_changed = False
        self.context_replaced = False
        self.used: list[ConsumedEntry] = []
        self.context = user.context
        self._gate = Gate()
        user.link(self._gate)
        self._user = user
        self._since_ms = since_ms
        self._schemas = schemas
        self._fragments = False

    @property
    def wants_answer(self) -> bool:
        """Whether the model is to be run."""
        return self._gate.wanted

    @property
    def is_open(self) -> bool:
        """Whether more may still join: there are fragments, or the user is speaking."""
        return self._fragments or self._user.has_pending or self._user.user_speaking

    @property
    def user_speaking(self) -> bool:
        """Whether the user started speaking and has not stopped."""
        return self._user.user_speaking

    @property
    def primary(self) -> ConsumedEntry:
        """The message that carries the reply: the last one that said something."""
        last: ConsumedEntry | None = None
        for used in reversed(self.used):
            if used.ending is None:
                if not isinstance(used.message, _SPEECH_EVENTS):
                    return used
                last = last or used
        assert last is not None, "nothing was used up"
        return last

    def unlink(self) -> None:
        """Let go of the aggregator's output: nothing more will be asked of the model."""
        self._user.unlink()

    def has_used(self, entry: Entry) -> bool:
        """Whether this entry is part of the turn."""
        return any(used.entry.entry_id == entry.entry_id for used in self.used)

    def would_answer(self, entry: Entry) -> bool:
        """Whether this entry belongs to a turn of the model (and does not only change things)."""
        match entry.message:
            case inbound.UserMessage(run=wanted) | inbound.ContextAppend(run=wanted):
                return wanted and not self._fault(entry)
            case inbound.Transcription() | inbound.UserStartedSpeaking():
                return True
            case _:
                return False

    def would_join(self, entry: Entry) -> bool:
        """Whether this entry can be part of a message that is still open."""
        return isinstance(entry.message, inbound.UserStoppedSpeaking) or self.would_answer(entry)

    def _fault(self, entry: Entry) -> str:
        """Return how a message breaks the contract, or a schema in it that cannot be used."""
        if entry.message is None:
            return entry.fault
        try:
            self._schemas.check(entry.message)
        except InvalidMessage as error:
            return str(error)
        return ""

    async def add(self, entry: Entry, *, joins_next: bool = False) -> None:
        """Use the next entry of the inbox.

        Args:
            entry: The next one, in order.
            joins_next: Treat a complete user message as a fragment of one still to come.
        """
        message = entry.message
        if (fault := self._fault(entry)) or message is None:
            self._consume(entry, None, self._failed(entry, None, "invalid_message", fault))
        elif message.conversation_id != self.conversation_id:
            text = "conversation_id: that of the inbox the message is in"
            self._consume(entry, message, self._failed(entry, message, "invalid_message", text))
        else:
            await self._add_message(entry, message, joins_next=joins_next)

    async def _add_message(
        self, entry: Entry, message: inbound.Inbound, *, joins_next: bool
    ) -> None:
        match message:
            case inbound.UserMessage():
                await self._add_user_message(entry, message, joins_next=joins_next)
            case inbound.Transcription():
                frame = TranscriptionFrame if message.final else InterimTranscriptionFrame
                self._consume(entry, message, None)
                await self._send(frame(message.text, "", ""))
            case inbound.UserStartedSpeaking():
                self._consume(entry, message, None)
                await self._send(UserStartedSpeakingFrame())
            case inbound.UserStoppedSpeaking():
                self._consume(entry, message, None)
                await self._send(UserStoppedSpeakingFrame())
            case inbound.ContextAppend():
                added = [_to_message(m) for m in message.messages]
                self._consume(entry, message, None if message.run else self._completed(message))
                await self._send(LLMMessagesAppendFrame(added, run_llm=message.run))
            case inbound.ContextReplace():
                self.context_replaced = True
                self._consume(entry, message, self._completed(message))
                await self._send(LLMMessagesUpdateFrame([_to_message(m) for m in message.messages]))
            case inbound.Configure():
                self.settings = message.settings.applied_to(self.settings)
                self.settings_changed = True
                self._consume(entry, message, self._completed(message))
            case inbound.Interrupt() | inbound.Feedback():  # see `turnline.worker.turn.ratings`
                self._consume(entry, message, self._completed(message))
            case inbound.ToolResult():
                text = "no tool call of this conversation waits for a result"
                self._consume(entry, message, self._failed(entry, message, "unknown_call", text))

    async def _add_user_message(
        self, entry: Entry, message: inbound.UserMessage, *, joins_next: bool
    ) -> None:
        content: object = message.text or [_to_message(part) for part in message.parts]
        spoken: Message = {"role": "user", "content": content}
        if not message.run:
            self._consume(entry, message, self._completed(message))
            await self._send(LLMMessagesAppendFrame([spoken]))
            return
        self._consume(entry, message, None)
        if joins_next or not message.final:
            self._fragments = True
            if message.parts:  # what is pending goes before them, and asks for no answer yet
                wanted = self._gate.wanted
                await self._user.push_aggregation()
                self._gate.wanted = wanted
                await self._send(LLMMessagesAppendFrame([spoken]))
            else:
                await self._send(TranscriptionFrame(message.text, "", ""))
            return
        self._fragments = False
        if self._user.has_pending and not message.parts:
            await self._send(TranscriptionFrame(message.text, "", ""))
            await self._user.push_aggregation()
        else:
            await self._user.push_aggregation()
            await self._send(LLMMessagesAppendFrame([spoken], run_llm=True))

    def consume_result(self, entry: Entry, message: inbound.ToolResult) -> None:
        """Use up the result of a tool call of this turn."""
        self._consume(entry, message, self._completed(message))

    def fail_unread(self, entry: Entry, code: str, text: str, *, attempt: int) -> None:
        """End a message without bringing anything of it into the context."""
        failed = self._failed(entry, entry.message, code, text)
        self._consume(entry, entry.message, msgspec.structs.replace(failed, attempt=attempt))

    async def close(self) -> None:
        """Assume that the user is done: what is pending becomes a message."""
        self._fragments = False
        await self._user.push_aggregation()
        if any(
            it.ending is None and isinstance(it.message, inbound.UserMessage) for it in self.used
        ):
            self._gate.wanted = True

    async def _send(self, frame: Frame) -> None:
        await self._user.process_frame(frame, DOWNSTREAM)

    def _consume(
        self, entry: Entry, message: inbound.Inbound | None, ending: AnyTerminal | None
    ) -> None:
        turn_id = _turn_id(entry, message)
        trace = trace_of(self.conversation_id, turn_id, entry, message, since_ms=self._since_ms)
        if ending is not None:
            ending = msgspec.structs.replace(ending, trace_id=trace.trace_id)
        self.used.append(ConsumedEntry(entry, turn_id, message, ending, trace))

    def _completed(self, message: inbound.Inbound) -> TurnCompleted:
        return TurnCompleted(
            conversation_id=self.conversation_id,
            turn_id=message.turn_id,
            metadata=message.metadata,
        )

    def _failed(
        self, entry: Entry, message: inbound.Inbound | None, code: str, text: str
    ) -> TurnFailed:
        return TurnFailed(
            conversation_id=self.conversation_id,
            turn_id=_turn_id(entry, message),
            code=code,
            message=text,
        )

    def endings(self, ending: AnyTerminal | None) -> list[tuple[ConsumedEntry, AnyTerminal]]:
        """Return how every entry used ends; `ending` is the turn's own, None if there was none."""
        into = ending.turn_id if ending is not None else None
        return [(used, used.ending or self._joined(used, ending, into)) for used in self.used]

    def _joined(
        self, used: ConsumedEntry, ending: AnyTerminal | None, into: str | None
    ) -> AnyTerminal:
        if ending is not None and used.turn_id == into:
            return ending
        return TurnAbsorbed(
            conversation_id=self.conversation_id,
            turn_id=used.turn_id,
            trace_id=used.trace.trace_id,
            metadata=used.message.metadata if used.message else {},
            into=into,
        )


async def collect(
    turn: Turn, inbox: Inbox, *, aggregation_timeout_s: float, speech_timeout_s: float
) -> bool:
    """Add entries of the inbox until an answer is wanted, or only changes are left to commit.

    Args:
        turn: The entries become part of it.
        inbox: Read again while more may follow.
        aggregation_timeout_s: Silence after which a message in pieces is assumed to be whole.
        speech_timeout_s: How long to wait in place for a user who is speaking.

    Returns:
        Whether that is so; False if the user goes on speaking, for longer than is waited here.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    waiting = deque(inbox.entries)
    rollback = inbox.pending_control("rollback")
    held_back: list[Entry] = []
    while True:
        while waiting and not turn.wants_answer:
            if turn.used and not turn.is_open and turn.would_answer(waiting[0]):
                return True  # what only changes the conversation takes effect first
            entry = waiting.popleft()
            if turn.is_open and not turn.would_join(entry):
                held_back.append(entry)  # behind this turn, unless the turn goes on after it
                continue
            for earlier in held_back:
                await turn.add(earlier)
            held_back.clear()
            if entry is rollback:
                rollback = None
            await turn.add(entry, joins_next=rollback is not None)
        if turn.wants_answer or not turn.is_open:
            return True
        timeout_s = speech_timeout_s if turn.user_speaking else aggregation_timeout_s
        if more := await inbox.wait_for_more(timeout_s):
            waiting.extend(more)
        elif turn.user_speaking:
            return False
        else:
            await turn.close()


async def collect_again(turn: Turn, inbox: Inbox, last_entry_id: str) -> None:
    """Add what an earlier attempt used: what came since belongs to another turn.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    while all(it.entry_id != last_entry_id for it in inbox.entries) and await inbox.more():
        pass
    rollback = inbox.pending_control("rollback")
    for entry in inbox.entries:
        if entry is rollback:
            rollback = None
        await turn.add(entry, joins_next=rollback is not None)
        if entry.entry_id == last_entry_id:
            break
    if not turn.wants_answer:
        await turn.close()


def _turn_id(entry: Entry, message: inbound.Inbound | None) -> str:
    """Return the id an entry was accepted under; one written past `submit` goes by its own."""
    if entry.turn_id is not None:
        return entry.turn_id
    return message.turn_id if message is not None else entry.entry_id


def trace_of(
    conversation_id: str,
    turn_id: str,
    entry: Entry,
    message: inbound.Inbound | None,
    *,
    since_ms: int,
) -> TurnTrace:
    """Return where the spans of what an entry becomes belong."""
    context = None
    if message is not None and message.traceparent is not None:
        context = TraceContext(message.traceparent, message.tracestate)
    return turn_trace(
        conversation_id,
        turn_id,
        context,
        entry_id=entry.entry_id,
        waited_ms=since_ms - entry.accepted_at_ms,
    )


def record_of(
    used: ConsumedEntry,
    ending: AnyTerminal,
    *,
    attempts: int,
    finished_at_ms: int,
    worker: str,
    messages: tuple[int, int] = (0, 0),
) -> TurnRecord:
    """Return what is kept of a turn that has ended; its messages are (first, behind the last)."""
    return TurnRecord(
        state=STATES[type(ending)],
        accepted_at_ms=used.entry.accepted_at_ms,
        after=used.entry.after,
        digest=used.entry.digest,
        deliver_at_ms=getattr(used.entry.message, "deliver_at_ms", None),
        finished_at_ms=finished_at_ms,
        attempts=attempts,
        trace_id=ending.trace_id,
        worker=worker,
        messages_from=messages[0],
        messages_to=messages[1],
        event=msgspec.Raw(encode_event(ending)),
    )
