"""What spans say: attributes of turns, attempts and model calls, by the conventions."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from contracts.conversation import CallEntry, ConversationSettings, Usage
from contracts.replies import (
    TERMINAL,
    AnyTerminal,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
)
from contracts.trace_context import TurnTrace, attempt_id
from worker.effects import Effects, Loaded
from worker.pipeline.calls import LLMCall
from worker.pipeline.stream import ProviderUsage
from worker.telemetry import names as n
from worker.telemetry.spans import Attributes, Span
from worker.turn import Used

WORKER_LOST = "worker_lost"
"""Error type of an attempt that ended without a word."""
_decode_call = msgspec.json.Decoder(CallEntry).decode


class CallPlace(NamedTuple):
    """Where model calls go."""

    address: str
    port: int
    provider: str = n.PROVIDER_XAI


class Ending(NamedTuple):
    """How one of the messages that a commit used up ended."""

    used: Used
    state: str
    event: AnyTerminal
    error: str
    """Code of a failure; empty for everything that is none."""


def endings_of(effects: Effects, used: Sequence[Used]) -> list[Ending]:
    """Return how each message ended, in the order of the commit."""
    by_id = {one.turn_id: one for one in used}
    events = {e.turn_id: e for e in effects.events if isinstance(e, TERMINAL)}
    found: list[Ending] = []
    for turn_id, record in effects.records:
        one = by_id.get(turn_id)
        if one is None:
            continue
        event = events.get(turn_id) or record.terminal()
        assert event is not None
        error = event.code if isinstance(event, TurnFailed) else ""
        found.append(Ending(one, record.state, event, error))
    return found


def turn_attributes(
    ending: Ending, effects: Effects, loaded: Loaded, conversation_id: str
) -> Attributes:
    """Return what is known of a turn once it has ended."""
    attributes: Attributes = {
        n.OPERATION_NAME: "invoke_workflow",
        n.WORKFLOW_NAME: n.TURN,
        n.SESSION_ID: conversation_id,
        n.TURN_OUTCOME: ending.state,
        n.TURN_ATTEMPTS: loaded.attempt,
        n.TURN_CALLS: len(effects.calls),
    }
    if isinstance(ending.event, TurnCompleted | TurnInterrupted):
        usage = ending.event.usage
        attributes[n.TURN_INPUT_TOKENS] = usage.prompt_tokens
        attributes[n.TURN_OUTPUT_TOKENS] = output_tokens(usage)
        attributes[n.TURN_COST] = usage.cost_usd
        attributes[n.USAGE_STATE] = ending.event.usage_state
    abandoned = sum(call.usage.cost_usd_ticks for call in effects.calls if call.abandoned)
    if abandoned:
        attributes[n.TURN_ABANDONED_COST] = abandoned / 1e10
    return attributes


def process_attributes(
    ids: Attributes, conversation_id: str, used: Used, loaded: Loaded, queue: str
) -> Attributes:
    """Return what is known of an attempt when it begins."""
    return {
        **ids,
        n.MESSAGING_SYSTEM: "redis",
        n.MESSAGING_DESTINATION: queue,
        n.MESSAGING_OPERATION_TYPE: "process",
        n.MESSAGING_OPERATION_NAME: "process",
        n.MESSAGING_MESSAGE_ID: used.turn_id,
        n.MESSAGING_CONVERSATION_ID: conversation_id,
        n.MESSAGING_BODY_SIZE: len(used.entry.data),
        n.ATTEMPT: loaded.attempt,
    }


def call_attributes(call: LLMCall, settings: ConversationSettings, place: CallPlace) -> Attributes:
    """Return what is known of a model call once it is over."""
    attributes: Attributes = {
        n.OPERATION_NAME: n.CHAT,
        n.PROVIDER_NAME: place.provider,
        n.REQUEST_MODEL: call.model,
        n.REQUEST_STREAM: True,
        n.SERVER_ADDRESS: place.address,
        n.SERVER_PORT: place.port,
        n.CALL_OUTCOME: call.outcome,
        n.REQUEST_BYTES: call.request_bytes,
    }
    given = {
        n.REQUEST_TEMPERATURE: settings.temperature,
        n.REQUEST_TOP_P: settings.top_p,
        n.REQUEST_MAX_TOKENS: settings.max_tokens,
        n.REQUEST_SEED: settings.seed,
        n.REQUEST_REASONING_LEVEL: settings.reasoning_effort,
        n.RESPONSE_ID: call.response_id,
        n.RESPONSE_MODEL: call.response_model,
        n.HTTP_STATUS_CODE: call.status,
        n.REQUEST_ID: call.request_id,
        n.RESPONSE_TIME_TO_FIRST_CHUNK: call.time_to_first_chunk_s,
    }
    attributes.update((name, value) for name, value in given.items() if value is not None)
    if call.first_text_at is not None:
        attributes[n.TIME_TO_FIRST_TEXT] = call.first_text_at - call.started_at
    if call.finish_reason:
        attributes[n.RESPONSE_FINISH_REASONS] = [call.finish_reason]
    attributes.update(usage_attributes(call))
    return attributes


def call_error(call: LLMCall) -> str:
    """Return the code of what went wrong; being interrupted or handed over is not an error."""
    return (call.error or "failed") if call.outcome == "failed" else ""


def usage_attributes(call: LLMCall) -> Attributes:
    """Return a call's tokens and cost, as the ledger counts them."""
    state = call.usage_state
    attributes: Attributes = {n.USAGE_STATE: state}
    if state == "unknown":
        return attributes
    usage = call.counted_usage
    attributes[n.USAGE_OUTPUT_TOKENS] = output_tokens(usage)
    attributes[n.USAGE_REASONING_TOKENS] = usage.reasoning_tokens
    if state == "reported":
        attributes[n.USAGE_INPUT_TOKENS] = usage.prompt_tokens
        attributes[n.USAGE_CACHED_TOKENS] = usage.cached_tokens
    if usage.cost_usd_ticks:
        attributes[n.USAGE_COST_AMOUNT] = usage.cost_usd_ticks / 1e10
        attributes[n.USAGE_COST_CURRENCY] = "USD"
        attributes[n.USAGE_COST_SOURCE] = "provider"
    return attributes


