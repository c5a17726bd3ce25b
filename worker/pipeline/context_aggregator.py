"""What the aggregators of a context share."""

import warnings
from collections.abc import Iterable
from typing import Any

from turnline.worker.pipeline.context import (
    Message,
    OpenAILLMContext,
)
from turnline.worker.pipeline.frames import (
    Frame,
    LLMMessagesAppendFrame,
    LLMMessagesUpdateFrame,
    LLMSetToolChoiceFrame,
    LLMSetToolsFrame,
    OpenAILLMContextFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection, FrameProcessor


class LLMContextResponseAggregator(FrameProcessor):
    """What both aggregators share: the context and the frames that change it."""

    def __init__(self, *, context: OpenAILLMContext, role: str, name: str | None = None) -> None:
        """Work on `context`, which the pair shares, for whoever has `role` there."""
        super().__init__(name=name)
        self._context = context
        self._role = role

    @property
    def context(self) -> OpenAILLMContext:
        """The context that this aggregator adds to."""
        return self._context

    @property
    def messages(self) -> list[Message]:
        """The context's live list of messages."""
        return self._context.get_messages()

    @property
    def role(self) -> str:
        """Whose messages these are: `user` or `assistant`."""
        return self._role

    def add_messages(self, messages: Iterable[Message]) -> None:
        """Add messages to the context."""
        self._context.add_messages(messages)

    def set_messages(self, messages: Iterable[Message]) -> None:
        """Replace the context's messages."""
        self._context.set_messages(messages)

    def set_tools(self, tools: Any) -> None:
        """Set the context's tools."""
        self._context.set_tools(tools)

    def set_tool_choice(self, tool_choice: Any) -> None:
        """Set the context's tool choice."""
        self._context.set_tool_choice(tool_choice)

    def get_context_frame(self) -> OpenAILLMContextFrame:
        """Return the frame that asks for an answer to the context as it is then."""
        return OpenAILLMContextFrame(self._context)

    async def push_context_frame(self, direction: FrameDirection = DOWNSTREAM) -> None:
        """Ask for an answer to the context as it is now."""
        await self.push_frame(self.get_context_frame(), direction)

    async def reset(self) -> None:
        """Forget what was collected; the context stays as it is."""

    async def handle_aggregation(self, aggregation: str) -> None:
        """Add what was collected to the context; pushes nothing."""
        self._context.add_message({"role": self.role, "content": aggregation})

    async def push_aggregation(self) -> None:
        """Bring what was collected into the context and ask for an answer; nothing if empty."""

    async def _change_context(self, frame: Frame) -> bool:
        """Apply a frame that changes the context itself; False if it is none."""
        match frame:
            case LLMMessagesAppendFrame():
                self.add_messages(frame.messages)
            case LLMMessagesUpdateFrame():
                self.set_messages(frame.messages)
            case LLMSetToolsFrame():
                self.set_tools(frame.tools)
                return True
            case LLMSetToolChoiceFrame():
                self.set_tool_choice(frame.tool_choice)
                return True
            case _:
                return False
        if frame.run_llm:
            await self._run_llm()
        return True

    async def _run_llm(self) -> None:
        """Ask for an answer to the context, wherever the model's service is."""
        await self.push_context_frame()


def warn_of_parameter(parameter: str) -> None:
    """Warn that a parameter stands in `params` now."""
    warnings.warn(f"{parameter} stands in `params`", DeprecationWarning, stacklevel=3)
