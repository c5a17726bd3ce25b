"""Reads usage reports: tokens and cost, in six places and under four sets of names."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import msgspec

from turnline.worker.pipeline.shapes import Fields, whole_number
from turnline.worker.pipeline.stream_events import ProviderUsage

TOKENS_MAX: Final = 10**12
"""Largest count of tokens that is believed; with more, sums would not fit a number some day."""
COST_MAX_TICKS: Final = 10**16
"""The same for the cost: a million US dollars for one call."""


class Counts(msgspec.Struct):
    """What was reported; None for what was not."""

    prompt: int | None = None
    completion: int | None = None
    reasoning: int | None = None
    cached: int | None = None
    total: int | None = None
    cost: int | None = None

    def over(self, earlier: "Counts") -> "Counts":
        """Return this report with what it leaves out taken from an earlier one."""
        if self.total is None and earlier.total is not None:
            sums = (self.prompt, self.completion) != (None, None)
            earlier = msgspec.structs.replace(earlier, total=None) if sums else earlier
        mine, its = msgspec.structs.astuple(self), msgspec.structs.astuple(earlier)
        return Counts(*(a if a is not None else b for a, b in zip(mine, its, strict=True)))


NO_COUNTS: Final = Counts()
"""Before the first report."""


_PROMPT: Final = (
    *("prompt_tokens", "input_tokens", "promptTokens", "inputTokens", "prompt_token_count"),
    *("promptTokenCount", "inputTokenCount", "prompt_eval_count", "prompt_n"),
)
_COMPLETION: Final = (
    *("completion_tokens", "output_tokens", "completionTokens", "outputTokens"),
    *("candidates_token_count", "candidatesTokenCount", "outputTokenCount", "eval_count"),
    *("predicted_n",),
)
_TOTAL: Final = ("total_tokens", "totalTokens", "total_token_count", "totalTokenCount")
_CACHED: Final = (
    *("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens"),
    *("cachedContentTokenCount", "cacheReadInputTokens", "cacheReadInputTokenCount"),
)
_REASONING: Final = ("reasoning_tokens", "thoughtsTokenCount")
_COST: Final = ("cost_in_usd_ticks",)
_DETAILS: Final = (
    *("prompt_tokens_details", "input_tokens_details", "completion_tokens_details"),
    *("output_tokens_details",),
)


_REPORTED: Final = ("input_tokens", "output_tokens", "total_tokens")


def counts_of(value: Any) -> Counts | None:
    """Read a usage report under the names that are in use; None if it reports no tokens."""
    if not isinstance(value, dict):
        return None
    fields = cast("Fields", value)
    details = [cast("Fields", it) for key in _DETAILS if isinstance(it := fields.get(key), dict)]
    counts = Counts(
        _first([fields], _PROMPT, TOKENS_MAX),
        _first([fields], _COMPLETION, TOKENS_MAX),
        _first([*details, fields], _REASONING, TOKENS_MAX),
        _first([*details, fields], _CACHED, TOKENS_MAX),
        _first([fields], _TOTAL, TOKENS_MAX),
        _first([fields], _COST, COST_MAX_TICKS, least=0),
    )
    reported = (counts.prompt, counts.completion, counts.reasoning, counts.total)
    return None if reported == (None, None, None, None) else counts


def response_usage(report: Fields) -> ProviderUsage | None:
    """Read the report of `/v1/responses`, which counts reasoning as output; None if it is none.

    One whose tokens are no counts is none: half of it would be taken for all.

    Where its sum says that reasoning stands beside the output, it is read so.
    """
    counts = counts_of(report)
    if counts is None or not all(_is_count(report.get(key)) for key in _REPORTED):
        return None
    usage = usage_of(counts)
    visible, thought = usage.completion_tokens, usage.reasoning_tokens
    beside = usage.prompt_tokens + visible + thought == counts.total
    if "output_tokens" in report and not (beside and thought):
        visible = max(0, visible - thought)
    total = counts.total or usage.prompt_tokens + visible + thought
    calls = whole_number(report.get("num_server_side_tools_used")) or 0
    return msgspec.structs.replace(
        usage,
        completion_tokens=visible,
        total_tokens=total,
        server_tool_calls=max(0, min(calls, TOKENS_MAX)),
    )


def _is_count(value: Any) -> bool:
    number = whole_number(value)
    return value is None or (number is not None and 0 <= number <= TOKENS_MAX)


def counts_in(frame: Fields, choices: Iterable[Fields]) -> Counts | None:
    """Return the usage report of a frame, wherever in it that stands."""
    places: list[Any] = [frame.get("usage")]
    for choice in choices:
        places.append(choice.get("usage"))
        places += (_get(choice.get(key), "usage") for key in ("delta", "message"))
    places += (_get(frame.get("x_groq"), "usage"), _get(frame.get("message"), "usage"))
    places += (frame.get(key) for key in ("usageMetadata", "usage_metadata"))
    places += (frame.get("amazon-bedrock-invocationMetrics"), frame.get("timings"), frame)
    found = (counts for place in places if (counts := counts_of(place)) is not None)
    return next(found, None)


def _get(value: Any, key: str) -> Any:
    return cast("Fields", value).get(key) if isinstance(value, dict) else None


def _first(
    places: Iterable[Fields], keys: Sequence[str], most: int, *, least: int = 1
) -> int | None:
    """Return the first count that can be one; a zero says that nothing was counted."""
    for fields in places:
        for key in keys:
            number = whole_number(fields[key]) if key in fields else None
            if number is not None and least <= number <= most:
                return number
    return None


def usage_of(counts: Counts) -> ProviderUsage:
    """Return what was reported, zero for what was not."""
    prompt, completion = counts.prompt or 0, counts.completion or 0
    reasoning = counts.reasoning or 0
    return ProviderUsage(
        prompt,
        completion,
        reasoning,
        min(counts.cached or 0, prompt),
        counts.total or prompt + completion + reasoning,
        counts.cost,
    )
