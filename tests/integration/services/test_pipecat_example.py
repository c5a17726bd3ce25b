"""A program in the style of pipecat's function-calling example, against the simulated Grok.

The parts that are other companies' (transport, speech) are stand-ins; all else is as a user of
pipecat writes it, with its imports changed.
"""

import json
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from tests.support.wait import wait_until
from turnline.ops.simulator import Simulator
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import (
    Frame,
    LLMFullResponseEndFrame,
    MetricsFrame,
    TextFrame,
    TranscriptionFrame,
    TTSSpeakFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from turnline.worker.pipeline.functions import FunctionCallParams
from turnline.worker.pipeline.processor import FrameDirection, FrameProcessor, Pipeline
from turnline.worker.pipeline.task import PipelineParams, PipelineRunner, PipelineTask
from turnline.worker.pipeline.tool_schemas import FunctionSchema, ToolsSchema
from turnline.worker.services.grok.llm import GrokLLMService


class SpeechToText(FrameProcessor):
    """Stands for a speech service: what is heard comes as frames already."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


class TextToSpeech(FrameProcessor):
    """Stands for a speech service: says texts, and passes them on as spoken."""

    def __init__(self) -> None:
        super().__init__()
        self.spoken: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSSpeakFrame):
            self.spoken.append(frame.text)
        elif isinstance(frame, TextFrame) and not isinstance(frame, TTSTextFrame):
            self.spoken.append(frame.text)
            await self.push_frame(TTSTextFrame(frame.text.strip()), direction)
        else:
            await self.push_frame(frame, direction)


class Transport(FrameProcessor):
    """Stands for a transport: tells that a client has come, and what has gone out to it."""

    EVENTS = frozenset({"on_client_connected", "on_client_disconnected"})

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[object] = []
        self.answers = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, MetricsFrame):
            self.metrics.extend(type(data).__name__ for data in frame.data)
        if isinstance(frame, LLMFullResponseEndFrame):
            self.answers += 1
        await self.push_frame(frame, direction)

    async def connected(self) -> None:
        await self._call_event_handler("on_client_connected", "cat")

    async def disconnected(self) -> None:
        await self._call_event_handler("on_client_disconnected", "cat")


async def fetch_weather_from_api(params: FunctionCallParams) -> None:
    """Answer as the weather service would."""
    await params.result_callback({"conditions": "nice", "temperature": "75"})


async def run_example(
    transport: Transport,
    tts: TextToSpeech,
    context: OpenAILLMContext,
    llm: GrokLLMService,
    speak: Callable[[PipelineTask], Awaitable[None]],
) -> None:
    """The program: a bot that is asked to speak first, and then about the weather."""
    llm.register_function("get_current_weather", fetch_weather_from_api)

    @llm.event_handler("on_function_calls_started")
    async def on_function_calls_started(service: object, function_calls: object) -> None:
        await tts.queue_frame(TTSSpeakFrame("Let me check on that."))

    context_aggregator = llm.create_context_aggregator(context)
    pipeline = Pipeline(
        [
            SpeechToText(),
            context_aggregator.user(),
            llm,
            tts,
            transport,
            context_aggregator.assistant(),
        ]
    )
    task = PipelineTask(
        pipeline,
        params=PipelineParams(
            allow_interruptions=True, enable_metrics=True, enable_usage_metrics=True
        ),
    )

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport: object, client: object) -> None:
        await task.queue_frames([context_aggregator.user().get_context_frame()])
        await speak(task)

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport: object, client: object) -> None:
        await task.cancel()

    await transport.connected()
    await PipelineRunner(handle_sigint=False).run(task)


async def test_the_function_calling_example_runs(sim: Simulator) -> None:
    """The bot greets, hears a question, calls the function, says so meanwhile, and answers."""
    arguments = {"location": "Paris", "format": "celsius"}
    weather = FunctionSchema(
        name="get_current_weather",
        description="Get the current weather",
        properties={
            "location": {"type": "string", "description": "The city, e.g. San Francisco, CA"},
            "format": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        required=["location", "format"],
    )
    messages = [{"role": "system", "content": "You are a helpful LLM in a WebRTC call."}]
    context = OpenAILLMContext(messages, ToolsSchema(standard_tools=[weather]))
    llm = GrokLLMService(api_key="xai-test", base_url=sim.base_url, model="grok-4.3")
    transport, tts = Transport(), TextToSpeech()

    async def speak(task: PipelineTask) -> None:
        await wait_until(lambda: transport.answers == 1, "the greeting")
        scenario = f"tool;name=get_current_weather,arguments={quote(json.dumps(arguments))}"
        sim.inject(scenario, times=None)
        await task.queue_frames(
            [
                UserStartedSpeakingFrame(),
                TranscriptionFrame("What is the weather", "cat", ""),
                TranscriptionFrame("in Paris?", "cat", ""),
                UserStoppedSpeakingFrame(),
            ]
        )
        await wait_until(lambda: transport.answers == 3, "the answer behind the call")
        await wait_until(lambda: len(context.messages) == 6, "the answer in the context")
        await transport.disconnected()

    try:
        await run_example(transport, tts, context, llm, speak)
    finally:
        await llm.close()

    assert [m["role"] for m in context.messages] == (
        ["system", "assistant", "user", "assistant", "tool", "assistant"]
    )
    assert context.messages[2]["content"] == "What is the weather in Paris?"
    made = context.messages[3]["tool_calls"][0]["function"]
    assert (made["name"], json.loads(made["arguments"])) == ("get_current_weather", arguments)
    assert json.loads(context.messages[4]["content"])["conditions"] == "nice"
    assert "Let me check on that." in tts.spoken
    assert {"TTFBMetricsData", "LLMUsageMetricsData", "ProcessingMetricsData"} <= {
        *transport.metrics
    }
    assert [call.outcome for call in llm.calls] == ["completed"] * 3
