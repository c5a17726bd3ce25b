"""Runs the tool calls of one attempt: here, or elsewhere; each step is safe before the next."""

from collections.abc import Awaitable, Callable

import msgspec

from turnline.contracts.messages import ToolResult
from turnline.contracts.replies import ToolRequest
from turnline.worker.effects import Copy
from turnline.worker.pipeline.aggregators import content_of, to_json, wants_run
from turnline.worker.pipeline.context import is_given
from turnline.worker.pipeline.frames import (
    Frame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallResultProperties,
    FunctionCallsStartedFrame,
)
from turnline.worker.pipeline.functions import (
    FunctionCallElsewhere,
    FunctionCallFailed,
    FunctionCallParams,
    FunctionRegistry,
    RegisteredFunction,
)
from turnline.worker.turn.attempt_log import AttemptLog
from turnline.worker.turn.checkpoints import Finished
from turnline.worker.turn.open_calls import SAME_CALL_REFUSED, OpenCalls
from turnline.worker.turn.plan import CallIds, Plan, Planner

_encode = msgspec.json.Encoder().encode


class ToolCalls(FunctionRegistry):
    """Stands between model and assistant aggregator, and finds the handlers."""

    def __init__(
        self, log: AttemptLog, calls: OpenCalls, plan: Plan, planner: Planner, *, stream: str
    ) -> None:
        """Go on where `calls` are.

        Args:
            log: Makes them safe and shows them.
            calls: What earlier attempts left.
            plan: The turn's tools, and how they are bounded.
            planner: Has the tools of this worker, and checks arguments of others.
            stream: Where calls go that this worker cannot run.
        """
        super().__init__()
        self._log = log
        self._calls = calls
        self._plan = plan
        self._toolbox = planner.toolbox
        self._checker = planner.checker
        self._stream = stream
        self._running: set[str] = set()
        self._unsaved = False
        if calls.rounds:
            self._relax()

    @property
    def must_finish(self) -> bool:
        """Whether a call is running that an interruption may not cancel."""
        return bool(self._running)

    # -- frames ---------------------------------------------------------------------------------

    async def handle(self, frame: Frame, push: Callable[[Frame], Awaitable[None]]) -> None:
        """Take note of a frame on its way to the assistant aggregator, and pass it on.

        Raises:
            Terminal: The model calls tools in vain, or too often; see `OpenCalls.begin`.
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        match frame:
            case FunctionCallsStartedFrame():
                # Those of an earlier attempt, or sent out, stand in the context.
                if not all(it.tool_call_id in self._calls.open for it in frame.function_calls):
                    self._calls.begin(frame.function_calls)
                    self._unsaved = True
                await push(frame)
            case FunctionCallInProgressFrame():
                self._log.tool_started(frame)
                await push(frame)
                if self._unsaved:
                    self._unsaved = False
                    await self._log.response(self._calls.unfinished)
                    self._relax()
            case FunctionCallResultFrame():
                self._log.tool_finished(frame)
                await self._finish(frame)
                await push(frame)
            case _:
                await push(frame)

    def _relax(self) -> None:
        """Leave it to the model whether it calls tools again: to be made to would never end."""
        choice = self._log.context.tool_choice
        if is_given(choice) and choice not in ("auto", "none"):
            self._log.context.set_tool_choice("auto")

    async def _finish(self, frame: FunctionCallResultFrame) -> None:
        """Make a result safe before anybody acts on it."""
        call_id = frame.tool_call_id
        content, runs = content_of(frame), wants_run(frame)
        result_for_model = cut_to(content, self._plan.limits.result_bytes)
        if result_for_model is not content:
            frame.properties = FunctionCallResultProperties(
                frame.properties.run_llm if frame.properties else frame.run_llm,
                frame.properties.on_context_updated if frame.properties else None,
                content=result_for_model,
            )
            runs = frame.properties.run_llm is not False
        is_external = call_id in self._calls.answers
        result = Finished(call_id, result_for_model, runs, external=is_external)
        await self._log.tool_result(frame.function_name, result, ok=frame.failure is None)
        self._calls.finish(result)
        self._running.discard(call_id)

    # -- handlers -------------------------------------------------------------------------------

    def get(self, name: str) -> RegisteredFunction | None:
        """Return how a call of this name is run; None if the turn does not offer the tool."""
        if name not in self._plan.offered:
            return None
        options = self._toolbox.options(name) if self._toolbox is not None else None
        return RegisteredFunction(
            handler=self._run_elsewhere if options is None else self._run_here,
            takes_params=True,
            cancel_on_interruption=options is None or options.cancel_on_interruption,
            start_callback=None,
            timeout_s=None if options is None else options.timeout_s,
        )

    async def _run_here(self, params: FunctionCallParams) -> None:
        call_id, name = params.tool_call_id, params.function_name
        self._refuse_repeated(call_id)
        assert self._toolbox is not None
        options = self._toolbox.options(name)
        assert options is not None
        if call_id in self._calls.inherited:
            if not options.retry_safe:
                raise FunctionCallFailed(
                    f"The call of {name} was interrupted. Whether it took effect is unknown."
                )
            self._log.show_call(self._calls.open[call_id])
        if not options.cancel_on_interruption:
            self._running.add(call_id)
        try:
            with self._log.tool_runs(call_id):
                content = await self._toolbox.call(name, params.arguments, self._ids(call_id))
        finally:
            self._running.discard(call_id)
        await params.result_callback(content, FunctionCallResultProperties(content=content))

    async def _run_elsewhere(self, params: FunctionCallParams) -> None:
        call_id, calls = params.tool_call_id, self._calls
        if (answer := calls.answers.get(call_id)) is not None:
            await _deliver(params, answer)
            return
        if call_id not in calls.deadlines:
            self._refuse_repeated(call_id)
            await self._check_arguments(params)
            await self._send_out(params)
        elif calls.is_overdue(call_id):
            name = params.function_name
            raise FunctionCallFailed(f"The function {name} did not answer in time.")
        raise FunctionCallElsewhere

    async def _check_arguments(self, params: FunctionCallParams) -> None:
        schema = self._plan.arguments.get(params.function_name)
        if schema is None:
            return
        raw = self._calls.raw_arguments(params.tool_call_id)
        fault = await self._checker.fault(schema, params.arguments, raw)
        if fault is not None:
            raise FunctionCallFailed(f"The arguments do not fit: {fault}")

    def _refuse_repeated(self, call_id: str) -> None:
        if call_id in self._calls.refused:
            raise FunctionCallFailed(
                f"This is the same call for the {SAME_CALL_REFUSED}rd time in a row; it was not "
                "run. Use the results above, or do something else."
            )

    def _ids(self, call_id: str) -> CallIds:
        facts = self._log.facts
        traceparent = self._log.traceparent(call_id)
        return CallIds(facts.conversation_id, facts.turn_id, facts.attempt, call_id, traceparent)

    async def _send_out(self, params: FunctionCallParams) -> None:
        """Publish a call for whoever has the tool, once."""
        facts, call_id, name = self._log.facts, params.tool_call_id, params.function_name
        call, ids = self._calls.external(call_id, name), self._ids(call_id)
        request = ToolRequest(
            conversation_id=facts.conversation_id,
            turn_id=facts.turn_id,
            call_id=call_id,
            name=name,
            arguments=msgspec.Raw(self._calls.raw_arguments(call_id)),
            idempotency_key=ids.idempotency_key,
            deadline_at_ms=call.deadline_at_ms,
            trace_id=facts.trace.trace_id,
            traceparent=ids.traceparent,
        )
        await self._log.sent_out(call, Copy(self._stream, {"e": _encode(request)}))
        self._calls.sent_out(call)


async def _deliver(params: FunctionCallParams, answer: ToolResult) -> None:
    """Hand over what a `tool_result` says."""
    content = answer.result if isinstance(answer.result, str) else to_json(answer.result)
    if answer.is_error:
        raise FunctionCallFailed(content)
    await params.result_callback(content, FunctionCallResultProperties(content=content))


def cut_to(content: str, most_bytes: int) -> str:
    """Return a text of at most so many UTF-8 bytes, its end replaced by a note; or the same one."""
    data = content.encode(errors="replace")  # a lone surrogate, as in names of files, has no UTF-8
    if len(data) <= most_bytes:
        whole = data.decode()
        return content if whole == content else whole
    note = f"\n[cut: {len(data)} bytes, of which these are the first]"
    kept = data[: max(0, most_bytes - len(note))].decode(errors="ignore")
    return kept + note
