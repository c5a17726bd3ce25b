"""What the openai SDK makes of each fault; an SDK that changes its behaviour fails here."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    InternalServerError,
    RateLimitError,
    Timeout,
)

from tests.integration.simulator.asking import ask
from turnline.ops.simulator import Simulator

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("add", "multiply")
]


class Seen:
    """What came out of a stream before it ended or failed."""

    def __init__(self) -> None:
        self.chunks: list = []
        self.error: BaseException | None = None

    @property
    def text(self) -> str:
        return "".join(
            chunk.choices[0].delta.content or ""
            for chunk in self.chunks
            if chunk is not None and chunk.choices and chunk.choices[0].delta
        )

    @property
    def finish(self) -> str | None:
        found = [c.choices[0].finish_reason for c in self.chunks if c is not None and c.choices]
        return next((reason for reason in reversed(found) if reason is not None), None)

    @property
    def usage(self):
        return next((c.usage for c in reversed(self.chunks) if c is not None and c.usage), None)


async def read(client: AsyncOpenAI, scenario: str, **extra: Any) -> Seen:
    """Ask for a stream under a scenario and keep whatever comes."""
    seen = Seen()
    try:
        stream = await ask(
            client,
            text="Hello",
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-sim": scenario},
            **extra,
        )
        async with stream:
            async for chunk in stream:
                seen.chunks.append(chunk)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the outcome
        seen.error = error
    return seen


WORDS = "chunks=10"
TEXT = "word" + " word" * 9


@pytest.mark.parametrize(
    "scenario",
    [
        "comment;at=tokens:2",
        "crlf",
        "multiline",
        "malformed",
        "gzip",
        "no-done",
        "usage-every-chunk",
        "finish=",
        "unknown-keys",
        "two-usages",
        "decreasing-usage",
        "duplicate-finish",
        "usage-before-finish",
        "after-done",
        "dribble;bytes=40",
        "pace;coalesce=1-7",
        "id-change",
        "model-change",
        "ignore-disconnect",
        "idle-close",
        "close",
        "content-type;value=text/plain",
    ],
)
async def test_harmless_oddities_are_read_through(client: AsyncOpenAI, scenario: str) -> None:
    """The whole text and the last usage arrive."""
    seen = await read(client, f"{WORDS} | {scenario}")

    assert seen.error is None
    assert seen.text == TEXT
    assert seen.usage.completion_tokens == 10


async def test_characters_may_be_split_over_segments(client: AsyncOpenAI) -> None:
    """UTF-8 is put together again."""
    seen = await read(client, "text;say=Ol%C3%A1%20%F0%9F%99%82 | split-utf8")

    assert seen.text == "Olá 🙂"


async def test_a_chunk_of_eight_megabytes_is_read(client: AsyncOpenAI) -> None:
    """Size alone breaks nothing."""
    seen = await read(client, "big-chunk")

    assert len(seen.text) == 8_000_000


async def test_a_byte_order_mark_loses_the_first_event(client: AsyncOpenAI) -> None:
    """Silently."""
    seen = await read(client, f"{WORDS} | bom")

    assert (seen.error, seen.text) == (None, " word" * 9)


async def test_an_unclosed_last_event_is_lost(client: AsyncOpenAI) -> None:
    """And it is the usage."""
    seen = await read(client, f"{WORDS} | no-final-blank")

    assert (seen.error, seen.text, seen.usage) == (None, TEXT, None)


@pytest.mark.parametrize("scenario", ["ok-json", "ok-html", "ok-empty", "done-first"])
async def test_a_success_that_is_none_yields_nothing(client: AsyncOpenAI, scenario: str) -> None:
    """No chunk, no error."""
    seen = await read(client, scenario)

    assert (seen.error, seen.chunks) == (None, [])


async def test_an_early_clean_end_looks_like_success(client: AsyncOpenAI) -> None:
    """Three of ten words, no finish reason, no error."""
    seen = await read(client, f"{WORDS} | eof;after=3")

    assert (seen.error, seen.text, seen.finish) == (None, "word word word", None)


@pytest.mark.parametrize(
    ("scenario", "cause"),
    [
        ("fin", httpx2.RemoteProtocolError),
        ("fin;mid=0", httpx2.RemoteProtocolError),
        ("short-length;at=tokens:3", httpx2.RemoteProtocolError),
        ("bad-chunk-size", httpx2.RemoteProtocolError),
        ("rst", httpx2.ReadError),
    ],
)
async def test_broken_transport_raises_after_what_came(
    client: AsyncOpenAI, scenario: str, cause: type[Exception]
) -> None:
    """Whole chunks are delivered, a half event is dropped."""
    seen = await read(client, f"{WORDS} | pace;coalesce=1 | {scenario}")

    assert type(seen.error) is APIConnectionError
    assert isinstance(seen.error.__cause__, cause)
    assert (
        seen.text in {"word word word", ""}
        if cause is httpx2.ReadError
        else (seen.text == "word word word")
    )


@pytest.mark.parametrize(
    "scenario",
    ["accept-close", "garbage", "fin;at=before_headers", "rst;at=before_headers", "bad-gzip"],
)
async def test_no_usable_head_is_a_connection_error(client: AsyncOpenAI, scenario: str) -> None:
    """Nothing comes out but the error."""
    seen = await read(client, scenario)

    assert type(seen.error) is APIConnectionError
    assert seen.chunks == []


@pytest.mark.parametrize(
    ("at", "text"),
    [("before_headers", ""), ("after_headers", ""), ("tokens:3", "word word word")],
)
async def test_silence_times_out(client: AsyncOpenAI, at: str, text: str) -> None:
    """Wherever it begins."""
    seen = await read(client, f"{WORDS} | stall;at={at}")

    assert type(seen.error) is APITimeoutError
    assert seen.text == text


async def test_compressed_words_arrive_as_they_are_written(client: AsyncOpenAI) -> None:
    """Nothing is held back by the compression."""
    seen = await read(client, f"{WORDS} | gzip | stall;after=3")

    assert seen.text == "word word word"


async def test_comments_keep_a_silent_call_alive(client: AsyncOpenAI) -> None:
    """They come more often than the read timeout, so that never fires."""
    seen = await read(client, f"{WORDS} | stall-keepalive;keepalive=0.1,seconds=0.6")

    assert (seen.error, seen.text) == (None, TEXT)


@pytest.mark.parametrize(
    ("scenario", "error"),
    [("truncated-json", json.JSONDecodeError), ("bad-utf8", UnicodeDecodeError)],
)
async def test_spoilt_frames_raise_foreign_errors(
    client: AsyncOpenAI, scenario: str, error: type[Exception]
) -> None:
    """Not the SDK's own."""
    seen = await read(client, f"{WORDS} | {scenario}")

    assert type(seen.error) is error


