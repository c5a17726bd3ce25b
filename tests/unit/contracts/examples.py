"""One value of every message, event and record, with each field set: what the golden files hold."""

import msgspec

from turnline.contracts.conversation import (
    AssistantEntry,
    CallEntry,
    ConversationSettings,
    FunctionCall,
    FunctionDefinition,
    ImagePart,
    ImageUrl,
    SettingsChange,
    SystemEntry,
    TextPart,
    ToolCall,
    ToolDefinition,
    ToolEntry,
    Totals,
    Usage,
    UserEntry,
)
from turnline.contracts.messages import (
    Configure,
    ContextAppend,
    ContextReplace,
    Interrupt,
    ToolResult,
    Transcription,
    UserMessage,
    UserStartedSpeaking,
    UserStoppedSpeaking,
)
from turnline.contracts.replies import (
    Receipt,
    TextDelta,
    ToolCallFinished,
    ToolCallStarted,
    ToolRequest,
    TurnAbsorbed,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnRecord,
    TurnStarted,
    encode_event,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
COMMON = {
    "conversation_id": "Gespräch-42",
    "turn_id": "turn-7",
    "sent_at_ms": 1_750_000_000_123,
    "traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01",
    "tracestate": "vendor=value",
    "deadline_at_ms": 1_750_000_060_000,
    "when_busy": "rollback",
    "reply_to": "billing.replies",
    "metadata": {"tenant": "acme", "канал": 'Ω "quoted"'},
}
FEW = {"conversation_id": "c", "turn_id": "t"}

PARTS = (
    TextPart(text="What is this? 👀"),
    ImagePart(image_url=ImageUrl(url="https://example.com/cat.png", detail="low")),
    ImagePart(image_url=ImageUrl(url="data:image/png;base64,iVBORw0KGgo=")),
)
CALL = ToolCall(
    id="call_1", function=FunctionCall(name="FindRestaurants", arguments='{"city":"San José"}')
)
ENTRIES = (
    SystemEntry(content="Be brief."),
    UserEntry(content="Find me a place to eat.\n"),
    UserEntry(content=PARTS),
    AssistantEntry(tool_calls=(CALL,)),
    ToolEntry(content='[{"name":"Ñandú"}]', tool_call_id="call_1"),
    AssistantEntry(content="How about Ñandú?", tool_calls=(CALL,)),
    AssistantEntry(content=(TextPart(text="or that"),)),
)
TOOL = ToolDefinition(
    function=FunctionDefinition(
        name="FindRestaurants",
        description="Find a restaurant.",
        parameters={"type": "object", "properties": {"city": {"type": "string"}}},
    )
)
PATIENT_TOOL = ToolDefinition(function=FunctionDefinition(name="Approve"), timeout_s=86_400)
FORMAT = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
USAGE = Usage(
    prompt_tokens=120,
    completion_tokens=34,
    reasoning_tokens=256,
    cached_tokens=64,
    total_tokens=410,
    cost_usd_ticks=1_234_500,
)
SETTINGS = {
    "system_prompt": "You are Grok.",
    "model": "grok-4-fast",
    "temperature": 0.25,
    "top_p": 0.5,
    "max_tokens": 512,
    "seed": 7,
    "reasoning_effort": "low",
    "tools": (TOOL,),
    "tool_choice": {"type": "function", "function": {"name": "FindRestaurants"}},
}

INBOUND = {
    "user_message": UserMessage(**COMMON, text='Good evening — naïve 𝄞\t"yes" \\ / \u0001'),
    "user_message.parts": UserMessage(**FEW, parts=PARTS, run=False, final=False),
    "user_message.schema": UserMessage(**FEW, text="hi", agent="clerk", response_format=FORMAT),
    "user_message.few": UserMessage(**FEW, text="hi"),
    "transcription": Transcription(**COMMON, text="find me a", final=False),
    "transcription.few": Transcription(**FEW, text=""),
    "user_started_speaking": UserStartedSpeaking(**COMMON),
    "user_stopped_speaking": UserStoppedSpeaking(**COMMON),
    "interrupt": Interrupt(**COMMON, heard="How about"),
    "interrupt.few": Interrupt(**FEW),
    "tool_result": ToolResult(
        **COMMON, call_id="call_1", result={"rows": [1, 2.5, None, True, "x"]}, is_error=True
    ),
    "tool_result.few": ToolResult(**FEW, call_id="call_1"),
    "context_append": ContextAppend(**COMMON, messages=ENTRIES, run=True),
    "context_append.schema": ContextAppend(
        **FEW, messages=ENTRIES[:1], run=True, agent="clerk", response_format=FORMAT
    ),
    "context_append.few": ContextAppend(**FEW, messages=()),
    "context_replace": ContextReplace(**COMMON, messages=ENTRIES),
    "configure": Configure(**COMMON, settings=SettingsChange(**SETTINGS)),
    "configure.clear": Configure(
        **FEW, settings=SettingsChange(**{**dict.fromkeys(SETTINGS), "tool_choice": "none"})
    ),
    "configure.agent": Configure(
        **FEW,
        settings=SettingsChange(agent="clerk", response_format=FORMAT, tools=(PATIENT_TOOL,)),
    ),
    "configure.few": Configure(**FEW, settings=SettingsChange()),
}

EVENT = {
    "conversation_id": "Gespräch-42",
    "turn_id": "turn-7",
    "attempt": 2,
    "trace_id": TRACE_ID,
    "event_id": "1750000000123-4",
}
END = {**EVENT, "metadata": COMMON["metadata"]}
EVENTS = {
    "turn_started": TurnStarted(**EVENT, worker="host-1/4711"),
    "turn_started.few": TurnStarted(**FEW),
    "text_delta": TextDelta(**EVENT, text=" Ñandú 👀\n", offset=9),
    "text_delta.few": TextDelta(**FEW, text="Hi"),
    "tool_call_started": ToolCallStarted(
        **EVENT, call_id="call_1", name="FindRestaurants", arguments='{"city":"San José"}'
    ),
    "tool_call_started.few": ToolCallStarted(**FEW, call_id="call_1", name="Time"),
    "tool_call_finished": ToolCallFinished(
        **EVENT, call_id="call_1", name="FindRestaurants", ok=False
    ),
    "tool_call_finished.few": ToolCallFinished(**FEW, call_id="call_1", name="Time"),
    "turn_completed": TurnCompleted(
        **END,
        text="How about Ñandú?",
        finish_reason="length",
        usage=USAGE,
        usage_state="estimated",
        model="grok-4-fast",
    ),
    "turn_completed.schema": TurnCompleted(**FEW, text='{"city":"Łódź"}', parsed={"city": "Łódź"}),
    "turn_completed.few": TurnCompleted(**FEW),
    "turn_failed": TurnFailed(**END, code="bad_request", message="The model refused the request."),
    "turn_failed.few": TurnFailed(**FEW, code="timeout"),
    "turn_interrupted": TurnInterrupted(
        **END, text="How about", usage=USAGE, usage_state="reported", model="grok-4-fast"
    ),
    "turn_interrupted.few": TurnInterrupted(**FEW),
    "turn_absorbed": TurnAbsorbed(**END, into="turn-8"),
    "turn_absorbed.few": TurnAbsorbed(**FEW),
}

RECORDS = {
    "receipt": Receipt(
        conversation_id="Gespräch-42",
        turn_id="turn-7",
        status="accepted",
        position=3,
        after="1750000000123-0",
        trace_id=TRACE_ID,
    ),
    "turn_record": TurnRecord(
        state="completed",
        accepted_at_ms=1_750_000_000_125,
        after="1750000000123-0",
        digest="0011223344556677",
        finished_at_ms=1_750_000_003_000,
        attempts=2,
        trace_id=TRACE_ID,
        worker="host-1/4711",
        messages_from=4,
        messages_to=6,
        event=msgspec.Raw(encode_event(EVENTS["turn_completed"])),
    ),
    "turn_record.few": TurnRecord(state="accepted", accepted_at_ms=1_750_000_000_125),
    "tool_request": ToolRequest(
        conversation_id="Gespräch-42",
        turn_id="turn-7",
        call_id="call_1",
        name="Approve",
        arguments=msgspec.Raw(b'{"amount":12.5}'),
        idempotency_key="Gespräch-42/turn-7/call_1",
        deadline_at_ms=1_750_000_060_000,
        trace_id=TRACE_ID,
        traceparent=COMMON["traceparent"],
    ),
    "settings": ConversationSettings(**SETTINGS),
    "settings.few": ConversationSettings(),
    "call_entry": CallEntry(
        call_id="turn-7/2/1",
        turn_id="turn-7",
        attempt=2,
        model="grok-4-fast",
        state="estimated",
        abandoned=True,
        usage=USAGE,
        finish_reason="stop",
        error="stalled",
        response_id="0123-4567",
        started_at_ms=1_750_000_000_200,
        duration_ms=2_800,
    ),
    "totals": Totals(
        turns=4,
        calls=6,
        reported_calls=3,
        estimated_calls=2,
        unknown_calls=1,
        usage=USAGE,
        abandoned=Usage(prompt_tokens=1),
    ),
    **{f"context_entry.{n}": entry for n, entry in enumerate(ENTRIES)},
}
