"""Steps of a running turn that are safe already: what an attempt leaves for the next one.

A step is one byte that says what it is, and what follows it:

    m<message>       an assistant message with tool calls, JSON; its calls are without results
    r<Finished>      the result of a call, JSON
    w<External>      a call that was sent out, JSON
    c<ledger entry>  a model call, JSON: kept unless it says `abandoned`; where it was refused for
                     earlier reasoning, all reasoning from before it is out of the context
    u<entry id>      the last entry of the inbox that belongs to this turn
    f<Left>          a model that failed, or a member of the pool, JSON: others are asked before
    l<Lost>          an attempt that ended without a word, JSON; noted by the load that found out
    x<entry id>      rolled back for that entry: of what stands before it only the spend counts,
                     as abandoned

Source: docs/adr/0011-steps-beside-the-context.md
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from turnline.contracts.conversation import CallEntry
from turnline.contracts.numbers import number
from turnline.worker.effects import Copy
from turnline.worker.errors import REASONING_REFUSED
from turnline.worker.lease import Lease
from turnline.worker.pipeline.context import IN_PROGRESS, Message
from turnline.worker.pipeline.reply_items import REPLY_ITEMS
from turnline.worker.turn.ports import Store


class Finished(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call's result, as the model sees it."""

    call_id: str
    content: str
    wants_run: bool = True
    """Whether the model is to run on it."""
    external: bool = msgspec.field(default=False, name="elsewhere")
    """Whether it came in by a `tool_result`."""


class External(msgspec.Struct, frozen=True):
    """A call that somebody else runs."""

    call_id: str
    deadline_at_ms: int
    """Redis' clock."""


class Lost(msgspec.Struct, frozen=True):
    """An attempt whose worker was killed, or lost its lease: what it did stands before this."""

    attempt: int
    began_at_ms: int
    """Redis' clock."""
    found_at_ms: int
    """When the next one began, Redis' clock."""