@pytest.mark.parametrize(
    ("shape", "message", "code"),
    [
        ("flat", "An error occurred during streaming", None),
        ("nested", "Boom", "c1"),
        ("typed", "Boom", None),
        ("event-nested", "Boom", None),
    ],
)
async def test_error_frames_raise(
    client: AsyncOpenAI, shape: str, message: str, code: str | None
) -> None:
    """The flat form keeps its text in the body only."""
    seen = await read(client, f"{WORDS} | error-frame;shape={shape},text=Boom,code=c1")

    assert type(seen.error) is APIError
    assert (seen.error.message, seen.error.code) == (message, code)
    assert seen.text == "word word word"
    if shape == "flat":
        assert seen.error.body == "Boom"


@pytest.mark.parametrize("shape", ["bare", "event"])
async def test_error_frames_without_an_error_key_are_chunks(
    client: AsyncOpenAI, shape: str
) -> None:
    """The stream goes on with a chunk that has no choices."""
    seen = await read(client, f"{WORDS} | error-frame;shape={shape},then=go-on")

    assert seen.error is None
    assert [chunk.choices for chunk in seen.chunks if not isinstance(chunk.choices, list)] == [None]


@pytest.mark.parametrize("value", ["null", "array", "number", "string"])
async def test_frames_that_are_no_objects_come_through(client: AsyncOpenAI, value: str) -> None:
    """As they are."""
    seen = Seen()
    stream = await ask(
        client,
        text="Hello",
        stream=True,
        extra_headers={"x-sim": f"chunks=1 | odd-frame;at=after_headers,value={value}"},
    )
    async with stream:
        seen.chunks = [chunk async for chunk in stream]

    assert seen.chunks[0] == {"null": None, "array": [], "number": 7, "string": "text"}[value]


@pytest.mark.parametrize("shape", ["null", "missing", "delta-null", "delta-missing"])
async def test_missing_choices_and_deltas_are_none(client: AsyncOpenAI, shape: str) -> None:
    """User code that indexes them fails; the SDK does not."""
    seen = await read(client, f"{WORDS} | bent-choices;shape={shape},at=after_headers")
    choices = seen.chunks[0].choices

    assert seen.error is None
    assert choices is None or choices[0].delta is None


async def test_a_null_usage_is_none(client: AsyncOpenAI) -> None:
    """No report at all."""
    assert (await read(client, f"{WORDS} | usage-null")).usage is None


