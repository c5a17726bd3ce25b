"""Handlers that misbehave: a call ends with one result, whatever its handler raises or ignores."""

import asyncio
from typing import Any

import pytest

from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import Frame, FunctionCallResultFrame
from turnline.worker.pipeline.functions import (
    GRACE_S,
    FunctionCallBatch,
    FunctionCallParams,
    FunctionRegistry,
    function_call,
)
from turnline.worker.pipeline.processor import FrameDirection, FrameProcessor


class Sink(FrameProcessor):
    """Stands behind the service and keeps the results."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[FunctionCallResultFrame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, FunctionCallResultFrame):
            self.results.append(frame)


class Odd(BaseException):
    """No exception that anybody catches by its name."""


def batch(handler: Any, *, timeout_s: float | None = None, calls: int = 1) -> tuple[Any, Sink]:
    """One response's calls of a handler, and where the results go."""
    registry, context, llm, sink = FunctionRegistry(), OpenAILLMContext(), FrameProcessor(), Sink()
    llm.link(sink)
    registry.register("f", handler, timeout_s=timeout_s)
    made = [function_call("f", f"call-{n}", "{}", context) for n in range(calls)]
    return FunctionCallBatch(llm, registry, made, context, run_in_parallel=True), sink


async def ignores_everything(_params: FunctionCallParams) -> None:
    while True:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            if released.is_set():
                raise


released = asyncio.Event()


def cancel_handlers() -> list[asyncio.Task[Any]]:
    """Cancel the handlers that still run."""
    left = [task for task in asyncio.all_tasks() if "_run_handler" in repr(task.get_coro())]
    for task in left:
        task.cancel()
    return left


@pytest.fixture(autouse=True)
async def _released() -> Any:
    """End the handlers that no cancellation ends."""
    released.clear()
    yield
    released.set()
    await asyncio.gather(*cancel_handlers(), return_exceptions=True)


@pytest.mark.parametrize(
    "error",
    [
        SystemExit("words"),
        KeyboardInterrupt("words"),
        GeneratorExit("words"),
        asyncio.CancelledError("words"),
        Odd("words"),
        MemoryError(),
        RecursionError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_is_its_failure(error: BaseException) -> None:
    """It reaches neither the other calls nor the loop."""

    async def handler(params: FunctionCallParams) -> None:
        if params.tool_call_id == "call-0":
            raise error
        await params.result_callback("fine")

    calls, sink = batch(handler, calls=2)
    await calls.run()

    results = {frame.tool_call_id: frame for frame in sink.results}
    assert results["call-0"].failure == "raised"
    assert "words" not in str(results["call-0"].result)
    assert (results["call-1"].failure, results["call-1"].result) == (None, "fine")


async def test_a_handler_that_ignores_its_time_out_is_left_behind() -> None:
    """The call has timed out; the batch goes on without it."""
    calls, sink = batch(ignores_everything, timeout_s=0.05)
    async with asyncio.timeout(GRACE_S + 2):
        await calls.run()

    assert [frame.failure for frame in sink.results] == ["timed_out"]


async def test_a_handler_that_ignores_an_interruption_is_left_behind() -> None:
    """An interrupted turn does not wait for it."""
    calls, sink = batch(ignores_everything)
    running = asyncio.create_task(calls.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await calls.interrupt()
    async with asyncio.timeout(GRACE_S + 2):
        await running

    assert sink.results == []


@pytest.mark.parametrize("ticks", [1, 2, 5])
async def test_a_handler_that_ignores_the_end_of_the_turn_is_left_behind(ticks: int) -> None:
    """A hand-over is not held up, at whatever moment it comes."""
    calls, _ = batch(ignores_everything, calls=3)
    running = asyncio.create_task(calls.run())
    for _ in range(ticks):
        await asyncio.sleep(0)
    running.cancel()
    async with asyncio.timeout(GRACE_S + 2):
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_a_result_of_a_handler_that_was_left_behind_is_not_waited_for() -> None:
    """It comes to nothing, and does not hold the handler for ever."""
    ended = asyncio.Event()

    async def handler(params: FunctionCallParams) -> None:
        try:
            await ignores_everything(params)
        finally:
            await params.result_callback("too late")
            ended.set()

    calls, sink = batch(handler, timeout_s=0.05)
    await calls.run()
    released.set()
    cancel_handlers()
    async with asyncio.timeout(2):
        await ended.wait()

    assert [frame.failure for frame in sink.results] == ["timed_out"]


async def test_a_cancelled_handler_may_clean_up() -> None:
    """It is waited for while it does."""
    cleaned: list[str] = []

    async def handler(params: FunctionCallParams) -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            await asyncio.sleep(GRACE_S / 10)
            cleaned.append(params.tool_call_id)

    calls, sink = batch(handler, timeout_s=0.05)
    await calls.run()

    assert cleaned == ["call-0"]
    assert sink.results[0].failure == "timed_out"
