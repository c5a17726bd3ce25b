"""What other frames make the service do, and what it measures, over real bytes."""

from typing import Any

from tests.integration.services.wire import (
    FrameTap,
    Turn,
    WireServer,
    delta,
    finish,
    frame,
    ran,
    streaming,
    turn,
)
from turnline.worker.pipeline.frames import (
    EndFrame,
    LLMMessagesFrame,
    LLMUsageMetricsData,
    MetricsFrame,
    ProcessingMetricsData,
    StartFrame,
    StopInterruptionFrame,
    TranscriptionFrame,
    TTFBMetricsData,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VisionImageRawFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM
from turnline.worker.services.openai.llm import OpenAILLMService

ANSWER = streaming(delta(content="done"), finish())


def counted(prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 99}
    return frame(choices=[{"delta": {"content": "x"}}], usage=counts)


async def test_a_spoken_turn_is_one_request_and_one_reply() -> None:
    """Speech and the end of the turn in one go: one request, the reply in the context."""
    async with turn(ANSWER) as (run, server):
        for said in (
            StartFrame(),
            UserStartedSpeakingFrame(),
            TranscriptionFrame("and now?", "cat", ""),
            UserStoppedSpeakingFrame(),
            EndFrame(),
        ):
            await run.pipeline.queue_frame(said)

        assert len(server.requests) == 1
        assert run.said == [
            {"role": "user", "content": "and now?"},
            {"role": "assistant", "content": "done"},
        ]
        assert run.names[-1] == "EndFrame"


async def test_messages_frame_is_answered_outside_the_context() -> None:
    """The messages of the frame are sent as they are, without names, and stay unchanged."""
    messages = [{"role": "user", "content": "other"}]
    async with turn(ANSWER) as (run, server):
        await run.pipeline.queue_frame(LLMMessagesFrame(messages))

        assert server.requests[0].body["messages"] == [{"role": "user", "content": "other"}]
        assert messages == [{"role": "user", "content": "other"}]


async def test_vision_frame() -> None:
    """An image with its question is one user message."""
    async with turn(ANSWER) as (run, server):
        await run.pipeline.queue_frame(VisionImageRawFrame(b"\xff\xd8", (8, 8), "JPEG", "what?"))

        (message,) = server.requests[0].body["messages"]
        assert [part["type"] for part in message["content"]] == ["text", "image_url"]


async def test_times_are_measured_on_the_given_clock() -> None:
    """Time to first chunk and time of the completion, in seconds, each reported once."""
    ticks = iter(range(1000))
    run, _ = await ran(ANSWER, now=lambda: float(next(ticks)))

    data: list[Any] = [d for f in run.frames if isinstance(f, MetricsFrame) for d in f.data]
    assert [type(d) for d in data] == [TTFBMetricsData, ProcessingMetricsData]
    assert all(d.value > 0 for d in data)
    assert {(d.processor, d.model) for d in data} == {("GrokLLMService", "grok-3-beta")}


async def test_only_the_initial_time_to_first_byte() -> None:
    """On request only the first is reported, until an interruption is over."""
    start = StartFrame(enable_metrics=True, report_only_initial_ttfb=True)
    async with turn(ANSWER) as (run, _):
        run._start = start
        for _ in range(2):
            await run.run()
        await run.pipeline.queue_frame(StopInterruptionFrame())
        await run.run()

        data = [d for f in run.frames if isinstance(f, MetricsFrame) for d in f.data]
        assert len([d for d in data if isinstance(d, TTFBMetricsData)]) == 2


async def test_openai_reports_the_last_usage_once() -> None:
    """Without Grok's rule the provider's last word is reported, its total included."""
    async with WireServer(streaming(counted(9, 9), counted(5, 1), finish())) as server:
        service = OpenAILLMService(api_key="k", client=server.client, model="m")
        seen: list[object] = []
        service.link(FrameTap(seen.append))
        await service.process_frame(StartFrame(enable_usage_metrics=True), DOWNSTREAM)
        await service._process_context(Turn(server.client).context)

        (report,) = [d for f in seen if isinstance(f, MetricsFrame) for d in f.data]
        assert isinstance(report, LLMUsageMetricsData)
        usage = report.value
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 1, 99)
