"""JSON Schema of messages and events, and an AsyncAPI document, made from the structs.

For services in other languages. The files beside this module are written by
`python -m turnline.contracts.schema --write`.

Source: https://json-schema.org/draft/2020-12, https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

import inspect
import re
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any, cast, get_args

import msgspec

from turnline.contracts.conversation import (
    ID_PATTERN,
    MESSAGE_MAX_BYTES,
    SUBMITTED_ID_PATTERN,
    SUBMITTED_TENANT_PATTERN,
    TENANT_PATTERN,
    TEXT_MAX_BYTES,
)
from turnline.contracts.job_format import conversation_job
from turnline.contracts.keys import ConversationKeys, ShardKeys, conversation_keys, shard_keys
from turnline.contracts.messages import Inbound
from turnline.contracts.protocol import HEADROOM, Limits
from turnline.contracts.replies import TERMINAL, AnyEvent, ToolRequest
from turnline.contracts.scripts import load_script, read_header

VERSION = "1.0.0"
"""Version of the contract; new fields and messages raise the second number."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"

_LIMITS = (
    f"A text holds at most {TEXT_MAX_BYTES} bytes of UTF-8 (`maxLength` counts characters) and an "
    f"encoded message at most {MESSAGE_MAX_BYTES} bytes. Ids are in Unicode's normal form C. "
    "Unknown fields are ignored; fields with a default may be left out."
)
_INBOX = "Accepted messages, field `m`. Never written to directly: submit.lua does that."
_EVENTS = "Stream of a conversation's events, field `e`; the entry's id is the event's id."
_REPLIES = (
    "Stream of terminal events, field `e`, of all turns that named it in `reply_to`; for consumer "
    "groups. There is one in each shard."
)
_TOOL_CALLS = (
    "Stream of tool calls that no worker can run, field `e`, for whoever has the tool; for "
    "consumer groups, one per service. There is one in each shard."
)
_RUN_TOOLS = "XREADGROUP, submit a `tool_result` with the call's `call_id`, then XACK."
_TAG, _CONVERSATION, _STREAM = "{tag}", "{conversation_id}", "{reply_to}"
_SUBMITTED = {ID_PATTERN: SUBMITTED_ID_PATTERN, TENANT_PATTERN: SUBMITTED_TENANT_PATTERN}
"""What is read, and what producers are held to."""


def inbound_schema() -> dict[str, Any]:
    """Return the JSON Schema of what a producer may send."""
    return _document(
        Inbound,
        "Turnline inbound message",
        f"What a producer may send to a conversation. {_LIMITS}",
    )


