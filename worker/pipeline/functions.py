"""Runs the functions that a model calls, so that every call ends with exactly one result."""

import asyncio
import inspect
import json
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from turnline.contracts.nesting import is_deep
from turnline.contracts.numbers import number
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import (
    Frame,
    FunctionCallCancelFrame,
    FunctionCallFromLLM,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallResultProperties,
    FunctionCallsStartedFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, UPSTREAM, FrameDirection, FrameProcessor

GRACE_S = 0.5
"""Seconds for which a cancelled handler is waited for."""


class FunctionCallFailed(Exception):
    """Raised by a handler; the text is meant for the model and becomes the call's result."""


class FunctionCallElsewhere(Exception):
    """Raised by a handler: the result comes from elsewhere, and later than this run ends."""


class ResultCallback(Protocol):
    """Hands over a call's result. Only the first one of a call counts."""

    async def __call__(
        self, result: Any, properties: FunctionCallResultProperties | None = None
    ) -> None:
        """Return when the result stands in the context."""
        ...


@dataclass
class FunctionCallParams:
    """What a handler gets."""

    function_name: str
    tool_call_id: str
    arguments: Any
    llm: FrameProcessor
    context: OpenAILLMContext
    result_callback: ResultCallback


Handler = Callable[..., Awaitable[None]]
StartCallback = Callable[[str, FrameProcessor, OpenAILLMContext], Awaitable[None]]


class RegisteredFunction(msgspec.Struct, frozen=True):
    """A handler and how to run it."""

    handler: Handler
    takes_params: bool
    cancel_on_interruption: bool
    start_callback: StartCallback | None
    timeout_s: float | None


class FunctionRegistry:
    """Handlers by function name; the name None catches all others."""

    def __init__(self) -> None:
        """Begin empty."""
        self._functions: dict[str | None, RegisteredFunction] = {}

    def register(
        self,
        name: str | None,
        handler: Handler,
        start_callback: StartCallback | None = None,
        *,
        cancel_on_interruption: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        """Set the handler of a function, in place of a former one.

        Args:
            name: The function's name; None for all that have no handler of their own.
            handler: Takes `FunctionCallParams`. One that takes six arguments (name, call id,
                arguments, service, context, result callback) still works.
            start_callback: Awaited before the handler.
            cancel_on_interruption: Whether an interruption cancels a running call.
            timeout_s: After so many seconds the call fails; None lets it run.
        """
        takes_params = len(inspect.signature(handler).parameters) == 1
        if not takes_params:
            warnings.warn(
                "function handlers take one FunctionCallParams", DeprecationWarning, stacklevel=3
            )
        self._functions[name] = RegisteredFunction(
            handler, takes_params, cancel_on_interruption, start_callback, timeout_s
        )

    def unregister(self, name: str | None) -> None:
        """Remove a handler; nothing happens if there is none."""
        self._functions.pop(name, None)

    def get(self, name: str) -> RegisteredFunction | None:
        """Return the handler of a function, or the one for all others."""
        return self._functions.get(name) or self._functions.get(None)


class _Call(msgspec.Struct):
    """One call on its way to a result."""

    made: FunctionCallFromLLM
    function: RegisteredFunction | None
    failure: str | None
    """Why it cannot be run at all."""
    task: "asyncio.Task[None] | None" = None
    ended: bool = False
    """Whether nobody waits for the handler any more: it is over, or was left behind."""
    timer: asyncio.TimerHandle | None = None
    timed_out: bool = False
    finished: bool = False
    cancelled: bool = False
    elsewhere: bool = False
    """Whether its result comes after this run."""


class _Outcome(msgspec.Struct):
    """A result on its way into the context; without `delivered`, the end of a handler."""

    call: _Call
    result: Any = None
    properties: FunctionCallResultProperties | None = None
    failure: str | None = None
    delivered: "asyncio.Future[None] | None" = None


class FunctionCallBatch:
    """The calls of one response: started together, done when each has its result.

    Handlers run as tasks; all frames are pushed by whoever awaits `run`, so they stay in order and
    an error of a later processor reaches that caller, not a handler.
    """

    def __init__(
        self,
        llm: FrameProcessor,
        registry: FunctionRegistry,
        calls: Sequence[FunctionCallFromLLM],
        context: OpenAILLMContext,
        *,
        run_in_parallel: bool,
    ) -> None:
        """Look up the handlers; nothing runs yet."""
        self._llm = llm
        self._context = context
        self._run_in_parallel = run_in_parallel
        self._calls = [_prepare(registry, call) for call in calls]
        self._outcomes: asyncio.Queue[_Outcome] = asyncio.Queue()

    @property
    def waits(self) -> bool:
        """Whether a call has no result yet because that comes from elsewhere."""
        return any(call.elsewhere and not call.cancelled for call in self._calls)

    async def announce(self) -> None:
        """Tell both sides what will run, so that the calls stand in the context."""
        await self._push_both(FunctionCallsStartedFrame([call.made for call in self._calls]))
        for call in self._calls if self._run_in_parallel else self._calls[:1]:
            await self._push_in_progress(call)

    async def run(self) -> None:
        """Run all calls and deliver their results; ends when no handler runs any more."""
        try:
            if self._run_in_parallel:
                await self._run_together(self._calls)
            else:
                for number, call in enumerate(self._calls):
                    if call.cancelled:
                        continue
                    if number:
                        await self._push_in_progress(call)
                    await self._run_together([call])
        finally:
            await self._stop()

    async def interrupt(self) -> None:
        """Cancel what may be cancelled; the rest goes on and its results count."""
        for call in self._calls:
            cancellable = call.function is None or call.function.cancel_on_interruption
            if call.finished or call.cancelled or not cancellable:
                continue
            call.cancelled = True
            self._cancel(call)
            await self._llm.push_frame(
                FunctionCallCancelFrame(call.made.function_name, call.made.tool_call_id)
            )

    async def _run_together(self, calls: Sequence[_Call]) -> None:
        running = 0
        for call in calls:
            if not call.cancelled:
                self._start(call)
                running += 1
        while running:
            outcome = await self._outcomes.get()
            if outcome.delivered is None:
                running -= 1
                await self._close(outcome.call)
            else:
                await self._deliver(outcome)
                if not outcome.delivered.done():
                    outcome.delivered.set_result(None)

    async def _close(self, call: _Call) -> None:
        """Give a call whose handler is over a result, if it has none."""
        if not (call.finished or call.cancelled or call.elsewhere):
            failure = call.failure or "no_result"
            await self._deliver(_Outcome(call, _error(call, failure), failure=failure))

    async def _deliver(self, outcome: _Outcome) -> None:
        call, made = outcome.call, outcome.call.made
        if call.finished or call.cancelled:
            return
        call.finished = True
        await self._push_both(
            FunctionCallResultFrame(
                made.function_name,
                made.tool_call_id,
                made.arguments,
                outcome.result,
                properties=outcome.properties,
                failure=outcome.failure,
            )
        )

    def _start(self, call: _Call) -> None:
        """Run one handler; whatever it does, exactly one end is reported."""
        call.task = asyncio.create_task(self._run_handler(call))
        call.task.add_done_callback(lambda _: self._end(call))
        if call.function is not None and call.function.timeout_s is not None:
            loop = asyncio.get_running_loop()
            call.timer = loop.call_later(call.function.timeout_s, self._expire, call)

    async def _run_handler(self, call: _Call) -> None:
        """Run foreign code: what would end the process is its failure, like anything it raises."""
        try:
            if call.failure is None and call.function is not None:
                await self._call_handler(call, call.function)
        except FunctionCallFailed as failed:
            call.failure = "failed"
            await self._hand_over(call, {"error": str(failed)}, None, "failed")
        except FunctionCallElsewhere:
            call.elsewhere = True
        except BaseException:  # noqa: BLE001 - foreign code; its failure is the model's to know
            call.failure = "raised"

    def _expire(self, call: _Call) -> None:
        if call.task is not None and not call.task.done():
            call.timed_out = True
            self._cancel(call)

    def _cancel(self, call: _Call) -> None:
        """Ask a handler to end; one that does not heed it for a while is left behind."""
        if call.task is not None and not call.ended:
            call.task.cancel()
            asyncio.get_running_loop().call_later(GRACE_S, self._leave_behind, call)

    def _leave_behind(self, call: _Call) -> None:
        task = call.task
        if task is None or call.ended:
            return
        _left_behind.add(task)
        task.add_done_callback(_forget)
        task.get_loop().call_exception_handler(
            {"message": "a function outlives its cancellation", "task": task}
        )
        self._end(call)

    def _end(self, call: _Call) -> None:
        if not call.ended:
            call.ended = True
            if call.timer is not None:
                call.timer.cancel()
            if call.timed_out:
                call.failure = "timed_out"
            self._outcomes.put_nowait(_Outcome(call))

    async def _call_handler(self, call: _Call, function: RegisteredFunction) -> None:
        made = call.made

        async def result_callback(
            result: Any, properties: FunctionCallResultProperties | None = None
        ) -> None:
            try:
                plain = result if isinstance(result, str) else _plain(result)
            except (TypeError, ValueError, RecursionError):
                call.failure = "result_has_no_json_form"
                await self._hand_over(call, _error(call, call.failure), None, call.failure)
            else:
                await self._hand_over(call, plain, properties, None)

        if function.start_callback is not None:
            await function.start_callback(made.function_name, self._llm, self._context)
        params = FunctionCallParams(
            made.function_name,
            made.tool_call_id,
            made.arguments,
            self._llm,
            self._context,
            result_callback,
        )
        await function.handler(*((params,) if function.takes_params else vars(params).values()))

    async def _hand_over(
        self,
        call: _Call,
        result: Any,
        properties: FunctionCallResultProperties | None,
        failure: str | None,
    ) -> None:
        if call.ended:
            return  # left behind: nobody waits for it
        delivered = asyncio.get_running_loop().create_future()
        self._outcomes.put_nowait(_Outcome(call, result, properties, failure, delivered))
        await delivered

    async def _stop(self) -> None:
        """End handlers that still run: the turn is over for them."""
        running = [call for call in self._calls if call.task is not None and not call.ended]
        for call in running:
            self._cancel(call)
        while not all(call.ended for call in running):
            await self._outcomes.get()

    async def _push_in_progress(self, call: _Call) -> None:
        cancellable = call.function is None or call.function.cancel_on_interruption
        await self._push_both(
            FunctionCallInProgressFrame(
                call.made.function_name,
                call.made.tool_call_id,
                call.made.arguments,
                cancel_on_interruption=cancellable,
            )
        )

    async def _push_both(self, frame: Frame) -> None:
        for direction in _BOTH:
            await self._llm.push_frame(frame, direction)


_left_behind: set["asyncio.Task[None]"] = set()
"""Handlers that heed no cancellation. The event loop alone would not keep them."""


def _forget(task: "asyncio.Task[None]") -> None:
    _left_behind.discard(task)
    if not task.cancelled():
        task.exception()  # it was foreseen: nobody need be told that nobody asked


def _plain(result: Any) -> Any:
    """Return a result in JSON's types.

    Raises:
        TypeError: It has no JSON form.
        ValueError: A number in it has none.
        RecursionError: It contains itself.
    """
    plain = msgspec.to_builtins(result, str_keys=True)
    json.dumps(plain, allow_nan=False)
    return plain


_BOTH: tuple[FrameDirection, FrameDirection] = (DOWNSTREAM, UPSTREAM)
_ERRORS = {
    "unavailable": "The function {name} is not available.",
    "invalid_arguments": "The arguments are not a valid JSON object.",
    "raised": "The function {name} failed.",
    "timed_out": "The function {name} did not answer in time.",
    "no_result": "The function {name} ended without a result.",
    "result_has_no_json_form": "The function {name} returned something that is not JSON.",
}


def _error(call: _Call, failure: str) -> dict[str, str]:
    text = _ERRORS.get(failure, _ERRORS["raised"])
    return {"error": text.format(name=call.made.function_name)}


def _prepare(registry: FunctionRegistry, call: FunctionCallFromLLM) -> _Call:
    function = registry.get(call.function_name)
    failure = None
    if function is None:
        failure = "unavailable"
    elif call.raw_arguments is None:
        failure = "invalid_arguments"
    return _Call(call, function, failure)


def function_call(
    name: str, call_id: str, arguments: str, context: OpenAILLMContext
) -> FunctionCallFromLLM:
    """Make a call of what a model wrote.

    Args:
        name: The function.
        call_id: Unique within the context.
        arguments: JSON text; empty means `{}`. Anything but an object, or one nested in more than
            100 levels, gives the call no `raw_arguments`, and its result will be an error.
        context: The context that the model was answering.
    """
    raw = arguments if arguments.strip() else "{}"
    try:
        decoded = _decode_object(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return FunctionCallFromLLM(name, call_id, {}, context)
    if is_deep(decoded, raw):
        return FunctionCallFromLLM(name, call_id, {}, context)
    return FunctionCallFromLLM(name, call_id, decoded, context, raw)


_decode_object = msgspec.json.Decoder(dict[str, Any], float_hook=number).decode
