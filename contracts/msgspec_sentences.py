"""Reads msgspec's error sentences, which are all that it says; no other file knows them.

A sentence of a later version that is not known is answered with less: where it says it is, and that
something else belongs there. Nothing of the message is ever repeated.
"""

import re

from turnline.contracts.conversation import (
    FUNCTION_NAME_PATTERN,
    ID_EXPECTED,
    ID_PATTERN,
    TENANT_PATTERN,
    TEXT_MAX_BYTES,
    URL_PATTERN,
)
from turnline.contracts.server_tools import (
    DOMAIN_PATTERN,
    HANDLE_PATTERN,
    HEADER_NAME_PATTERN,
    HEADER_VALUE_PATTERN,
    HTTPS_PATTERN,
    LABEL_PATTERN,
)

TYPES = (
    "user_message, transcription, user_started_speaking, user_stopped_speaking, interrupt, "
    "tool_result, context_append, context_replace, configure, feedback"
)
UNKNOWN = "what the JSON Schema of messages has here"
"""What is expected, where a sentence cannot be read."""
_AT = re.compile(r" - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`$")
_KNOWN = re.compile(r"Expected |(Integer|Number|Float|Timestamp|Duration) .*out of range$")
"""Sentences that repeat nothing of the message."""
_ECHO = re.compile(r"Invalid (?:enum )?value ")
_OWN = re.compile(r"([a-z_]+): (.*)$")
_MISSING = re.compile(r"missing required field `(\w+)`")
_IDS = frozenset(
    {"conversation_id", "turn_id", "reply_to", "of_turn"}
    | {"tenant", "settings.model", "settings.tenant"}
)
_PATTERNS = {
    repr(ID_PATTERN): ID_EXPECTED,
    repr(TENANT_PATTERN): ID_EXPECTED,
    repr(URL_PATTERN): "an http(s) URL or a data:image/ URL",
    repr(FUNCTION_NAME_PATTERN): "letters, digits, `_`, `.` and `-`",
    repr(DOMAIN_PATTERN): "a domain without `https://`, port and path",
    repr(HANDLE_PATTERN): "a handle without `@`",
    repr(HTTPS_PATTERN): "an https URL without user and password",
    repr(LABEL_PATTERN): "letters, digits, `_` and `-`",
    repr(HEADER_NAME_PATTERN): "a header's name",
    repr(HEADER_VALUE_PATTERN): "one line that a header can hold",
}
_CHOICES = {
    "when_busy": "one of enqueue, interrupt, rollback, reject",
    "role": "one of system, user, assistant, tool",
    "detail": "one of auto, low, high",
    "reasoning_effort": "one of none, low, medium, high, xhigh",
    "server_tools[].type": "one of web_search, x_search, code_interpreter, file_search, mcp",
    "wire": "one of responses, chat",
    "tools[].type": "function",
    "tool_calls[].type": "function",
    "type": "one of text, image_url",
}
"""By the end of the path; the first that fits counts."""


def explain(sentence: str) -> tuple[str, str]:
    """Return (the field that is meant, what belongs there) of a sentence of msgspec's."""
    at = _AT.search(sentence)
    path = (at["path"] if at else "") or "message"
    said = sentence[: at.start()] if at else sentence
    missing, own = _MISSING.search(said), _OWN.match(said)
    if path == "type" or (missing is not None and (path, missing[1]) == ("message", "type")):
        return "type", f"one of {TYPES}"
    if _ECHO.match(said):
        place = re.sub(r"\[\d+\]", "[]", path)
        expected = next((of for end, of in _CHOICES.items() if place.endswith(end)), UNKNOWN)
    elif path in _IDS and " of length " in said:
        expected = ID_EXPECTED
    elif f"<= {TEXT_MAX_BYTES}" in said:
        expected = f"text of at most {TEXT_MAX_BYTES} bytes"
    elif " matching regex " in said:
        expected = next((of for regex, of in _PATTERNS.items() if regex in said), UNKNOWN)
    elif said == "Invalid RFC3339 encoded date":
        expected = "a day such as 2026-11-29"
    elif own is not None or missing is not None:
        field = own[1] if own else missing[1] if missing else ""
        path = field if path == "message" else f"{path}.{field}"
        expected = own[2] if own else "this field is required"
    else:
        expected = said if _KNOWN.match(said) else UNKNOWN
    return path, f"keys: {expected}" if at and at["key"] else expected
