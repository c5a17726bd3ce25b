"""Finds the error that a provider reports, in whatever shape it does so."""

from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.call_parts import whole_characters
from turnline.worker.pipeline.stream_events import StreamFailed

BODY_MAX_BYTES: Final = 64 * 1024
"""What is kept of a body that is neither an event stream nor a completion, bytes."""
UNDECODED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON raises."""
decode_any = msgspec.json.Decoder(float_hook=number).decode


def failure_of_body(body: bytes) -> StreamFailed:
    """Read the code and message of an error response, whatever its shape; both may be empty."""
    try:
        value = decode_any(body)
        fields = as_object(value)
        if fields is not None:
            return failure_of(fields) or failed("", fields.get("message"))
        return StreamFailed("", value if isinstance(value, str) else "")
    except UNDECODED:
        return StreamFailed("", body[:BODY_MAX_BYTES].decode("utf-8", "replace"))


def as_object(value: object) -> dict[str, Any] | None:
    """Return a JSON object; None if it is another value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def failure_of(value: Mapping[str, Any]) -> StreamFailed | None:
    """Return the error that an object reports: flat, nested, or typed; None if it reports none."""
    error = value.get("error") or value.get("errors") or _groq_error(value)
    if isinstance(error, list):
        error = cast("list[object]", error)[0]
    if (nested := as_object(error)) is not None:
        if any(nested.values()):
            return failed(nested.get("code") or nested.get("type"), nested.get("message"))
    elif error:
        return failed(value.get("code"), error)
    status = as_object(value.get("base_resp"))
    if status is not None and status.get("status_code"):
        return failed(status["status_code"], status.get("status_msg"))
    return None if value.get("choices") else _bare_failure_of(value)


def _groq_error(value: Mapping[str, Any]) -> object:
    groq = as_object(value.get("x_groq"))
    return groq.get("error") if groq is not None else None


def _bare_failure_of(value: Mapping[str, Any]) -> StreamFailed | None:
    """Return the error that an object is, by the names that frameworks have for its fields."""
    code = value.get("code") or value.get("error_code")
    words = [value.get(key) for key in ("message", "error_msg", "detail", "msg")]
    is_error = "error" in (value.get("type"), value.get("object")) or (code and not _is_fine(code))
    if is_error or value.get("success") is False or words[1] or words[2]:
        return failed(code, next(filter(None, words), None))
    return None


def _is_fine(code: object) -> bool:
    """Tell whether a code beside no choices says that nothing is wrong."""
    return str(code).lower() in {"0", "200", "ok", "success"}


def failed(code: object, message: object) -> StreamFailed:
    """Return the error of a code and a message of any type."""
    return StreamFailed(whole_characters(str(code or "")), whole_characters(str(message or "")))