@pytest.mark.parametrize(
    ("scenario", "error", "status"),
    [
        ("credits;code=402", APIStatusError, 402),
        ("live-search", APIStatusError, 410),
        ("media-type", APIStatusError, 415),
        ("status=529", InternalServerError, 529),
        ("html=524", InternalServerError, 524),
        ("rate-limit", RateLimitError, 429),
    ],
)
async def test_statuses_have_their_classes(
    client: AsyncOpenAI, scenario: str, error: type[APIStatusError], status: int
) -> None:
    """Some have none of their own."""
    seen = await read(client, scenario)

    assert type(seen.error) is error
    assert seen.error.status_code == status


async def test_xais_text_is_not_in_the_exception(client: AsyncOpenAI) -> None:
    """Its code is in the response only, its text in the body."""
    error = (await read(client, "penalty")).error

    assert str(error) == "Error code: 400"
    assert error.code is None
    assert error.body == "Argument not supported on this model: presencePenalty"
    assert error.response.json()["code"] == "invalid-argument"


@pytest.fixture
async def retrying(sim: Simulator) -> AsyncIterator[AsyncOpenAI]:
    """The SDK with its own retries."""
    async with AsyncOpenAI(
        base_url=sim.base_url, api_key="k", max_retries=2, timeout=Timeout(5, read=0.3)
    ) as sdk:
        yield sdk


async def test_the_sdk_retries_before_the_head_only(retrying: AsyncOpenAI, sim: Simulator) -> None:
    """A reset before the head is tried again, after it never."""
    before = await read(retrying, "fail;n=1,key=a,with=rst%3Bat=before_headers")
    after = await read(retrying, "rst")
    counts = [entry.headers["x-stainless-retry-count"] for entry in sim.ledger.entries()]

    assert before.error is None
    assert type(after.error) is APIConnectionError
    assert counts == ["0", "1", "0"]


async def test_the_sdk_honours_retry_after_in_milliseconds(
    retrying: AsyncOpenAI, sim: Simulator
) -> None:
    """Two failures, then success, 20 ms apart."""
    seen = await read(retrying, "fail;n=2,with=rate-limit%3Bretry_after=20ms")
    received = [entry.received_at_ms for entry in sim.ledger.entries()]

    assert seen.error is None
    assert len(received) == 3
    assert received[2] - received[0] < 400


async def test_a_redirect_is_followed(client: AsyncOpenAI, sim: Simulator) -> None:
    """307 keeps method and body."""
    seen = await read(client, f"{WORDS} | redirect")

    assert seen.text == TEXT
    assert [entry.status for entry in sim.ledger.entries()] == [307, 200]


async def test_a_stale_connection_is_an_error_of_the_next_call(client: AsyncOpenAI) -> None:
    """A kept connection that turns out closed is reported as a connection error."""
    first = await read(client, f"{WORDS} | idle-close;on=next")
    second = await read(client, WORDS)
    third = await read(client, WORDS)

    assert (first.error, third.error) == (None, None)
    assert type(second.error) is APIConnectionError


async def test_the_late_end_of_a_body_does_not_hold_the_answer_long(client: AsyncOpenAI) -> None:
    """The SDK gives up waiting for the end after `[DONE]`."""
    seen = await read(client, f"{WORDS} | slow-close;ms=5000")

    assert (seen.error, seen.text) == (None, TEXT)


@pytest.mark.parametrize(
    ("scenario", "names", "finish"),
    [
        ("tool", ["add"], "tool_calls"),
        ("tools", ["add", "multiply"], "tool_calls"),
        ("tools-one-chunk", ["add", "multiply"], "tool_calls"),
        ("tool-split;n=2,arguments=%7B%22a%22:1234567%7D", ["add", "multiply"], "tool_calls"),
        ("tool-no-index", ["add"], "tool_calls"),
        ("tool-no-id", ["add"], "tool_calls"),
        ("tool-bad-json", ["add"], "tool_calls"),
        ("tool-finish-stop", ["add"], "stop"),
        ("tool-finish-empty", ["add"], ""),
        ("tool-with-content;name=multiply", ["multiply"], "tool_calls"),
    ],
)
async def test_tool_calls_come_in_all_shapes(
    client: AsyncOpenAI, scenario: str, names: list[str], finish: str
) -> None:
    """Names, finish reason, and what each shape leaves out or spoils."""
    seen = await read(client, scenario, tools=TOOLS)
    deltas = [c.choices[0].delta for c in seen.chunks if c.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]

    assert seen.error is None
    assert [call.function.name for call in calls if call.function.name] == names
    assert seen.finish == finish
    assert (calls[0].index is None) is ("no-index" in scenario)
    assert (calls[0].id is None) is ("no-id" in scenario)
    arguments = {
        index: "".join(c.function.arguments or "" for c in calls if c.index == index)
        for index in {call.index for call in calls}
    }
    if "bad-json" in scenario:
        assert arguments == {0: "{,"}
    elif "split" in scenario:
        assert arguments == {0: '{"a":1234567}', 1: '{"a":1234567}'}
    else:
        assert set(arguments.values()) == {"{}"}


