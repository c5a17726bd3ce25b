"""What spans say: attributes of turns, attempts and model calls, by the conventions."""

from collections.abc import Sequence
from typing import NamedTuple

from turnline.contracts.conversation import ConversationSettings, Usage, UsageState
from turnline.contracts.replies import (
    TERMINAL,
    AnyTerminal,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
)
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.telemetry import names as n
from turnline.worker.telemetry.spans import Attributes
from turnline.worker.turn.gathering import ConsumedEntry
from turnline.worker.turn.ledger import usage_of


class CallPlace(NamedTuple):
    """Where model calls go."""

    address: str
    port: int
    provider: str = n.PROVIDER_XAI
    member: str = ""
    """Of the pool, where there is one."""


class Ending(NamedTuple):
    """How one of the messages that a commit used up ended."""

    used: ConsumedEntry
    state: str
    event: AnyTerminal
    error: str
    """Code of a failure; empty for everything that is none."""


def endings_of(effects: Effects, used: Sequence[ConsumedEntry]) -> list[Ending]:
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
    ending: Ending, effects: Effects, loaded: ConversationSnapshot, conversation_id: str
) -> Attributes:
    """Return what is known of a turn once it has ended."""
    attributes: Attributes = {
        n.OPERATION_NAME: n.INVOKE_AGENT,
        n.AGENT_NAME: n.TURN,
        n.WORKFLOW_NAME: n.TURN,  # the name before, for one more release
        n.SESSION_ID: conversation_id,
        n.TURN_OUTCOME: ending.state,
        n.TURN_ATTEMPTS: loaded.attempt,
        n.TURN_CALLS: len(effects.calls),
    }
    if isinstance(ending.event, TurnCompleted | TurnInterrupted):
        usage = ending.event.usage
        # By our names and, for viewers that do not add up, by those of calls.
        for name in (n.TURN_INPUT_TOKENS, n.USAGE_INPUT_TOKENS):
            attributes[name] = usage.prompt_tokens
        for name in (n.TURN_OUTPUT_TOKENS, n.USAGE_OUTPUT_TOKENS):
            attributes[name] = output_tokens(usage)
        if usage.cost_usd is not None:
            attributes[n.TURN_COST] = attributes[n.USAGE_COST_AMOUNT] = usage.cost_usd
            attributes[n.USAGE_COST_CURRENCY] = "USD"
        if usage.unpriced_calls:
            attributes[n.TURN_UNPRICED_CALLS] = usage.unpriced_calls
        attributes[n.USAGE_STATE] = ending.event.usage_state
    abandoned = sum(call.usage.cost_usd_ticks for call in effects.calls if call.abandoned)
    if abandoned:
        attributes[n.TURN_ABANDONED_COST] = abandoned / 1e10
    return attributes


def process_attributes(
    ids: Attributes,
    conversation_id: str,
    used: ConsumedEntry,
    loaded: ConversationSnapshot,
    queue: str,
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


def chat_attributes(model: str, place: CallPlace) -> Attributes:
    """Return what is known of every model call."""
    return {
        n.OPERATION_NAME: n.CHAT,
        n.PROVIDER_NAME: place.provider,
        n.REQUEST_MODEL: model,
        n.SERVER_ADDRESS: place.address,
        n.SERVER_PORT: place.port,
        **({n.CALL_MEMBER: place.member} if place.member else {}),
    }


def tool_attributes(name: str, call_id: str) -> Attributes:
    """Return what is known of every function call."""
    return {
        n.OPERATION_NAME: n.EXECUTE_TOOL,
        n.TOOL_NAME: name,
        n.TOOL_TYPE: "function",
        n.TOOL_CALL_ID: call_id,
    }


def place_of(call: LLMCall, usual: CallPlace) -> CallPlace:
    """Return where a call goes: where there are several keys or addresses, it says so."""
    return (
        usual
        if call.server is None
        else usual._replace(address=call.server[0], port=call.server[1], member=call.member)
    )


def call_attributes(call: LLMCall, settings: ConversationSettings) -> Attributes:
    """Return what else is known of a model call once it is over."""
    attributes: Attributes = {
        n.REQUEST_STREAM: True,
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
    attributes.update(usage_attributes(call.usage_state, usage_of(call)))
    return attributes


def call_error(call: LLMCall) -> str:
    """Return the code of what went wrong; being interrupted or handed over is not an error."""
    return (call.error or "failed") if call.outcome == "failed" else ""


def usage_attributes(state: UsageState, usage: Usage) -> Attributes:
    """Return a call's tokens and cost, as the ledger counts them."""
    attributes: Attributes = {n.USAGE_STATE: state}
    if usage.unpriced_calls:
        attributes[n.USAGE_COST_STATE] = "unknown"
    if state == "unknown":
        return attributes
    attributes[n.USAGE_OUTPUT_TOKENS] = output_tokens(usage)
    attributes[n.USAGE_REASONING_TOKENS] = usage.reasoning_tokens
    attributes[n.USAGE_INPUT_TOKENS] = usage.prompt_tokens
    if state == "reported":
        attributes[n.USAGE_CACHED_TOKENS] = usage.cached_tokens
    if usage.cost_usd_ticks:
        attributes[n.USAGE_COST_AMOUNT] = usage.cost_usd_ticks / 1e10
        attributes[n.USAGE_COST_CURRENCY] = "USD"
        attributes[n.USAGE_COST_SOURCE] = "provider"
    return attributes


def output_tokens(usage: Usage) -> int:
    """Return output tokens as the conventions count them: reasoning included.

    xAI counts reasoning outside `completion_tokens`, others inside; the total shows which.
    """
    outside = usage.prompt_tokens + usage.completion_tokens + usage.reasoning_tokens
    if outside == usage.total_tokens:
        return usage.completion_tokens + usage.reasoning_tokens
    return usage.completion_tokens


def agent_attributes(agent: str) -> Attributes:
    """Return what is known of what an agent does."""
    return {n.OPERATION_NAME: n.INVOKE_AGENT, n.AGENT_NAME: agent}
