"""The simulator's arithmetic: tokens, usage, cost, prompt cache, rate limits."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.recordings import recorded
from turnline.ops.simulator.chat.request import BadMessage, MessageReader, Tool
from turnline.ops.simulator.config import Profile, SimulatorConfig
from turnline.ops.simulator.model.answer import count, split
from turnline.ops.simulator.model.models import catalogue
from turnline.ops.simulator.model.prompt import Prompt, PromptCache, ToolFunction, prompt_of
from turnline.ops.simulator.model.rate_limits import RateLimiter
from turnline.ops.simulator.model.usage import Usage, usage

MODERN = catalogue(Profile.MODERN)
GROK = MODERN.models["grok-4.3"]
counts = st.integers(0, 300_000)


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    """Splitting loses nothing, and counting agrees with splitting."""
    tokens = split(text)

    assert "".join(tokens) == text
    assert len(tokens) == count(text)
    assert "" not in tokens


@given(counts, counts, counts, st.sampled_from(sorted(MODERN.models)), st.data())
def test_usage_keeps_the_recorded_invariants(
    prompt: int, visible: int, reasoning: int, name: str, data: st.DataObject
) -> None:
    """The total includes reasoning; cost is exact; a long prompt doubles all of it."""
    model, cached = MODERN.models[name], data.draw(st.integers(0, prompt))
    used = usage(
        model,
        prompt_tokens=prompt,
        completion_tokens=visible,
        reasoning_tokens=reasoning,
        cached_tokens=cached,
    )

    assert used.total_tokens == prompt + visible + reasoning
    factor = 2 if prompt >= 200_000 else 1
    assert used.cost_in_usd_ticks == factor * (
        (prompt - cached) * model.input_ticks
        + cached * model.cached_ticks
        + (visible + reasoning) * model.output_ticks
    )
    assert used.prompt_tokens_details.text_tokens == prompt


@recorded("xai/chat.*.jsonl")
def test_recorded_costs_are_reproduced(path: Path) -> None:
    """Prices of the period, applied by this arithmetic, give the recorded ticks."""
    period = catalogue(Profile.OCT2025).models
    for line in path.read_bytes().splitlines():
        chunk = msgspec.json.decode(line, type=dict[str, object])
        if not chunk.get("usage"):
            continue
        recorded_usage = msgspec.convert(chunk["usage"], Usage)
        again = usage(
            period[str(chunk["model"])],
            prompt_tokens=recorded_usage.prompt_tokens,
            completion_tokens=recorded_usage.completion_tokens,
            reasoning_tokens=recorded_usage.completion_tokens_details.reasoning_tokens,
            cached_tokens=recorded_usage.prompt_tokens_details.cached_tokens,
        )
        assert again == recorded_usage


@pytest.mark.parametrize(("prompt", "factor"), [(199_999, 1), (200_000, 2)])
def test_a_long_prompt_doubles_the_price(prompt: int, factor: int) -> None:
    """From 200,000 prompt tokens on, the whole request costs twice as much."""
    used = usage(GROK, prompt_tokens=prompt, completion_tokens=10)

    assert used.cost_in_usd_ticks == factor * (prompt * 12_500 + 10 * 25_000)


def test_priority_service_costs_double() -> None:
    """A request with priority pays twice the price."""
    plain = usage(GROK, prompt_tokens=100, completion_tokens=10)
    priority = usage(GROK, prompt_tokens=100, completion_tokens=10, priority=True)

    assert isinstance(plain.cost_in_usd_ticks, int)
    assert priority.cost_in_usd_ticks == 2 * plain.cost_in_usd_ticks


def test_names_of_retired_models_lead_to_their_successors() -> None:
    """Retired names redirect, gone names do not."""
    resolved = MODERN.resolve("grok-4-1-fast-reasoning")

    assert resolved is GROK
    assert MODERN.resolve("grok-3-beta") is None
    assert catalogue(Profile.MODERN, ("grok-3-beta",)).resolve("grok-3-beta") is not None


def messages(*texts: str) -> list[msgspec.Raw]:
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    return [
        msgspec.Raw(msgspec.json.encode({"role": role, "content": text}))
        for role, text in zip(roles, texts, strict=False)
    ]


def prompt(*texts: str, tools: tuple[Tool, ...] = ()) -> Prompt:
    return prompt_of(MessageReader().read(messages(*texts)), tools, GROK)


LONG = " word" * 300


def test_a_prompt_is_counted_with_the_hidden_system_prompt() -> None:
    """A greeting costs far more than its one token."""
    assert (
        prompt_of(MessageReader().read(messages("hi")), (), MODERN.models["grok-4.6"]).tokens == 637
    )


def test_the_shared_prefix_of_a_conversation_is_cached() -> None:
    """Of the next prompt, what both have in common at the beginning counts as cached."""
    cache = PromptCache()
    cold = cache.cached_tokens("c", GROK, prompt(LONG, "one"))
    warm = cache.cached_tokens("c", GROK, prompt(LONG, "one", "answer", "two"))

    assert cold == 0
    assert warm == (181 + 303 + 4) // 64 * 64


def test_a_changed_beginning_is_not_cached() -> None:
    """When the first message changes, only the hidden prompt is shared."""
    cache = PromptCache()
    cache.cached_tokens("c", GROK, prompt(LONG, "one"))

    assert cache.cached_tokens("c", GROK, prompt("x" + LONG, "one")) == 181 // 64 * 64


def test_changed_tools_spoil_the_cache() -> None:
    """Tools stand before the messages."""
    cache = PromptCache()
    cache.cached_tokens("c", GROK, prompt(LONG, "one"))
    tools = (Tool(function=ToolFunction(name="add")),)

    assert cache.cached_tokens("c", GROK, prompt(LONG, "one", tools=tools)) == 181 // 64 * 64


def test_nothing_is_cached_without_a_key_or_under_another() -> None:
    """Caches belong to one conversation; without an id a request lands anywhere."""
    cache = PromptCache()
    cache.cached_tokens("c", GROK, prompt(LONG))

    assert cache.cached_tokens(None, GROK, prompt(LONG)) == 0
    assert cache.cached_tokens("d", GROK, prompt(LONG)) == 0


def test_a_message_with_wrong_types_is_named() -> None:
    """The complaint says which message and which field."""
    raw = [*messages("fine"), msgspec.Raw(b'{"role":"user","content":7}')]

    with pytest.raises(BadMessage, match=r"^messages\[1\]\.content: invalid type: "):
        MessageReader().read(raw)


def test_requests_per_second_are_limited() -> None:
    """The third request within a second is refused with xAI's text; a second later all is well."""
    limiter = RateLimiter(SimulatorConfig(requests_per_second=2))
    results = [limiter.admit("k", GROK, 1, now_s=at) for at in (0.0, 0.1, 0.2, 1.2)]

    assert [result is None for result in results] == [True, True, False, True]
    assert results[2] is not None
    assert "rate limit is \u2014 Requests per Second (actual/limit): 2/2." in results[2].message


def test_tokens_per_minute_are_limited() -> None:
    """Prompt and answer count; a minute later the window is empty."""
    limiter = RateLimiter(SimulatorConfig(tokens_per_minute=100))
    first = limiter.admit("k", GROK, 60, now_s=0)
    limiter.spend("k", GROK, 30, 0, now_s=1)
    second = limiter.admit("k", GROK, 20, now_s=2)
    third = limiter.admit("k", GROK, 20, now_s=61.5)

    assert first is None
    assert second is not None
    assert "Tokens per Minute (actual/limit): 110/100" in second.message
    assert third is None


def test_credits_are_used_up_once() -> None:
    """A key that has spent all that it may is refused for good; another one is not."""
    limiter = RateLimiter(SimulatorConfig(credits_usd=0.01))
    limiter.spend("k", GROK, 30, 100_000_000, now_s=1)

    refused = limiter.admit("k", GROK, 20, now_s=2)
    assert refused is not None
    assert "used all available credits" in refused.message
    assert limiter.admit("other", GROK, 20, now_s=2) is None
