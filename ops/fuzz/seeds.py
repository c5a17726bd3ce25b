"""What fuzzing starts from: one or more good inputs of every kind, and the words used in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from turnline import ops
from turnline.contracts.conversation import ContextEntry
from turnline.contracts.messages import Inbound
from turnline.contracts.replies import AnyEvent, ToolRequest, TurnRecord
from turnline.ops.fuzz.mutation import ENTRY, FIELD, MARK

RECORDINGS: Final = Path(ops.__file__).resolve().parents[2] / "shared" / "data"
"""Recorded streams, one chunk or event a line, and error bodies; used if they exist."""
_RECORDED_MAX_BYTES: Final = 14_000
"""Longer streams say nothing new, and are slow to read again and again."""
_IDS: Final = b'"conversation_id":"c","turn_id":"t"'
_TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

MESSAGES: Final = (
    b'{"type":"user_message","conversation_id":"c","text":"hi"}',
    b'{"type":"user_message",%b,"text":"%b","sent_at_ms":1750000000123,"deadline_at_ms":1,'
    b'"traceparent":"%b","tracestate":"a=b","baggage":"tenant=acme","when_busy":"rollback","reply_to":"r",'
    b'"metadata":{"k":"%b"},"final":false,"agent":"a","response_format":{"type":"object"},'
    b'"tenant":"acme","deliver_at_ms":2,"priority":"batch"}'
    % (_IDS, MARK.encode(), _TRACE.encode(), MARK.encode()),
    b'{"type":"user_message",%b,"run":false,"parts":[{"type":"text","text":"what"},{"type":'
    b'"image_url","image_url":{"url":"https://example.com/a.png","detail":"low"}},'
    b'{"type":"image_url","image_url":{"url":"data:image/png;base64,aa"}}]}' % _IDS,
    b'{"type":"transcription",%b,"text":"so","final":false,"baggage":""}' % _IDS,
    b'{"type":"user_started_speaking",%b}' % _IDS,
    b'{"type":"user_stopped_speaking",%b}' % _IDS,
    b'{"type":"interrupt",%b,"heard":"Hel"}' % _IDS,
    b'{"type":"tool_result",%b,"call_id":"call_1","result":{"a":[1,2.5,null,"x"]},"is_error":true}'
    % _IDS,
    b'{"type":"context_append",%b,"run":true,"messages":[{"role":"system","content":"s"},'
    b'{"role":"user","content":[{"type":"text","text":"u"}]},{"role":"assistant","tool_calls":'
    b'[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},'
    b'{"role":"tool","content":"r","tool_call_id":"1"}]}' % _IDS,
    b'{"type":"context_replace",%b,"messages":[{"role":"assistant","content":"a"}]}' % _IDS,
    b'{"type":"configure",%b,"settings":{"system_prompt":"p","model":"grok-4","temperature":0.5,'
    b'"top_p":1,"max_tokens":9,"seed":1,"reasoning_effort":"low","tool_choice":"auto","agent":null,'
    b'"tenant":"acme",'
    b'"tools":[{"type":"function","timeout_s":1,"function":{"name":"f","description":"d",'
    b'"parameters":{"type":"object"}}}],"response_format":{"type":"object"}}}' % _IDS,
    b'{"type":"feedback",%b,"of_turn":"u","score":-0.5,"name":"helpful","label":"no",'
    b'"explanation":"e"}' % _IDS,
)

_EVENT: Final = b'"attempt":2,"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"'
_USAGE: Final = (
    b'{"prompt_tokens":288,"completion_tokens":27,"reasoning_tokens":313,"cached_tokens":287,'
    b'"total_tokens":628,"cost_usd_ticks":739000}'
)
_COMPLETED: Final = (
    b'{"type":"turn_completed",%b,%b,"text":"{}","finish_reason":"stop","usage":%b,'
    b'"usage_state":"estimated","model":"m","parsed":{"a":[1]},"metadata":{"k":"v"}}'
    % (_IDS, _EVENT, _USAGE)
)
EVENTS: Final = (
    b'{"type":"turn_started",%b,%b,"worker":"w"}' % (_IDS, _EVENT),
    b'{"type":"text_delta",%b,"text":"llo","offset":2}' % _IDS,
    b'{"type":"tool_call_started",%b,"call_id":"1","name":"f","arguments":"{}"}' % _IDS,
    b'{"type":"tool_call_finished",%b,"call_id":"1","name":"f","ok":false}' % _IDS,
    _COMPLETED,
    b'{"type":"turn_failed",%b,"code":"c","message":"m"}' % _IDS,
    b'{"type":"turn_interrupted",%b,"text":"x","usage":%b}' % (_IDS, _USAGE),
    b'{"type":"turn_absorbed",%b,"into":"u"}' % _IDS,
    b'{"state":"accepted","accepted_at_ms":1750000000123,"after":"5-1","digest":"ab"}',
    b'{"state":"accepted","accepted_at_ms":1,"after":"0-0","digest":"ab","deliver_at_ms":2}',
    b'{"state":"completed","accepted_at_ms":1,"finished_at_ms":2,"attempts":1,"messages_from":0,'
    b'"messages_to":2,"worker":"w","event":%b,"feedback":[{"name":"helpful","score":1e0,'
    b'"label":"yes","explanation":"e","feedback_id":"f","at_ms":3}]}' % _COMPLETED,
    b'{%b,"call_id":"1","name":"f","arguments":{"a":1},"idempotency_key":"k",'
    b'"deadline_at_ms":5,"traceparent":"%b"}' % (_IDS, _TRACE.encode()),
)


def _stream(*chunks: bytes) -> bytes:
    return b"".join(b"data: " + chunk + b"\n\n" for chunk in chunks)


def _delta(delta: bytes, rest: bytes = b"") -> bytes:
    return (
        b'{"id":"8f00","object":"chat.completion.chunk","created":1,"model":"grok-4",'
        b'"choices":[{"index":0,"delta":%b%b}]}' % (delta, rest)
    )


def _choice(fields: bytes) -> bytes:
    return b'{"choices":[{"index":0,%b}]}' % fields


_CALL: Final = b'{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":%b}}'
_REPORT: Final = (
    b'{"choices":[],"usage":{"prompt_tokens":288,"completion_tokens":27,"total_tokens":628,'
    b'"prompt_tokens_details":{"text_tokens":288,"cached_tokens":287},'
    b'"completion_tokens_details":{"reasoning_tokens":313},"cost_in_usd_ticks":739000}}'
)
_HELLO: Final = _stream(
    _delta(b'{"role":"assistant","content":"Hel"}'), _delta(b'{"content":"lo \xf0\x9f\x91\x8b"}')
)
_END: Final = _stream(_delta(b"{}", b',"finish_reason":"stop"'), _REPORT, b"[DONE]")
STREAMS: Final = (
    _HELLO + _END,
    (b": keepalive\n\n" + _HELLO + b"event: message\nid: 7\n" + _END).replace(b"\n", b"\r\n"),
    b"\xef\xbb\xbf" + _HELLO.replace(b"\n", b"\r"),
    _stream(_delta(b'{"reasoning_content":"hm"}'), _delta(b'{"refusal":"no"}'), b"[DONE]"),
    _stream(
        _delta(b'{"tool_calls":[%b]}' % (_CALL % b'"{"')),
        _delta(b'{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}'),
        _delta(b'{"tool_calls":[{"id":"call_2","function":{"name":"g","arguments":{"a":1}}}]}'),
        _delta(b"{}", b',"finish_reason":"tool_calls"'),
    ),
    b'data: {"choices":[{"delta":\ndata: {"content":"He"}}]}\n\n' + _END,
    _HELLO + b'event: error\ndata: {"message":"overloaded"}\n\n',
    _stream(b'{"code":"c","error":"text"}'),
    _stream(b'{"error":{"message":"m","type":"t","code":429}}', b'{"type":"error","message":"m"}'),
    _stream(
        _delta(b'{"content":[{"type":"text","text":"Hello"},"there"]}'),
        _delta(b'{"content":{"text":"you"}}', b',"finish_reason":"stop"'),
        _choice(b'"message":{"content":"Hello there you"},"usage":{"input_tokens":3}'),
    ),
    _stream(
        _choice(b'"text":"a"'),
        _choice(b'"message":{"content":"b","function_call":{"name":"f","arguments":"{}"}}'),
        _delta(b'{"content":"\\ud83c","tool_calls":[%b]}' % (_CALL % b'""')),
        _delta(b'{"content":"\\udf75","tool_calls":[%b]}' % (_CALL % b'{"a":1}')),
    ),
    b'{"choices":[{"message":{"content":"a","tool_calls":[%b]},"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":1}}' % (_CALL % b'"{}"'),
    b'{"code":"invalid-argument","error":"Incorrect API key"}',
    b'"a text"',
    b"<html><body>502 Bad Gateway</body></html>",
    _HELLO + b'data: {"choices":[{"del',
)

_FIELDS: Final = FIELD + b"t=t%d" + FIELD + b"a=5-1" + FIELD + b"d=0123456789abcdef"


def _entries(*messages: bytes) -> bytes:
    return ENTRY.join(b"m=" + message + _FIELDS % n for n, message in enumerate(messages))


ENTRIES: Final = (
    *(_entries(message) for message in MESSAGES),
    _entries(MESSAGES[4], MESSAGES[3], MESSAGES[5], MESSAGES[0]),
    _entries(MESSAGES[1], MESSAGES[0], MESSAGES[6]) + FIELD + b"on=1-0" + FIELD + b"act=interrupt",
    _entries(MESSAGES[10], MESSAGES[8], MESSAGES[9]) + FIELD + b"on=1-0" + FIELD + b"act=rollback",
    b"m={" + FIELD + b"x=1",
    b"",
)


ANSWERS: Final = (
    b'200\n{"object":"list","data":[{"id":"grok-4.3","object":"model","created":1}]}',
    b'200\n{"data":[{"id":"a"},{"id":"b\\u001b[2J"},null,{"id":3}]}',
    b"200 text/html\n<html>",
    b'401\n{"error":{"message":"no %b","type":"t","code":1}}' % MARK.encode(),
    b'400\n{"code":"c","error":"Incorrect API key: %b"}' % MARK.encode(),
    b"302 https://%b.example/?k=%b\n" % (MARK.encode(), MARK.encode()),
    b'503\n{"detail":"busy"}',
)
ADDRESSES: Final = (
    b"redis://127.0.0.1:6379/0",
    b"redis://u:%b@h:1/2?client_name=n&health_check_interval=3" % MARK.encode(),
    b"rediss://h?password=%b&ssl_cert_reqs=none&decode_responses=true" % MARK.encode(),
    b"redis://:%b/x#?&%%@[::1]:7/1" % MARK.encode(),
    b"unix://:%b@/run/a%%20b.sock?db=1" % MARK.encode(),
    b"redis+sentinel://:%b@h,[::1]:7/mymaster/1?sentinel_password=%b" % ((MARK.encode(),) * 2),
    b"rediss+cluster://u:%b@h,h:7,10.0.0.1/0?ssl_check_hostname=no" % MARK.encode(),
    b"https://api.x.ai/v1",
    b"http://u:%b@[::1]:8080/v1?k=%b#%b" % ((MARK.encode(),) * 3),
)


def _events(*payloads: bytes) -> bytes:
    """Return events of `/v1/responses`, each under its name."""
    typed = ((msgspec.json.decode(it, type=_Typed).type, it) for it in payloads)
    return b"".join(b"event: %b\ndata: %b\n\n" % (type_.encode(), it) for type_, it in typed)


class _Typed(msgspec.Struct):
    type: str


_THOUGHT: Final = (
    b'{"id":"rs_1","summary":[{"text":"hm","type":"summary_text"}],"type":"reasoning",'
    b'"encrypted_content":"c2VhbGVk"}'
)
_SAID: Final = (
    b'{"content":[{"type":"output_text","text":"Hello there","annotations":[{"type":"url_citation",'
    b'"url":"https://example.com/","title":"1","start_index":1,"end_index":4}]}],"id":"msg_1",'
    b'"role":"assistant","type":"message","status":"completed"}'
)
_CALLED: Final = (
    b'{"arguments":"{\\"a\\":1}","call_id":"call_1","name":"f","type":"function_call","id":"fc_1",'
    b'"status":"completed"}'
)
_SEARCHED: Final = (
    b'{"id":"ws_1","type":"web_search_call","status":"completed","action":{"type":"search",'
    b'"query":"q"}}'
)
_COUNTED: Final = (
    b'"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8},"output_tokens":7,'
    b'"output_tokens_details":{"reasoning_tokens":5},"total_tokens":16,"cost_in_usd_ticks":12}'
)


def _opening() -> bytes:
    return (
        b'{"sequence_number":0,"type":"response.created","response":{"id":"r-1","object":"response",'
        b'"model":"grok-4","output":[],"status":"in_progress","usage":null}}'
    )


def _ending(kind: bytes, *output: bytes, rest: bytes = b"") -> bytes:
    return (
        b'{"type":"response.%b","response":{"id":"r-1","model":"grok-4","output":[%b],'
        b'"status":"%b",%b%b}}' % (kind, b",".join(output), kind, _COUNTED, rest)
    )


def _item(what: bytes, index: int, item: bytes) -> bytes:
    return b'{"type":"response.output_item.%b","output_index":%d,"item":%b}' % (what, index, item)


def _piece(what: bytes, index: int, delta: bytes) -> bytes:
    return b'{"type":"response.%b.delta","output_index":%d,"delta":"%b"}' % (what, index, delta)


_SPOKEN: Final = (
    _opening(),
    _piece(b"reasoning_summary_text", 0, b"hm"),
    _item(b"done", 0, _THOUGHT),
    _piece(b"output_text", 1, b"Hello"),
    _piece(b"output_text", 1, b" there"),
    _item(b"done", 1, _SAID),
)
RESPONSES: Final = (
    _events(*_SPOKEN, _ending(b"completed", _THOUGHT, _SAID)),
    _events(*_SPOKEN, _ending(b"completed", _THOUGHT, _SAID)).replace(b"\n", b"\r\n"),
    _events(*_SPOKEN, _ending(b"completed")) + b"data: [DONE]\n\n",
    _events(
        _opening(),
        _item(b"added", 0, _CALLED.replace(b'{\\"a\\":1}', b"")),
        _piece(b"function_call_arguments", 0, b'{\\"a\\":'),
        _piece(b"function_call_arguments", 0, b"1}"),
        _item(b"done", 0, _CALLED),
        _item(b"done", 1, _CALLED.replace(b"_1", b"_2")),
        _ending(b"completed", _CALLED, _CALLED.replace(b"_1", b"_2")),
    ),
    _events(
        _opening(),
        _item(b"added", 0, _SEARCHED.replace(b"completed", b"in_progress")),
        _item(b"done", 0, _SEARCHED),
        _piece(b"output_text", 1, b"Hello there"),
        _ending(b"completed", _SEARCHED, _SAID),
    ),
    _events(*_SPOKEN[:5], _ending(b"incomplete", rest=b',"incomplete_details":{"reason":"x"}')),
    _events(*_SPOKEN[:4], _ending(b"failed", rest=b',"error":{"code":"c","message":"m"}')),
    _events(*_SPOKEN[:4]) + b'event: error\ndata: {"type":"error","code":"c","message":"m"}\n\n',
    _events(_opening(), _piece(b"refusal", 0, b"no"), _ending(b"completed")),
    b'{"id":"r-1","object":"response","model":"grok-4","status":"completed","output":[%b,%b],%b}'
    % (_THOUGHT, _SAID, _COUNTED),
    b'{"code":"invalid-argument","error":"Incorrect API key"}',
)
_KEPT: Final = b'"reply_items":{"model":"grok-4","items":[%b]}'
CONTEXT_ENTRIES: Final = (
    b'{"role":"user","content":"hi"}',
    b'{"role":"system","content":[{"type":"text","text":"s"}]}',
    (
        b'{"role":"user","content":[{"type":"text","text":"u"},{"type":"image_url","image_url":'
        b'{"url":"https://example.com/a.png","detail":"low"}}]}'
    ),
    b'{"role":"assistant","content":"Hello there",%b}' % (_KEPT % (b'{"item":%b}' % _THOUGHT)),
    b'{"role":"assistant","content":"Hello there",%b,"citations":[{"url":"u","start":1,"end":2}]}'
    % (_KEPT % (b'{"item":%b},{"chars":5,"item":%b}' % (_THOUGHT, _SEARCHED))),
    b'{"role":"assistant","content":"so","tool_calls":[{"id":"1","type":"function","function":'
    b'{"name":"f","arguments":"{}"}},{"id":"2","type":"function","function":{"name":"g",'
    b'"arguments":"{}"}}],%b}'
    % (_KEPT % (b'{"item":%b},{"chars":2,"calls":1,"item":%b}' % (_THOUGHT, _THOUGHT))),
    b'{"role":"assistant","content":"  "}',
    b'{"role":"assistant","content":"e","reply_items":{"model":"","items":[{"item":%b}]}}'
    % _THOUGHT,
    b'{"role":"tool","content":"r","tool_call_id":"1"}',
    b'{"role":"tool","content":[{"type":"text","text":"r"}],"tool_call_id":"1"}',
)


def recorded_responses(folder: Path) -> list[bytes]:
    """Return the recorded streams of `/v1/responses` of a folder, the long ones left out."""
    streams = (
        _events(*path.read_bytes().splitlines()) for path in sorted(folder.glob("*.stream.jsonl"))
    )
    return [stream for stream in streams if len(stream) <= _RECORDED_MAX_BYTES]


def recorded_streams(folder: Path) -> list[bytes]:
    """Return the recorded streams and error bodies of a folder; none if there is no such folder."""
    streams = [
        _stream(*path.read_bytes().splitlines(), b"[DONE]")
        for path in sorted(folder.glob("chat.*streaming*.jsonl"))
    ]
    bodies = [
        body.encode()
        for path in sorted(folder.glob("errors.jsonl"))
        for line in path.read_bytes().splitlines()
        if isinstance(body := msgspec.json.decode(line).get("body"), str)
    ]
    return streams + bodies


def words_of(*kinds: Any) -> tuple[str, ...]:
    """Return the field names, tags and enumerated values of structs, each once, in order."""
    found: dict[str, None] = {}
    for kind in kinds:
        for info in inspect.multi_type_info(_members(kind)):
            found.update(dict.fromkeys(_words(info)))
    return tuple(found)


def _members(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__args__", (kind,))


def _words(info: inspect.Type) -> Iterator[str]:
    match info:
        case inspect.StructType():
            if info.tag_field:
                yield from (info.tag_field, str(info.tag))
            for field in info.fields:
                yield field.encode_name
                yield from _words(field.type)
        case inspect.UnionType(types=types):
            for inner in types:
                yield from _words(inner)
        case inspect.LiteralType(values=values):
            yield from map(str, values)
        case inspect.VarTupleType(item_type=inner) | inspect.ListType(item_type=inner):
            yield from _words(inner)
        case _:
            pass


MESSAGE_WORDS: Final = (*words_of(Inbound), "text", "https://example.com/", MARK)
SCHEMA_WORDS: Final = (
    *("$ref", "#", "#/$defs/a", "$defs", "$id", "$anchor", "$dynamicRef", "$schema", "type"),
    *("object", "array", "string", "integer", "number", "null", "properties", "items", "enum"),
    *("const", "required", "anyOf", "oneOf", "allOf", "not", "if", "then", "else", "pattern"),
    *("patternProperties", "additionalProperties", "unevaluatedProperties", "uniqueItems"),
    *("contains", "minLength", "maxItems", "multipleOf", "minimum", "format", "date-time", "^a+$"),
)
ARGUMENTS: Final = (
    (
        b'{"from":"a","number":1.0,"share":2,"when":"2026-11-28T10:00:00Z","either":null,'
        b'"$":"1.5","ident":"00000000-0000-4000-8000-000000000000","named":{"a":[1]},'
        b'"level":"high"}'
    ),
)
ARGUMENT_WORDS: Final = (
    *("from", "number", "share", "when", "ident", "either", "$", "named", "level", "low", "1.5"),
    *("2026-11-28", "10:00:00", "NaN", ""),
)
ANSWER_WORDS: Final = (
    *("data", "id", "object", "grok-4.3", "error", "message", "detail", "code", MARK),
)
RESPONSE_WORDS: Final = (
    *("type", "response", "item", "output", "output_index", "delta", "text", "content", "status"),
    *("response.created", "response.completed", "response.incomplete", "response.failed"),
    *("response.output_text.delta", "response.output_item.done", "response.output_item.added"),
    *("response.function_call_arguments.delta", "response.refusal.delta", "reasoning", "message"),
    *("function_call", "web_search_call", "encrypted_content", "summary", "annotations", "usage"),
    *("arguments", "call_id", "name", "id", "error", "code", "incomplete_details", "reason"),
    *("completed", "in_progress", "output_text", "refusal", "url_citation", "", "null"),
)
ENTRY_WORDS: Final = (*words_of(ContextEntry), "grok-4", "reasoning", "encrypted_content")
EVENT_WORDS: Final = words_of(AnyEvent, TurnRecord, ToolRequest)
STREAM_WORDS: Final = (
    *("id", "model", "object", "choices", "delta", "content", "reasoning_content", "refusal"),
    *("tool_calls", "index", "function", "name", "arguments", "finish_reason", "stop", "usage"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"),
    *("completion_tokens_details", "cached_tokens", "reasoning_tokens", "cost_in_usd_ticks"),
    *("error", "code", "message", "type", "role", "assistant", "", "{}", "text", "output_text"),
    *("parts", "thinking", "reasoning", "reasoning_details", "function_call", "input", "x_groq"),
    *("input_tokens", "output_tokens", "null"),
)