def events_schema() -> dict[str, Any]:
    """Return the JSON Schema of what workers publish."""
    return _document(
        AnyEvent,
        "Turnline event",
        "What workers publish about a turn. Unknown fields and unknown types are to be ignored. "
        "`event_id` is not on the wire: it is the id of the stream entry, set by the reader.",
    )


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3 document: channels, messages, and how to submit without Python."""
    inbound, events = _members(Inbound), _members(AnyEvent)
    shared: tuple[type[msgspec.Struct], ...] = (*inbound, *events, ToolRequest)
    _, schemas = _components(shared, "#/components/schemas/{name}")
    terminal = tuple(event for event in events if issubclass(event, TERMINAL))
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Turnline", "version": VERSION, "description": _description()},
        "defaultContentType": "application/json",
        "servers": {
            "redis": {
                "host": "localhost:6379",
                "protocol": "redis",
                "description": "Redis 7.0 or later, or Valkey.",
            }
        },
        "channels": {
            "inbox": _channel(_named_conversation().inbox, _INBOX, inbound),
            "events": _channel(_named_conversation().events, _EVENTS, events),
            "replies": _channel(_named_shard().reply_prefix + _STREAM, _REPLIES, terminal),
            "toolCalls": _channel(_named_shard().tool_calls, _TOOL_CALLS, (ToolRequest,)),
        },
        "operations": {
            "submit": _operation("send", "inbox", inbound, "Put one message in (submit.lua)."),
            "readEvents": _operation("receive", "events", events, "XREAD behind the cursor."),
            "consumeReplies": _operation("receive", "replies", terminal, "XREADGROUP, then XACK."),
            "consumeToolCalls": _operation("receive", "toolCalls", (ToolRequest,), _RUN_TOOLS),
        },
        "components": {
            "messages": {_tag_of(struct): _message(struct) for struct in shared},
            "schemas": schemas,
        },
        "x-turnline-submit": _submit(),
    }


def documents() -> dict[str, bytes]:
    """Return every generated file: name to content."""
    made = {
        "inbound.json": inbound_schema(),
        "events.json": events_schema(),
        "asyncapi.json": asyncapi(),
    }
    return {name: _pretty(document) for name, document in made.items()}


def committed(name: str) -> bytes | None:
    """Return a generated file as it lies beside this module; None if it is missing."""
    file = resources.files(__name__).joinpath(name)
    return file.read_bytes() if file.is_file() else None


def _pretty(document: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _members(union: Any) -> tuple[type[msgspec.Struct], ...]:
    return cast("tuple[type[msgspec.Struct], ...]", get_args(union))


def _tag_of(struct: type[msgspec.Struct]) -> str:
    """Return a message's name: its tag, or that of its class where the channel has but one kind."""
    tag = cast("str | None", struct.__struct_config__.tag)
    return tag or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", struct.__name__).lower()


def _components(
    types: tuple[Any, ...], ref_template: str
) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    schemas, components = msgspec.json.schema_components(types, ref_template=ref_template)
    return tuple(_plain(schema) for schema in schemas), _plain(components)


def _plain(schema: Any) -> Any:
    """Drop OpenAPI's `discriminator`, and the indentation of docstrings.

    The first is not JSON Schema, and the tag of each branch says the same; the second is there up
    to Python 3.12 and not later.
    """
    if isinstance(schema, dict):
        items = cast("dict[str, Any]", schema).items()
        return {
            key: _word(key, value) if isinstance(value, str) else _plain(value)
            for key, value in items
            if not (key == "discriminator" and isinstance(value, dict))
        }
    if isinstance(schema, list):
        return [_plain(value) for value in cast("list[object]", schema)]
    return schema


def _word(key: str, value: str) -> str:
    """Return a text of a schema; of ids, the pattern that producers are held to."""
    if key == "description":
        return inspect.cleandoc(value)
    return _SUBMITTED.get(value, value) if key == "pattern" else value


def _document(union: Any, title: str, description: str) -> dict[str, Any]:
    (schema,), components = _components((union,), "#/$defs/{name}")
    head = {"$schema": DIALECT, "title": title, "description": description}
    return {**head, **schema, "$defs": components}


def _named_shard() -> ShardKeys:
    """Return a shard's names with AsyncAPI's parameter in the place of the tag."""
    shard = shard_keys(0)
    return ShardKeys(*(name.replace(shard.tag, _TAG) for name in shard))


def _named_conversation() -> ConversationKeys:
    return conversation_keys(_TAG, _CONVERSATION)


def _channel(
    address: str, description: str, structs: tuple[type[msgspec.Struct], ...]
) -> dict[str, Any]:
    known = {
        "tag": {
            "description": "Hash tag of the conversation's shard, braces included: `{s<n>}`, n "
            "being the CRC-32 of the conversation id's UTF-8, modulo the number of shards; of a "
            "fleet with a prefix `{<prefix>-s<n>}`.",
            "examples": [shard_keys(0).tag],
        },
        "conversation_id": {"description": "As in the messages."},
        "reply_to": {"description": "As in the messages."},
    }
    names = re.findall(r"\{(\w+)\}", address)
    return {
        "address": address,
        "description": description,
        "parameters": {name: known[name] for name in names},
        "messages": {
            _tag_of(struct): {"$ref": f"#/components/messages/{_tag_of(struct)}"}
            for struct in structs
        },
    }