class Left(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that the turn has left for the next one of its list, or a member of the pool."""

    model: str
    """Empty if it is a member."""
    code: str
    """Of the error."""
    member: str = ""
    """Its `ident`."""


_encode = msgspec.json.Encoder().encode
decode_message = msgspec.json.Decoder(dict, float_hook=number).decode
decode_finished = msgspec.json.Decoder(Finished).decode
decode_left = msgspec.json.Decoder(Left).decode
decode_lost = msgspec.json.Decoder(Lost).decode
decode_external = msgspec.json.Decoder(External).decode


class _Spent(msgspec.Struct):
    error: str | None = None


_decode_spent = msgspec.json.Decoder(_Spent).decode


class Progress(NamedTuple):
    """How far earlier attempts came."""

    messages: Sequence[Message] = ()
    """Of this turn, behind the user's: as the model left them, results filled in."""
    last_entry: str | None = None
    """The last entry of the inbox that belongs to this turn; None if nothing is safe yet."""
    wants_run: bool = False
    """Whether a result of the last response wants the model to run."""
    deadlines: Mapping[str, int] = {}
    """Calls that were sent out: call id to deadline, Redis' clock, ms."""
    answered: frozenset[str] = frozenset()
    """Of these, the ones whose `tool_result` was used."""
    reasoning_refused: bool = False
    """Whether the model could not read the reasoning of earlier turns, and was asked without it."""
    left: tuple[Left, ...] = ()
    """Models and members of the pool that failed, the last one last."""


def progress_of(steps: Sequence[bytes], rollback: str | None) -> Progress:
    """Read steps.

    Args:
        steps: In order.
        rollback: Entry that asks for a rollback, if any: what comes before its `x` is void.
    """
    messages: list[Message] = []
    last_entry: str | None = None
    wants_run = False
    deadlines: dict[str, int] = {}
    answered: set[str] = set()
    refused = False
    left = tuple(decode_left(it[1:]) for it in steps if it[:1] == b"f")  # a rollback mends nothing
    done = None
    for step in steps:
        kind, data = step[:1], step[1:]
        match kind:
            case b"x":
                done = data.decode()
                messages, last_entry, wants_run = [], None, False
                deadlines.clear()
                answered.clear()
            case b"u":
                last_entry = data.decode()
            case b"m":
                message = decode_message(data)
                messages += [message, *_placeholders(message)]
                wants_run = False
            case b"r":
                finished = decode_finished(data)
                _fill_in(messages, finished)
                wants_run = wants_run or finished.wants_run
                if finished.external:
                    answered.add(finished.call_id)
            case b"w":
                sent = decode_external(data)
                deadlines[sent.call_id] = sent.deadline_at_ms
            case b"c" if _decode_spent(data).error == REASONING_REFUSED:
                refused = True  # also behind a rollback: the model still cannot read it
                _drop_items(messages)
            case _:
                pass
    if rollback is not None and done != rollback:
        return Progress(reasoning_refused=refused, left=left)
    found = frozenset(answered)
    return Progress(messages, last_entry, wants_run, deadlines, found, refused, left)


def _placeholders(message: Message) -> list[Message]:
    return [
        {"role": "tool", "content": IN_PROGRESS, "tool_call_id": call["id"]}
        for call in message.get("tool_calls") or ()
    ]


def _drop_items(messages: Sequence[Message]) -> None:
    for message in messages:
        message.pop(REPLY_ITEMS, None)


def _fill_in(messages: Sequence[Message], finished: Finished) -> None:
    for message in reversed(messages):
        if message.get("tool_call_id") == finished.call_id:
            message["content"] = finished.content
            return


class Checkpoints:
    """The steps of one conversation's running turn, under one lease."""

    def __init__(self, store: Store, lease: Lease, safe: Sequence[bytes]) -> None:
        """Go on behind what is safe."""
        self.safe = [*safe]
        self._store = store
        self._lease = lease
        self._saving = asyncio.Lock()

    def is_rolled_back(self, entry_id: str) -> bool:
        """Whether the rollback that this entry asks for has been noted."""
        return rollback_step(entry_id) in self.safe

    async def flush(self) -> None:
        """Wait until whatever is on its way is safe, or is known not to be."""
        async with self._saving:
            pass

    async def save(
        self,
        steps: Sequence[bytes],
        *,
        copies: Sequence[Copy] = (),
        on_saved: Callable[[], None] | None = None,
    ) -> None:
        """Make steps safe, one call after the other; also those of a caller that is cancelled.

        Args:
            steps: In order.
            copies: Entries for shared streams, written in the same moment.
            on_saved: Called once they are safe.

        Raises:
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        saving = asyncio.create_task(self._save(steps, copies, on_saved))
        saving.add_done_callback(_consume_exception)
        await asyncio.shield(saving)

    async def _save(
        self, steps: Sequence[bytes], copies: Sequence[Copy], on_saved: Callable[[], None] | None
    ) -> None:
        async with self._saving:
            safe = await self._store.checkpoint(self._lease, len(self.safe), steps, copies)
            assert safe == len(self.safe) + len(steps), "steps of somebody else"
            self.safe += steps
            if on_saved is not None:
                on_saved()


def _consume_exception(saving: "asyncio.Task[None]") -> None:
    """Mark an error as retrieved: the task that waits for it may be gone."""
    if not saving.cancelled():
        saving.exception()


def message_step(encoded: bytes) -> bytes:
    """Return the step of an assistant message."""
    return b"m" + encoded


def call_step(call: CallEntry) -> bytes:
    """Return the step of a model call."""
    return b"c" + _encode(call)


def left_step(left: Left) -> bytes:
    """Return the step of a model that is left."""
    return b"f" + _encode(left)


def finished_step(finished: Finished) -> bytes:
    """Return the step of a result."""
    return b"r" + _encode(finished)


def external_step(sent: External) -> bytes:
    """Return the step of a call that was sent out."""
    return b"w" + _encode(sent)


def last_entry_step(entry_id: str) -> bytes:
    """Return the step that names the last entry of the turn."""
    return b"u" + entry_id.encode()


def rollback_step(entry_id: str) -> bytes:
    """Return the step that rolls back what stands before it."""
    return b"x" + entry_id.encode()
