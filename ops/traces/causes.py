"""What the codes of failures mean, in words, and what whoever is on call can do about them."""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Cause(NamedTuple):
    """A failure in words."""

    what: str
    """What happened; goes on behind "the turn failed:"."""
    advice: str
    """What to do, a sentence or two; empty: nothing."""


_AGAIN: Final = "Turnline tries again by itself."
_REPLAY: Final = "Then `turnline dead replay` asks again."
_PROVIDER: Final = "Look at the provider's status page; other models: TURNLINE_MODEL takes a list."
_SHORTER: Final = "Forget the conversation, begin a new one, or send less."
_REQUEST: Final = "`turnline dead show ID` has the provider's own words: they say which part."
_PROGRAM: Final = "The program that sent the message, or the agent's settings, has to change."

_BY_CODES: Final[Mapping[tuple[str, ...], Cause]] = {
    ("connection",): Cause(
        "the connection to the provider was refused or lost",
        f"{_AGAIN} If it goes on: does TURNLINE_BASE_URL answer from the worker's host?",
    ),
    ("server_error", "stream_error"): Cause("the provider failed", f"{_AGAIN} {_PROVIDER}"),
    ("overloaded",): Cause("the model has no room at the moment", f"{_AGAIN} {_PROVIDER}"),
    ("provider_unavailable",): Cause(
        "the provider fails for everybody, so it is asked by a few only (the breaker is open)",
        f"{_AGAIN} {_PROVIDER}",
    ),
    ("silence_timeout",): Cause(
        "the provider was silent for longer than TURNLINE_SILENCE_TIMEOUT_S", _PROVIDER
    ),
    ("first_token_timeout", "idle_timeout"): Cause(
        "the provider took longer for the next words than "
        "TURNLINE_FIRST_TOKEN_TIMEOUT_S or TURNLINE_IDLE_TIMEOUT_S allow",
        f"Allow more, or ask for less thought (reasoning_effort). {_PROVIDER}",
    ),
    ("total_timeout", "turn_budget_exceeded"): Cause(
        "one attempt took longer than TURNLINE_TURN_BUDGET_S (or the agent's turn_budget_s) allows",
        "`turnline trace` shows whether the model or a tool took the time.",
    ),
    ("rate_limited",): Cause(
        "the provider limits the rate (HTTP 429)",
        f"{_AGAIN} Tell the fleet what is allowed (docs/limits.md), or ask the provider for more.",
    ),
    ("provider_limit",): Cause(
        "what the provider allows was used up",
        f"{_AGAIN} `turnline queue` shows the limits. Ask for more, or add keys (docs/limits.md).",
    ),
    ("tenant_limit",): Cause(
        "what the tenant may ask for was used up",
        f"{_AGAIN} The budgets file says how much that is (docs/tenants.md).",
    ),
    ("malformed_stream", "not_a_stream", "no_final_response", "truncated", "reply_error"): Cause(
        "the provider's reply could not be used", f"If it goes on: {_PROVIDER}"
    ),
    ("reply_too_large", "arguments_too_large", "too_many_calls"): Cause(
        "the reply was larger than one may be", "Ask for shorter replies (max_tokens)."
    ),
    ("auth",): Cause(
        "the provider refuses the key",
        f"Is XAI_API_KEY (or its file) of the workers right and not revoked? {_REPLAY}",
    ),
    ("permission",): Cause(
        "the provider does not permit this key to do that",
        f"Is the model allowed for the key's team? {_REPLAY}",
    ),
    ("credits",): Cause("the provider wants money", f"Buy credits or raise the limit. {_REPLAY}"),
    ("safety",): Cause("the provider refuses the content", "Nothing: it would again."),
    ("model_not_found",): Cause(
        "the provider does not have the model",
        f"`turnline models` lists those that there are. {_REPLAY}",
    ),
    ("not_found", "redirected"): Cause(
        "the address is not that of a model provider", "Is TURNLINE_BASE_URL right?"
    ),
    ("context_too_long", "too_large"): Cause("the conversation is too long", _SHORTER),
    (
        "invalid_tool_schema",
        "too_many_tools",
        "invalid_tool_choice",
        "invalid_tool_call",
    ): Cause("the provider refuses the tools", f"{_REQUEST} `turnline tools` lists them."),
    ("image_too_large", "image_unreachable", "image_unsupported"): Cause(
        "the provider cannot use an image", _REQUEST
    ),
    ("reasoning_refused",): Cause("the model could not read its earlier reasoning", _AGAIN),
    (
        "unsupported_parameter",
        "invalid_response_format",
        "invalid_messages",
        "bad_request",
    ): Cause("the provider refuses the request", f"{_REQUEST} {_PROGRAM}"),
    ("invalid_reply",): Cause(
        "the reply is not of the form that was asked for",
        "`turnline dead show ID` has the reply. A simpler schema or another model helps.",
    ),
    ("too_many_tool_rounds", "tool_loop", "unusable_calls"): Cause(
        "the model went on calling tools without coming to an end",
        "`turnline trace` shows which. Their descriptions or the prompt have to change.",
    ),
    ("attempts_exhausted", "spend_exhausted"): Cause(
        "the provider answered in vain too often", _PROVIDER
    ),
    ("deadline_exceeded",): Cause(
        "the producer's deadline passed first",
        "Was it short, or did the turn wait? More workers make the wait shorter.",
    ),
    ("crashed",): Cause(
        "every worker that took it died",
        "Look at the workers' last words: a tool may take the process down, or memory ran out.",
    ),
    ("worker_lost",): Cause(
        "its worker was lost: killed, out of memory, or cut off from Redis",
        "Another one takes over by itself. The host's log says why the process ended.",
    ),
    ("budget_exceeded",): Cause(
        "a budget is used up", "`turnline queue` shows which; the budgets file sets it."
    ),
    ("invalid_message",): Cause(
        "the message breaks the contract", "`turnline dead show ID` says how."
    ),
    ("store_unavailable",): Cause(
        "Redis did not answer", "`turnline doctor` looks at Redis. The turn goes on by itself."
    ),
}
CAUSES: Final[Mapping[str, Cause]] = {
    code: cause for codes, cause in _BY_CODES.items() for code in codes
}
"""By the code that stands in `turn_failed`, the ledger, dead letters and spans."""


def cause_of(code: str) -> Cause:
    """Return what a code means; one that is not known speaks for itself."""
    return CAUSES.get(code, Cause(code.replace("_", " "), ""))
