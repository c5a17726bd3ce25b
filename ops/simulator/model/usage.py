"""Token counts and cost of one answer, by xAI's arithmetic."""

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from turnline.ops.simulator.model.models import Model

LONG_PROMPT_TOKENS: Final = 200_000
"""From this prompt length on, the whole request costs twice as much."""


class PromptDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What the prompt consisted of."""

    text_tokens: int
    audio_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0


class CompletionDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What was generated beside the visible answer."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The `usage` object. `completion_tokens` excludes reasoning, `total_tokens` includes it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    num_sources_used: int = 0
    cost_in_usd_ticks: int | UnsetType = UNSET
    """1 USD is 1e10 ticks. Absent in 2025 and before."""


def usage(
    model: Model,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    reasoning_tokens: int = 0,
    cached_tokens: int = 0,
    image_tokens: int = 0,
    priority: bool = False,
) -> Usage:
    """Count and price one answer exactly.

    Source: https://docs.x.ai/developers/pricing
    """
    fresh = prompt_tokens - cached_tokens
    ticks = (
        fresh * model.input_ticks
        + cached_tokens * model.cached_ticks
        + (completion_tokens + reasoning_tokens) * model.output_ticks
    )
    if prompt_tokens >= LONG_PROMPT_TOKENS:
        ticks *= 2
    if priority:
        ticks *= 2
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens + reasoning_tokens,
        prompt_tokens_details=PromptDetails(
            text_tokens=prompt_tokens - image_tokens,
            image_tokens=image_tokens,
            cached_tokens=cached_tokens,
        ),
        completion_tokens_details=CompletionDetails(reasoning_tokens=reasoning_tokens),
        cost_in_usd_ticks=ticks,
    )


def cached_over_prompt(used: Usage, extra: int) -> Usage:
    """Report more cached tokens than the prompt has, as Azure does."""
    details = msgspec.structs.replace(
        used.prompt_tokens_details, cached_tokens=used.prompt_tokens + extra
    )
    return msgspec.structs.replace(used, prompt_tokens_details=details)
