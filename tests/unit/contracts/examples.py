"""One value of every message, event and record, with each field set: what the golden files hold."""

import datetime as dt

import msgspec

from turnline.contracts.conversation import (
    AssistantEntry,
    CallEntry,
    Citation,
    ConversationSettings,
    FunctionCall,
    FunctionDefinition,
    ImagePart,
    ImageUrl,
    PlacedItem,
    ReplyItems,
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
    Feedback,
    Interrupt,
    ToolResult,
    Transcription,
    UserMessage,
    UserStartedSpeaking,
    UserStoppedSpeaking,
)
from turnline.contracts.replies import (
    Rating,
    ReasoningSummaryDelta,
    Receipt,
    ServerToolFinished,
    ServerToolStarted,
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
from turnline.contracts.server_tools import CodeInterpreter, FileSearch, Mcp, WebSearch, XSearch

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
THOUGHT = b'{"type":"reasoning","summary":[],"encrypted_content":"q3J+\xc3\xb1/","n":[1,2.5,null]}'
SEARCH = b'{"type":"web_search_call","id":"ws_1","action":{"type":"search","query":"tapas"}}'
REPLY_ENTRIES = (
    AssistantEntry(
        content="How about \u00d1and\u00fa?",
        tool_calls=(CALL, CALL),
        reply_items=ReplyItems(
            model="grok-4.7",
            asked="grok-latest",
            items=(
                PlacedItem(item=msgspec.Raw(THOUGHT)),
                PlacedItem(chars=10, item=msgspec.Raw(SEARCH)),
                PlacedItem(chars=16, calls=1, item=msgspec.Raw(THOUGHT)),
            ),
        ),
    ),
    AssistantEntry(
        tool_calls=(CALL,),
        reply_items=ReplyItems(
            model="grok-4.7", items=(PlacedItem(calls=1, item=msgspec.Raw(THOUGHT)),)
        ),
    ),
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
SERVER_TOOLS = (
    WebSearch(allowed_domains=("example.com", "x.ai"), enable_image_understanding=True),
    XSearch(
        excluded_x_handles=("someone",),
        from_date=dt.date(2026, 1, 31),
        to_date=dt.date(2026, 11, 29),
        enable_image_understanding=True,
        enable_video_understanding=True,
    ),
    CodeInterpreter(),
    FileSearch(vector_store_ids=("collection_1",), max_num_results=7),
    Mcp(
        server_label="orders",
        server_url="https://mcp.example.com/sse?v=1",
        server_description="Orders of the shop.",
        allowed_tools=("find_order",),
        authorization="Bearer secret-1",
        headers={"X-Tenant": "secret-2"},
    ),
)
RESPONSES = {
    "wire": "responses",
    "max_output_tokens": 4_096,
    "server_tools": SERVER_TOOLS,
    "reasoning_summary": True,
}

INBOUND = {
    "user_message": UserMessage(**COMMON, text='Good evening — naïve 𝄞\t"yes" \\ / \u0001'),
    "user_message.parts": UserMessage(**FEW, parts=PARTS, run=False, final=False),
    "user_message.schema": UserMessage(**FEW, text="hi", agent="clerk", response_format=FORMAT),
    "user_message.later": UserMessage(**FEW, text="hi", deliver_at_ms=1_750_086_400_000),
    "user_message.few": UserMessage(**FEW, text="hi"),
    "user_message.tenant": UserMessage(**FEW, text="hi", tenant="Käse-GmbH"),
    "user_message.batch": UserMessage(**FEW, text="hi", priority="batch"),
    "transcription": Transcription(**COMMON, text="find me a", final=False),
    "transcription.few": Transcription(**FEW, text=""),
    "transcription.tenant": Transcription(**FEW, text="hi", tenant="acme"),
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
    "context_append.later": ContextAppend(
        **FEW, messages=ENTRIES[:1], run=True, deliver_at_ms=1_750_086_400_000
    ),
    "context_append.few": ContextAppend(**FEW, messages=()),
    "context_append.tenant": ContextAppend(**FEW, messages=ENTRIES[:1], run=True, tenant="acme"),
    "context_append.batch": ContextAppend(**FEW, messages=ENTRIES[:1], run=True, priority="batch"),
    "context_append.reply_items": ContextAppend(**FEW, messages=REPLY_ENTRIES),
    "context_replace": ContextReplace(**COMMON, messages=ENTRIES),
    "context_replace.reply_items": ContextReplace(**FEW, messages=REPLY_ENTRIES),
    "configure": Configure(**COMMON, settings=SettingsChange(**SETTINGS)),
    "configure.clear": Configure(
        **FEW, settings=SettingsChange(**{**dict.fromkeys(SETTINGS), "tool_choice": "none"})
    ),
    "configure.agent": Configure(
        **FEW,
        settings=SettingsChange(agent="clerk", response_format=FORMAT, tools=(PATIENT_TOOL,)),
    ),
    "configure.responses": Configure(**FEW, settings=SettingsChange(**RESPONSES)),
    "configure.chat": Configure(
        **FEW,
        settings=SettingsChange(
            wire="chat", max_output_tokens=None, server_tools=None, reasoning_summary=None
        ),
    ),
    "configure.tenant": Configure(**FEW, settings=SettingsChange(tenant="acme")),
    "configure.few": Configure(**FEW, settings=SettingsChange()),
    "feedback": Feedback(
        **COMMON,
        of_turn="turn-6",
        name="helpful",
        score=-0.5,
        label="très peu",
        explanation="Ñandú is no city.",
    ),
    "feedback.few": Feedback(**FEW, of_turn="turn-6", score=1.0),
}
INBOUND |= {
    f"{name}.baggage": msgspec.structs.replace(INBOUND[name], baggage="tenant=acme,plan=gold")
    for name in [it for it in INBOUND if "." not in it]
}

EVENT = {
    "conversation_id": "Gespräch-42",
    "turn_id": "turn-7",
    "attempt": 2,
    "trace_id": TRACE_ID,
    "event_id": "1750000000123-4",
}
CITED = (
    Citation(url="https://a.b", title="1", start=5, end=23),
    Citation(url="https://example.com/ü"),
)
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
    "reasoning_summary_delta": ReasoningSummaryDelta(**EVENT, text="Weighing Ñandú\n"),
    "reasoning_summary_delta.few": ReasoningSummaryDelta(**FEW, text=""),
    "server_tool_started": ServerToolStarted(**EVENT, call_id="ws_1", name="web_search"),
    "server_tool_started.few": ServerToolStarted(**FEW, call_id="ws_1", name="web_search"),
    "server_tool_finished": ServerToolFinished(
        **EVENT, call_id="ws_1", name="web_search", ok=False
    ),
    "server_tool_finished.few": ServerToolFinished(**FEW, call_id="ws_1", name="web_search"),
    "turn_completed": TurnCompleted(
        **END,
        text="How about Ñandú?",
        finish_reason="length",
        usage=USAGE,
        usage_state="estimated",
        model="grok-4-fast",
    ),
    "turn_completed.schema": TurnCompleted(**FEW, text='{"city":"Łódź"}', parsed={"city": "Łódź"}),
    "turn_completed.citations": TurnCompleted(
        **FEW, text="Ñandú[[1]](https://a.b)", citations=CITED
    ),
    "turn_completed.few": TurnCompleted(**FEW),
    "turn_failed": TurnFailed(**END, code="bad_request", message="The model refused the request."),
    "turn_failed.few": TurnFailed(**FEW, code="timeout"),
    "turn_interrupted": TurnInterrupted(
        **END, text="How about", usage=USAGE, usage_state="reported", model="grok-4-fast"
    ),
    "turn_interrupted.citations": TurnInterrupted(**FEW, text="Ñandú", citations=CITED),
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
    "turn_record.feedback": TurnRecord(
        state="failed",
        accepted_at_ms=1_750_000_000_125,
        event=msgspec.Raw(encode_event(EVENTS["turn_failed"])),
        feedback=(
            Rating(name="user_feedback", score=1.0, feedback_id="turn-8"),
            Rating(
                name="helpful",
                score=-0.5,
                label="très peu",
                explanation="Ñandú is no city.",
                feedback_id="turn-9",
                at_ms=1_750_000_005_000,
            ),
        ),
    ),
    "turn_record.later": TurnRecord(
        state="accepted", accepted_at_ms=1_750_000_000_125, deliver_at_ms=1_750_086_400_000
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
    "settings.responses": ConversationSettings(**RESPONSES),
    "settings.few": ConversationSettings(),
    "settings.tenant": ConversationSettings(tenant="acme"),
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
    "call_entry.tenant": CallEntry(
        call_id="turn-7/1/1",
        turn_id="turn-7",
        attempt=1,
        model="grok-4.3",
        state="reported",
        tenant="acme",
        agent="clerk",
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
    "totals.server_tools": Totals(usage=Usage(server_tool_calls=3)),
    **{f"context_entry.{n}": entry for n, entry in enumerate((*ENTRIES, *REPLY_ENTRIES))},
}
