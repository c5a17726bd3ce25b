"""What a service answers at the moment: the state that an interruption and a response share."""

import asyncio
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final

from turnline.worker.errors import WorkerError
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import FunctionCallFromLLM
from turnline.worker.pipeline.functions import FunctionCallBatch
from turnline.worker.services.completion import Completion
from turnline.worker.services.transport import ResponseStream


class Run:
    """The answering of one context: completions until no tool result wants another."""

    def __init__(self, context: OpenAILLMContext) -> None:
        """Begin before the first response."""
        self.context = context
        self.again = False
        self.interrupted = False
        self.stream: ResponseStream | None = None
        self.uses_sdk = False
        self.completion: Completion | None = None
        """The call that is being made; None before the first of a response."""
        self.is_sent = False
        """Whether its request was sent: the next one is another call."""
        self.made: list[FunctionCallFromLLM] = []
        """Calls of the response, to be run when it is over."""
        self.parsed: list[FunctionCallFromLLM] = []
        """Those of them whose arguments were read here, and may be no JSON at all."""
        self.batch: FunctionCallBatch | None = None
        self.task = asyncio.current_task()
        self.inner: asyncio.Task[None] | None = None
        """Runs the code of a subclass, so that an interruption can end it."""
        self.unwound = asyncio.Event()

    def begin_response(self) -> None:
        """Forget the response before."""
        self.completion, self.is_sent = None, False
        self.made, self.parsed = [], []
        self.unwound.clear()

    def note_status(self, error: WorkerError) -> None:
        """Take the status from an error, where the SDK kept the response to itself."""
        status: int | None = getattr(error, "status", None)
        if self.completion is not None and self.completion.call.status is None:
            self.completion.call.status = status

    async def interrupt(self) -> None:
        """Stop what is being made; functions that may not be cancelled go on."""
        self.interrupted = True
        if self.completion is not None:
            self.completion.interrupted = True
        if self.batch is not None:
            await self.batch.interrupt()
        elif self.inner is not None or self.stream is not None:
            if self.inner is not None:
                self.inner.cancel()
            elif self.stream is not None:
                self.stream.abort()
            if asyncio.current_task() not in {self.task, self.inner}:
                await self.unwound.wait()

    async def run_calls(self, batch: FunctionCallBatch) -> None:
        """Run functions that were announced."""
        try:
            if self.interrupted:  # just before the calls began
                await batch.interrupt()
            await batch.run()
        finally:
            self.batch = None


run_of: Final[ContextVar[tuple[object, Run] | None]] = ContextVar("run_of", default=None)
"""The service that answers in this task, and what: concurrent calls never mix."""


async def interrupt_all(runs: Iterable[Run]) -> None:
    """Stop what is being answered."""
    for run in list(runs):
        await run.interrupt()
