"""Structured replies: how a JSON Schema is asked for, and what a reply says in it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from turnline.contracts.json_schemas import WRAPPERS, Schema
from turnline.contracts.numbers import number
from turnline.worker.schema_checking import CHEAP_STEPS, NOT_JSON, Checker


class InvalidReply(Exception):
    """The reply is not what was asked for; the text says where, never what it says."""


def request_format(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request carries for a `response_format` setting.

    Args:
        asked: A JSON Schema, or OpenAI's `response_format` object, which stays as it is.
    """
    kind = asked.get("type")
    if isinstance(kind, str) and kind in WRAPPERS:
        return dict(asked)
    named = {"name": "reply", "schema": dict(asked), "strict": True}
    return {"type": "json_schema", "json_schema": named}


_decode = msgspec.json.Decoder(float_hook=number).decode


async def parsed_reply(text: str, schema: Schema, checker: Checker) -> Any:
    """Return the value of a reply; a long one is only decoded apart, and returned as it is.

    Raises:
        InvalidReply: It is no JSON, or does not fit the schema.
    """
    try:
        data = text.encode()
        value = _decode(data) if len(data) <= CHEAP_STEPS else msgspec.Raw(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidReply("the reply is not JSON") from None
    fault = await checker.fault(schema, value, data)
    if fault == NOT_JSON:
        raise InvalidReply("the reply is not JSON")
    if fault is not None:
        raise InvalidReply(f"the reply does not fit its schema: {fault}")
    return value