async def test_a_call_is_not_repeated_after_its_result(client: AsyncOpenAI) -> None:
    """Conversations come to an end, unless asked to loop."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    ended = await client.chat.completions.create(
        model="grok-4.3@tool", messages=messages, tools=TOOLS
    )
    looped = await client.chat.completions.create(
        model="grok-4.3@tool;loop=1", messages=messages, tools=TOOLS
    )

    assert ended.choices[0].message.content.startswith("The tool says “4”.")
    assert looped.choices[0].message.tool_calls[0].function.name == "add"


async def test_reasoning_is_seen_as_the_mode_has_it(client: AsyncOpenAI) -> None:
    """All of it, a summary, blocks, empty deltas, comments, or nothing; the count is the same."""
    shown = {}
    for mode in ("stream", "summary", "block", "empty", "silent", "hidden"):
        seen = await read(client, f"{WORDS} | reasoning;mode={mode},tokens=60,seconds=30")
        assert seen.usage.completion_tokens_details.reasoning_tokens == 60
        assert seen.text == TEXT
        deltas = [chunk.choices[0].delta for chunk in seen.chunks if chunk.choices]
        assert [delta.role for delta in deltas if delta.role] == ["assistant"]
        reasons = [d.reasoning_content for d in deltas if hasattr(d, "reasoning_content")]
        shown[mode] = (len(deltas), len(reasons))

    assert shown["stream"] == (71, 60)
    assert shown["summary"] == (23, 12)
    assert shown["block"] == (13, 2)
    assert shown["empty"] == (131, 0)
    assert shown["silent"] == shown["hidden"] == (11, 0)


@pytest.mark.parametrize(
    ("scenario", "text", "finish"),
    [
        ("echo", "Hello", "stop"),
        ("reasoning-only", "", "stop"),
        ("length-reasoning", "", "length"),
        ("content-filter", "", "content_filter"),
        (f"{WORDS} | safety-stop", "word word word word word", "content_filter"),
        (f"{WORDS} | length", "word word word word word", "length"),
        ("chunks=2 | duplicate-last", "word word word", "stop"),
        ("content-null", "", "stop"),
        ("empty", "", "stop"),
        ("empty-reasoning", "", "stop"),
    ],
)
async def test_answers_can_be_odd(
    client: AsyncOpenAI, scenario: str, text: str, finish: str
) -> None:
    """Text and finish reason of each."""
    seen = await read(client, scenario)

    assert (seen.error, seen.text, seen.finish) == (None, text, finish)


async def test_refusals_citations_and_other_models_are_told(client: AsyncOpenAI) -> None:
    """In their own places."""
    refused = await ask(client, "grok-4.3@refusal", "x")
    cited = await read(client, "citations")
    moved = await read(client, "model-redirect;to=grok-4.6")

    assert refused.choices[0].message.refusal == "I cannot help with that."
    assert refused.choices[0].message.content is None
    assert [getattr(c, "citations", None) is not None for c in cited.chunks[-3:]] == [
        False, True, True,
    ]  # fmt: skip
    assert {chunk.model for chunk in moved.chunks} == {"grok-4.6"}


@pytest.mark.parametrize(
    ("scenario", "broken"),
    [
        ("cached-over-prompt", "cached"),
        ("total-inconsistent", "total"),
        ("ticks-zero", "zero"),
        ("ticks-absent", "absent"),
    ],
)
async def test_usage_can_be_bent(client: AsyncOpenAI, scenario: str, broken: str) -> None:
    """Exactly one thing is wrong with it."""
    used = (await read(client, scenario)).usage
    reasoning = used.completion_tokens_details.reasoning_tokens
    faults = {
        "cached": used.prompt_tokens_details.cached_tokens > used.prompt_tokens,
        "total": used.total_tokens != used.prompt_tokens + used.completion_tokens + reasoning,
        "zero": getattr(used, "cost_in_usd_ticks", None) == 0,
        "absent": not hasattr(used, "cost_in_usd_ticks"),
    }

    assert [name for name, found in faults.items() if found] == [broken]