def _operation(
    action: str, channel: str, structs: tuple[type[msgspec.Struct], ...], summary: str
) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [
            {"$ref": f"#/channels/{channel}/messages/{_tag_of(struct)}"} for struct in structs
        ],
    }


def _message(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "name": _tag_of(struct),
        "title": struct.__name__,
        "summary": (struct.__doc__ or "").partition("\n")[0],
        "payload": {"$ref": f"#/components/schemas/{struct.__name__}"},
    }


def _arguments() -> dict[str, str]:
    """Return what a producer passes for each of submit.lua's arguments."""
    limits = Limits()
    return {
        "job_id": _named_conversation().job_id,
        "turn_id": "the message's `turn_id`, which must be in it",
        "message": "the message, JSON in UTF-8, valid by its schema",
        "digest": "hexadecimal, the same for the same content; '' if nobody compares",
        "act": "'' for `enqueue`, else the message's `when_busy`; 'interrupt' for `interrupt`",
        "job_data": conversation_job(_CONVERSATION, 0).decode().replace(":0}", ":<now, epoch ms>}"),
        "inbox_limit": (f"{limits.inbox}; {limits.inbox + HEADROOM} for interrupt and tool_result"),
        "queue_limit": str(limits.queue),
        "retention_ms": str(limits.retention_ms),
        "log_limit": str(limits.records),
        "conversation": _CONVERSATION,
        "age_limit_ms": str(int(limits.queue_age_s * 1000)),
        "trace_id": "the trace id in the message's `traceparent`, 32 hexadecimal digits, or ''",
        "shards": "the number of shards by which the tag was chosen",
        "told_from": "0; `from`, in the old shard and behind its refusal, while it is resharded",
        "deliver_at_ms": "the message's `deliver_at_ms`, or 0",
        "lane": "'i:' ('b:' if `priority` is `batch`) and the message's `tenant`, if it has `run` "
        "or is a transcription; 'c:' and its `settings.tenant`, if a `configure` has that; else ''",
    }


def _submit() -> dict[str, Any]:
    """Return how submit.lua is called: its header, and what a producer passes."""
    script = load_script("submit")
    header, names, values = read_header(script), _named_conversation(), _arguments()
    return {
        "script": "contracts/scripts/submit.lua",
        "sha1": script.sha,
        "keys": [{**row._asdict(), "key": getattr(names, row.name)} for row in header.keys],
        "args": [{**row._asdict(), "value": values[row.name]} for row in header.args],
        "returns": [
            {"answer": row.name, "items": row.type, "meaning": row.meaning}
            for row in header.returns
        ],
    }


def _description() -> str:
    """Fill in `description.md`."""
    submit, conversation, shard = _submit(), _named_conversation(), _named_shard()
    page = resources.files(__name__).joinpath("description.md").read_text(encoding="utf-8")
    return Template(page.rstrip("\n")).substitute(
        limits=_LIMITS,
        sha=submit["sha1"],
        key_count=len(submit["keys"]),
        keys="\n".join(
            f"- KEYS[{n}] `{it['key']}`: {it['meaning']}" for n, it in enumerate(submit["keys"], 1)
        ),
        args="\n".join(
            f"- ARGV[{n}] {it['name']} ({it['type']}): {it['meaning']}. Pass: {it['value']}"
            for n, it in enumerate(submit["args"], 1)
        ),
        answers="\n".join(
            f"- `{it['answer']}`, {it['items']}: {it['meaning']}" for it in submit["returns"]
        ),
        events=conversation.events,
        turns=conversation.turns,
        replies=shard.reply_prefix + _STREAM,
        tool_calls=shard.tool_calls,
        fleet=shard.fleet,
        spend=shard.spend_prefix + "2026-11-30",
    )