def output_tokens(usage: Usage | ProviderUsage) -> int:
    """Return output tokens as the conventions count them: reasoning included.

    xAI counts reasoning outside `completion_tokens`, others inside; the provider's total tells.
    """
    outside = usage.prompt_tokens + usage.completion_tokens + usage.reasoning_tokens
    if outside == usage.total_tokens:
        return usage.completion_tokens + usage.reasoning_tokens
    return usage.completion_tokens


def lost_attempts(
    loaded: Loaded, owner: Used, ids: Attributes, now_ns: int, place: CallPlace
) -> list[Span]:
    """Return spans for the attempts just before this one that ended without a word.

    Their workers were killed and cannot tell; what they noted before each call is still there. An
    attempt before one that did end with a word was told by that one. The ids are the ones the lost
    worker would have used.
    """
    if not loaded.crashes:
        return []
    noted: dict[int, list[CallEntry]] = {}
    for step in loaded.steps:
        if step[:1] == b"c":
            call = _decode_call(step[1:])
            noted.setdefault(call.attempt, []).append(call)
    spans: list[Span] = []
    accepted_ns = owner.entry.accepted_at_ms * 1_000_000
    silent = loaded.crashes
    for attempt in range(loaded.attempt - 1, 0, -1):
        calls = noted.get(attempt, [])
        if not silent or any(not _is_open(call) for call in calls):
            break
        silent -= 1
        began_ms = loaded.since_ms if attempt == 1 else calls[0].started_at_ms if calls else 0
        began_ns = max(began_ms * 1_000_000 or now_ns, accepted_ns)
        lost = _Lost(attempt, began_ns, now_ns, calls)
        spans = [*_spans_of(lost, owner.trace, ids, place), *spans]
        now_ns = spans[0].start_ns
    return spans


def _is_open(call: CallEntry) -> bool:
    """Whether this is the note made before a request: nothing was added when it ended."""
    return call.state == "unknown" and call.error is None and not call.duration_ms


class _Lost(NamedTuple):
    """An attempt that ended without a word."""

    attempt: int
    began_ns: int
    ended_ns: int
    """At the latest."""
    calls: Sequence[CallEntry]
    """Open when it ended."""


def _spans_of(lost: _Lost, trace: TurnTrace, ids: Attributes, place: CallPlace) -> list[Span]:
    span_id, now_ns = attempt_id(trace, lost.attempt), lost.ended_ns
    process = Span(
        name=n.PROCESS,
        kind="consumer",
        span_id=span_id,
        parent_id=trace.span_id,
        start_ns=min(lost.began_ns, now_ns),
        end_ns=now_ns,
        attributes={**ids, n.ATTEMPT: lost.attempt, n.ATTEMPT_OUTCOME: "crashed"},
        error=WORKER_LOST,
        links=(trace.sent,) if trace.sent is not None else (),
    )
    below = [
        Span(
            name=f"{n.CHAT} {call.model}",
            kind="client",
            span_id=attempt_id(trace._replace(span_id=span_id), number),
            parent_id=span_id,
            start_ns=min(max(call.started_at_ms * 1_000_000, process.start_ns), now_ns),
            end_ns=now_ns,
            attributes={
                **ids,
                n.OPERATION_NAME: n.CHAT,
                n.PROVIDER_NAME: place.provider,
                n.REQUEST_MODEL: call.model,
                n.SERVER_ADDRESS: place.address,
                n.SERVER_PORT: place.port,
                n.USAGE_STATE: call.state,
            },
            error=WORKER_LOST,
        )
        for number, call in enumerate(lost.calls, 1)
    ]
    return [process, *below]
