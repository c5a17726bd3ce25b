"""The ARQ job of a conversation, as ARQ stores it but in JSON: its format, its serializer hooks."""

from typing import Any

import msgspec

FUNCTION = "run_conversation"
"""Name of the ARQ function that workers register for conversations."""

_encoder = msgspec.json.Encoder(enc_hook=repr)
_decoder = msgspec.json.Decoder()


def serialize_job(data: Any) -> bytes:
    """ARQ's `job_serializer`: JSON. What JSON cannot express (an exception) becomes its `repr`."""
    return _encoder.encode(data)


def deserialize_job(data: bytes) -> Any:
    """ARQ's `job_deserializer`.

    Raises:
        msgspec.DecodeError: Not JSON.
    """
    return _decoder.decode(data)


def named_job(function: str, enqueued_at_ms: int) -> bytes:
    """Return an ARQ job without arguments."""
    return _encoder.encode({"t": 1, "f": function, "a": (), "k": {}, "et": enqueued_at_ms})


def conversation_job(conversation_id: str, enqueued_at_ms: int) -> bytes:
    """Return the ARQ job that stands for a conversation with something in its inbox."""
    return _encoder.encode(
        {"t": 1, "f": FUNCTION, "a": (conversation_id,), "k": {}, "et": enqueued_at_ms}
    )


def read_job(payload: bytes, conversation_id: str) -> tuple[str, tuple[Any, ...]]:
    """Return function and arguments; one that is gone or unreadable means its conversation."""
    try:
        job = deserialize_job(payload)
        return job["f"], tuple(job["a"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return FUNCTION, (conversation_id,)
