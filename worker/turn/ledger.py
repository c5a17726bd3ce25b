"""What one turn's model calls cost, and which of it belongs to the answer."""

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from turnline.contracts.conversation import CallEntry, ConversationSettings, Usage, UsageState
from turnline.contracts.messages import ContextAppend, Inbound, Transcription, UserMessage
from turnline.worker.effects import ConversationSnapshot
from turnline.worker.pipeline.calls import LLMCall

_decode_call = msgspec.json.Decoder(CallEntry).decode
_LEAST_CERTAIN_FIRST: Sequence[UsageState] = ("unknown", "estimated", "reported")


class Payer(NamedTuple):
    """Whose spend the calls of a turn are."""

    tenant: str = ""
    """Empty: nobody's in particular."""
    agent: str = ""
    """Empty: none."""
    is_batch: bool = False
    """Whether others go first."""


class Ledger:
    """One entry for each call of all attempts at a turn: kept, or abandoned."""

    def __init__(self, loaded: ConversationSnapshot) -> None:
        """Begin with what earlier attempts left."""
        self.kept: list[CallEntry] = []
        """Calls whose answers are part of what is committed."""
        self.abandoned: list[CallEntry] = []
        """Calls of this attempt that led to nothing."""
        self._noted: list[CallEntry] = []
        for step in loaded.steps:
            if step[:1] == b"c":
                entry = _decode_call(step[1:])
                if entry.state == "unknown" and entry.error is None:  # a note of a lost worker's
                    entry = msgspec.structs.replace(entry, usage=Usage(unpriced_calls=1))
                (self._noted if entry.abandoned else self.kept).append(entry)
            elif step[:1] == b"x":
                self.roll_back()

    def keep(self, calls: Iterable[CallEntry]) -> None:
        """These calls made the answer."""
        self.kept.extend(calls)

    def abandon(self, calls: Iterable[CallEntry]) -> None:
        """These calls led to nothing."""
        self.abandoned.extend(msgspec.structs.replace(call, abandoned=True) for call in calls)

    def roll_back(self) -> None:
        """What was kept so far led to nothing; this is noted already, or is committed next."""
        self._noted += [msgspec.structs.replace(call, abandoned=True) for call in self.kept]
        self.kept = []

    def note_abandoned(self) -> list[CallEntry]:
        """Return the calls of this attempt that led to nothing; they count as noted from now on."""
        noted, self.abandoned = self.abandoned, []
        self._noted += noted
        return noted

    def failures(self, turn_id: str) -> list[CallEntry]:
        """Return the calls of a turn, of this attempt and earlier ones, that ended in an error."""
        calls = (*self._noted, *self.abandoned)
        return [c for c in calls if c.turn_id == turn_id and c.error not in {None, "cancelled"}]

    def has_calls_of(self, attempt: int) -> bool:
        """Whether an attempt has made calls."""
        return any(it.attempt == attempt for it in self.entries)

    def wasted_tokens(self, turn_id: str) -> int:
        """Return what calls of a turn used up that led to nothing, counted or estimated."""
        spent = (it.usage for it in (*self._noted, *self.abandoned) if it.turn_id == turn_id)
        # Providers differ in whether reasoning is part of the completion.
        return sum(max(it.total_tokens, it.prompt_tokens + it.completion_tokens) for it in spent)

    @property
    def entries(self) -> list[CallEntry]:
        """All of it, for the commit."""
        return [*self._noted, *self.abandoned, *self.kept]

    @property
    def usage(self) -> Usage:
        """Sum over what made the answer."""
        return sum((call.usage for call in self.kept), Usage())

    @property
    def usage_state(self) -> UsageState:
        """The least certain state among what made the answer."""
        certainties = (_LEAST_CERTAIN_FIRST.index(call.state) for call in self.kept)
        return _LEAST_CERTAIN_FIRST[min(certainties, default=-1)]


def payer_of(message: Inbound | None, settings: ConversationSettings) -> Payer:
    """Return whose spend a turn is: the message says so, else the conversation's settings."""
    tenant, agent, is_batch = "", None, False
    if isinstance(message, UserMessage | ContextAppend | Transcription):
        tenant = message.tenant
    if isinstance(message, UserMessage | ContextAppend):
        agent, is_batch = message.agent, message.priority == "batch"
    return Payer(tenant or settings.tenant or "", agent or settings.agent or "", is_batch)


def entry_of(call: LLMCall, turn_id: str, attempt: int, payer: Payer) -> CallEntry:
    """Return a call's entry in the ledger."""
    return CallEntry(
        call_id=f"{turn_id}/{attempt}/{call.number}",
        turn_id=turn_id,
        attempt=attempt,
        model=call.response_model or call.model,
        state=call.usage_state,
        usage=usage_of(call),
        finish_reason=call.finish_reason,
        error=call.error,
        response_id=call.response_id,
        started_at_ms=_wall_ms(call.started_at),
        duration_ms=int((call.duration_s or 0) * 1000),
        tenant=payer.tenant,
        agent=payer.agent,
    )


def note_of(call: LLMCall, turn_id: str, attempt: int, payer: Payer) -> CallEntry:
    """Return what is noted of a call before its request is sent: all that a lost worker leaves."""
    return CallEntry(
        call_id=f"{turn_id}/{attempt}/{call.number}",
        turn_id=turn_id,
        attempt=attempt,
        model=call.model,
        state="unknown",
        abandoned=True,
        started_at_ms=_wall_ms(call.started_at),
        tenant=payer.tenant,
        agent=payer.agent,
    )


def usage_of(call: LLMCall) -> Usage:
    """Return what a call used, reported or estimated, and whether its cost is known."""
    counted = call.counted_usage
    return Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        reasoning_tokens=counted.reasoning_tokens,
        cached_tokens=counted.cached_tokens,
        total_tokens=counted.total_tokens,
        cost_usd_ticks=counted.cost_usd_ticks or 0,
        unpriced_calls=int(call.is_unpriced),
        server_tool_calls=counted.server_tool_calls,
    )


def _wall_ms(clock_s: float) -> int:
    """Convert the service's clock (time.monotonic) to ms since the Unix epoch."""
    return int((time.time() - time.monotonic() + clock_s) * 1000)
