"""CPU of reading the model's stream in this process: Turnline's service beside the SDK's stream."""

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Final

from openai import AsyncOpenAI, DefaultAioHttpClient

from turnline.ops.bench.lab import Lab
from turnline.ops.bench.results import CallCost
from turnline.ops.bench.scenarios import TEXT, Model
from turnline.ops.cli.failures import Failed
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import Frame, LLMTextFrame, OpenAILLMContextFrame
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection, FrameProcessor
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.grok.responses_request import Wire
from turnline.worker.services.provider_client import ProviderClient

_KEY: Final = "xai-bench"
_MODEL: Final = "grok-4.3"
_BURSTS: Final = ((20, 20), (200, 6), (1_000, 2))
"""(chunks, calls one after the other)"""
_PACED: Final = Model(chunks=50, ttft_ms=20, itl_ms=8)
_PACED_CALLS: Final = 10
"""At the same time."""

Read = Callable[[], Awaitable[int]]
"""Makes one call and returns the characters that were read."""


class _Count(FrameProcessor):
    def __init__(self) -> None:
        super().__init__()
        self.chars = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if type(frame) is LLMTextFrame:
            self.chars += len(frame.text)


def _grok(client: ProviderClient, base_url: str, wire: Wire) -> Read:
    async def read() -> int:
        service = GrokLLMService(
            api_key=_KEY, base_url=base_url, model=_MODEL, client=client, wire=wire
        )
        count = _Count()
        service.link(count)
        context = OpenAILLMContext([{"role": "user", "content": TEXT}])
        await service.process_frame(OpenAILLMContextFrame(context), DOWNSTREAM)
        return count.chars

    return read


def _sdk(client: AsyncOpenAI) -> Read:
    async def read() -> int:
        stream = await client.chat.completions.create(
            model=_MODEL,
            messages=[{"role": "user", "content": TEXT}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chars = 0
        async for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                chars += len(piece)
        return chars

    return read


async def call_costs(lab: Lab, *, rounds: int) -> list[CallCost]:
    """Measure all readers, in bursts and paced, in turns."""
    base_url = lab.model.base_url
    own = ProviderClient(_KEY, base_url)
    plain = AsyncOpenAI(api_key=_KEY, base_url=base_url, max_retries=0)
    aio = AsyncOpenAI(
        api_key=_KEY, base_url=base_url, max_retries=0, http_client=DefaultAioHttpClient()
    )
    async with own.http, plain, aio:
        readers = {
            "GrokLLMService": _grok(own, base_url, "chat"),
            "GrokLLMService, responses": _grok(own, base_url, "responses"),
            "AsyncOpenAI": _sdk(plain),
            "AsyncOpenAI, aiohttp": _sdk(aio),
        }
        costs: list[CallCost] = []
        for chunks, calls in _BURSTS:
            costs += await _compare(lab, readers, Model(chunks=chunks), calls=calls, rounds=rounds)
        return costs + await _compare(lab, readers, _PACED, calls=_PACED_CALLS, rounds=rounds)


async def _compare(
    lab: Lab, readers: dict[str, Read], model: Model, *, calls: int, rounds: int
) -> list[CallCost]:
    pace = "paced" if model.ttft_ms else "burst"
    lab.model.answer_as(model)
    spent: dict[str, list[float]] = {name: [] for name in readers}
    for read in readers.values():
        await read()  # opens the connection
    for _ in range(rounds):
        for name, read in readers.items():
            gc.collect()
            start_s = time.process_time()
            chars = await _calls(read, calls, at_once=pace == "paced")
            spent[name].append((time.process_time() - start_s) / calls / model.chunks * 1e6)
            if chars != calls * len(model.text):
                raise Failed(f"{name} read {chars} characters, not what the model said")
    return [
        CallCost(
            reader=name,
            pace=pace,
            chunks=model.chunks,
            us_per_chunk=statistics.median(values),
            us_per_chunk_range=(min(values), max(values)),
        )
        for name, values in spent.items()
    ]


async def _calls(read: Read, calls: int, *, at_once: bool) -> int:
    if at_once:
        return sum(await asyncio.gather(*(read() for _ in range(calls))))
    return sum([await read() for _ in range(calls)])
