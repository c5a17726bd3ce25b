"""What one chunk of a reply costs the worker, in counts: a guard against regressions.

The bounds are today's figures and a little more. Who makes a chunk cheaper lowers them; who has to
raise one says why in the change.
"""

import asyncio
import gc
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.trace_context import TurnTrace
from turnline.worker.lease import Lease
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import OpenAILLMContextFrame
from turnline.worker.pipeline.processor import DOWNSTREAM
from turnline.worker.pipeline.responses_stream import ResponsesStream
from turnline.worker.pipeline.stream import CompletionStream
from turnline.worker.provider_limits import Caller
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.turn.attempt import Tap
from turnline.worker.turn.attempt_log import AttemptLog, TurnFacts
from turnline.worker.turn.event_writer import EventWriter
from turnline.worker.turn.grants import Grants, Unlimited
from turnline.worker.turn.observer import Unobserved

SHORT, LONG = 20, 220
"""Chunks of two replies; what they differ by is what chunks cost."""
DECODER_CALLS = 8.5
"""Calls of functions, C's included, per chunk that the decoder reads."""
RESPONSES_CALLS = 5.5
"""The same on `/v1/responses`."""
TURN_CALLS = 21.5
"""The same from the response's bytes to the event for readers and the context."""
READ_CALLS = 32.5
"""The same where every chunk comes by itself."""


def chunk(text: str) -> bytes:
    """One delta as xAI sends it."""
    return (
        b'data: {"id":"r-1","object":"chat.completion.chunk","created":1,"model":"grok-4.3",'
        b'"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()
    )


def event(number: int) -> bytes:
    """One delta of `/v1/responses` as xAI sends it."""
    return (
        b'event: response.output_text.delta\ndata: {"sequence_number":%d,"type":'
        b'"response.output_text.delta","content_index":0,"delta":"word ","item_id":"msg_1",'
        b'"output_index":1,"logprobs":[]}\n\n' % number
    )


def reply(chunks: int) -> list[bytes]:
    """A whole reply, one piece per event."""
    return [
        *(chunk("word ") for _ in range(chunks)),
        b'data: {"id":"r-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"id":"r-1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n',
        b"data: [DONE]\n\n",
    ]


class Counted:
    """How often functions were called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, _frame: FrameType, event: str, _arg: object) -> None:
        if event in {"call", "c_call"}:
            self.calls += 1


@contextmanager
def counting() -> Generator[Counted]:
    """Count the calls made in the block, by this thread."""
    counted = Counted()
    gc.collect()
    gc.disable()  # hooks of collections would be counted
    sys.setprofile(counted)
    try:
        yield counted
    finally:
        sys.setprofile(None)
        gc.enable()


class Pieces(httpx2.AsyncByteStream):
    """A response's body in pieces, each of which is a read."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class Readers:
    """An event sink that takes everything at once."""

    def __init__(self) -> None:
        self.events: list[bytes] = []

    async def emit(self, _lease: Lease, events: Sequence[bytes], **_: Any) -> None:
        self.events += events


class Loop:
    """Tasks and timers that were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        loop = asyncio.get_running_loop()
        for name in ("create_task", "call_at", "call_later", "create_future"):
            monkeypatch.setattr(loop, name, self._counting(getattr(loop, name)))

    def _counting(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.made += 1
            return make(*args, **kwargs)

        return counted


async def calls_per_chunk(*short_and_long: Sequence[bytes]) -> float:
    """Return what a chunk adds, after a first reply that imports and caches what there is."""
    _, short, long = [await answer(it) for it in (short_and_long[0], *short_and_long)]
    return (long.calls - short.calls) / (LONG - SHORT)


async def answer(pieces: Sequence[bytes]) -> Counted:
    """Answer a context with this reply, as a turn does, and count."""

    def respond(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=Pieces(pieces))

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(respond))
    async with AsyncOpenAI(api_key="xai-test", http_client=http, max_retries=0) as client:
        service = GrokLLMService(api_key="xai-test", client=client)
        context = OpenAILLMContext([{"role": "user", "content": "hi"}])
        pair = service.create_context_aggregator(context)
        facts = TurnFacts("c-1", "t-1", 1, TurnTrace("", ""))
        writer = EventWriter(
            Readers(),
            Lease("{s0}", "c-1", "1 w"),
            facts.ids,
            entry_id="1-1",
            batches=itertools.count(1),
            coalesce_s=3600,
            coalesce_bytes=1_000_000,
        )
        nothing: Any = None
        log = AttemptLog(
            facts,
            writer,
            nothing,
            nothing,
            Unobserved(),
            context=context,
            settings=ConversationSettings(),
            opening=(),
            grants=Grants(Unlimited(), "grok", Caller("it"), lambda: 0, None),
        )
        tap = Tap(log, nothing)
        service.link(tap)
        tap.link(pair.assistant())
        with counting() as counted:
            await service.process_frame(OpenAILLMContextFrame(context), DOWNSTREAM)
        chunks = len(pieces) if len(pieces) > 1 else pieces[0].count(b"word")
        assert writer.chars >= chunks - 3
        writer.rest()
    return counted


def test_the_decoder_makes_so_many_calls_per_chunk() -> None:
    """One read with many chunks in it: each costs the decoder a few calls."""
    made = []
    for chunks in (SHORT, LONG):
        data = b"".join(reply(chunks))
        with counting() as counted:
            events = CompletionStream().feed(data)
        assert len(events) > chunks
        made.append(counted.calls)

    assert (made[1] - made[0]) / (LONG - SHORT) <= DECODER_CALLS


def test_the_decoder_of_responses_makes_so_many_calls_per_chunk() -> None:
    """An event of text costs no more than one call above a chunk of chat."""
    made = []
    for chunks in (SHORT, LONG):
        data = b"".join(event(n) for n in range(chunks))
        with counting() as counted:
            events = ResponsesStream().feed(data)
        assert len(events) == chunks
        made.append(counted.calls)

    assert (made[1] - made[0]) / (LONG - SHORT) <= RESPONSES_CALLS


async def test_a_turn_makes_so_many_calls_per_chunk() -> None:
    """From the bytes of one read to the readers' event and the context."""
    made = await calls_per_chunk(*([b"".join(reply(n))] for n in (SHORT, LONG)))

    assert made <= TURN_CALLS


async def test_a_read_makes_so_many_calls() -> None:
    """A model that says a word at a time costs more per chunk, and not much more."""
    made = await calls_per_chunk(*(reply(n) for n in (SHORT, LONG)))

    assert made <= READ_CALLS


@pytest.mark.parametrize("at_once", [True, False], ids=["one read", "a read per chunk"])
async def test_no_task_timer_or_future_is_made_per_chunk(
    at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply of 220 chunks makes as many as one of 20."""
    await answer(reply(SHORT))  # opens what is opened once
    loop = Loop(monkeypatch)
    made = []
    for chunks in (SHORT, LONG):
        before = loop.made
        pieces = reply(chunks)
        await answer([b"".join(pieces)] if at_once else pieces)
        made.append(loop.made - before)

    assert made[0] == made[1]
