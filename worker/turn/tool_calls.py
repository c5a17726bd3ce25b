"""The tool calls of one attempt at one turn: bounded, checkpointed, run here or sent elsewhere."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from turnline.contracts.conversation import CallEntry
from turnline.contracts.errors import InvalidMessage
from turnline.contracts.json_schemas import Schema
from turnline.contracts.messages import ToolResult, decode
from turnline.contracts.replies import ToolCallFinished, ToolCallStarted, ToolRequest
from turnline.worker.effects import Copy, Entry
from turnline.worker.errors import Terminal
from turnline.worker.pipeline.aggregators import content_of, to_json, wants_run
from turnline.worker.pipeline.context import OpenAILLMContext, is_given
from turnline.worker.pipeline.frames import (
    Frame,
    FunctionCallFromLLM,
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
    function_call,
)
from turnline.worker.schema_checking import Checker
from turnline.worker.turn.checkpoints import (
    Elsewhere,
    Finished,
    Progress,
    Steps,
    elsewhere_step,
    finished_step,
    message_step,
)
from turnline.worker.turn.event_writer import EventWriter

_encode = msgspec.json.Encoder().encode
_SAME_CALL_TOLD = 3
"""The same call in so many rounds in a row is not run any more; in one more, the turn fails."""


class TooManyToolRounds(Terminal):
    """The model still wants tools in the last round that it has."""

    code = "too_many_tool_rounds"


class ToolLoop(Terminal):
    """The model makes the same call again and again, also after it was told."""

    code = "tool_loop"


class UnusableCalls(Terminal):
    """The model makes calls of which none can be run, also after it was told."""

    code = "unusable_calls"


class ToolLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the tool calls of a turn."""

    max_tool_rounds: int = 8
    """Model calls per turn; tools asked for in the last one are not run."""
    result_bytes: int = 65_536
    """UTF-8 bytes of one result; the rest is cut."""
    wait_s: float = 3_600.0
    """Seconds until a call that nobody answers fails, where its tool says nothing else."""


class ToolOptions(Protocol):
    """How a tool is run; see `turnline.worker.tools.declaration`."""

    @property
    def timeout_s(self) -> float | None: ...  # noqa: D102
    @property
    def retry_safe(self) -> bool: ...  # noqa: D102
    @property
    def cancel_on_interruption(self) -> bool: ...  # noqa: D102


class Toolbox(Protocol):
    """The tools that this worker has; see `turnline.worker.tools.runner`."""

    @property
    def definitions(self) -> Sequence[tuple[str, dict[str, Any], float | None]]: ...  # noqa: D102
    def options(self, name: str) -> ToolOptions | None: ...  # noqa: D102
    async def call(  # noqa: D102
        self, name: str, arguments: Mapping[str, Any], call: "CallIds"
    ) -> str: ...


class CallIds(NamedTuple):
    """Which call it is."""

    conversation_id: str
    turn_id: str
    attempt: int
    call_id: str

    @property
    def idempotency_key(self) -> str:
        """The same whenever this call is run again."""
        return f"{self.conversation_id}/{self.turn_id}/{self.call_id}"


class TurnFacts(NamedTuple):
    """What the calls of an attempt have in common."""

    conversation_id: str
    turn_id: str
    attempt: int
    trace_id: str
    traceparent: str
    stream: str
    """Where calls go that this worker cannot run."""
    last_entry: str
    """The last entry of the inbox that belongs to the turn."""
    rollback: str | None
    """Entry that the turn was rolled back for."""


class ToolCalls(FunctionRegistry):
    """Stands between model and assistant aggregator, and finds the handlers."""

    def __init__(
        self,
        *,
        facts: TurnFacts,
        steps: Steps,
        progress: Progress,
        context: OpenAILLMContext,
        toolbox: Toolbox | None,
        offered: Mapping[str, float | None],
        arguments: Mapping[str, Schema],
        checker: Checker,
        limits: ToolLimits,
        now_ms: Callable[[], int],
        take_spend: Callable[[], tuple[list[CallEntry], Callable[[], None]]],
    ) -> None:
        """Go on where `progress` ends.

        Args:
            facts: Whose calls they are.
            steps: Where they become safe.
            progress: What earlier attempts left.
            context: That the model answers.
            toolbox: The tools of this worker.
            offered: Tools of this turn: name to seconds to wait where nobody here has it.
            arguments: What the arguments of such tools have to fit.
            checker: Checks them.
            limits: See `ToolLimits`.
            now_ms: Redis' clock.
            take_spend: Returns finished model calls that are not safe yet, and what is to be
                called once they are.
        """
        super().__init__()
        self._facts = facts
        self._steps = steps
        self._context = context
        self._toolbox = toolbox
        self._offered = offered
        self._arguments = arguments
        self._checker = checker
        self._limits = limits
        self._now_ms = now_ms
        self._take_spend = take_spend
        self.writer: EventWriter | None = None
        self._open: dict[str, FunctionCallFromLLM] = {}
        """Calls of the last response that have no result."""
        self._inherited: set[str] = set()
        """Of these, the ones that an earlier attempt may have run."""
        self._deadlines = dict(progress.deadlines)
        self._answers: dict[str, ToolResult] = {}
        self.answered: set[str] = set(progress.answered)
        """Calls that were answered by a `tool_result`."""
        self._running: set[str] = set()
        self._begun = progress.last_entry is not None
        self._unsaved = False
        self._rounds = 0
        self._repeats: dict[tuple[str, str], int] = {}
        self._refused: set[str] = set()
        self._were_unusable = False
        """None of the calls of the last response could be run."""
        self.wants_run = progress.wants_run
        """Whether a result of the last response wants the model to run."""
        self._inherit(progress)

    def _inherit(self, progress: Progress) -> None:
        for message in progress.messages:
            if message.get("tool_calls"):
                calls = [
                    function_call(
                        call["function"]["name"],
                        call["id"],
                        call["function"]["arguments"],
                        self._context,
                    )
                    for call in message["tool_calls"]
                ]
                self._rounds += 1
                self._count(calls)
                self._open = {call.tool_call_id: call for call in calls}
        waiting = set(self._context.in_progress_ids()) if self._open else set[str]()
        self._open = {key: call for key, call in self._open.items() if key in waiting}
        if progress.messages:
            self._relax()
        self._inherited = {*self._open} - {*self._deadlines}

    # -- what the driver asks -------------------------------------------------------------------

    @property
    def unfinished(self) -> list[FunctionCallFromLLM]:
        """Calls of the last response that have no result."""
        return [*self._open.values()]

    @property
    def elsewhere(self) -> bool:
        """Whether any call of this turn was sent out."""
        return bool(self._deadlines)

    @property
    def can_go_on(self) -> bool:
        """Whether something can be done before a message or a deadline comes."""
        now_ms = self._now_ms()
        return not self._open or any(
            call_id not in self._deadlines
            or call_id in self._answers
            or now_ms >= self._deadlines[call_id]
            for call_id in self._open
        )

    @property
    def defer_ms(self) -> int:
        """Until the next deadline of a call without a result, at least 1."""
        return max(1, min(self._deadlines[it] for it in self._open) - self._now_ms())

    @property
    def must_finish(self) -> bool:
        """Whether a call is running that an interruption may not cancel."""
        return bool(self._running)

    def take_answers(self, entries: Iterable[Entry]) -> list[tuple[Entry, ToolResult]]:
        """Find the results of calls that were sent out; the first one of a call counts.

        Returns:
            Entries whose results were taken, in this attempt or an earlier one, or can be.
        """
        taken: dict[str, tuple[Entry, ToolResult]] = {}
        for entry in entries:
            if b'"tool_result"' not in entry.data:
                continue
            try:
                message = decode(entry.data)
            except InvalidMessage:  # its own turn says so
                continue
            if not isinstance(message, ToolResult) or message.call_id in taken:
                continue
            if message.call_id in self.answered or (
                message.call_id in self._open and message.call_id in self._deadlines
            ):
                taken[message.call_id] = (entry, message)
        self._answers = {call_id: message for call_id, (_, message) in taken.items()}
        return [*taken.values()]

    # -- frames ---------------------------------------------------------------------------------

    async def take(self, frame: Frame, push: Callable[[Frame], Awaitable[None]]) -> None:
        """Take note of a frame on its way to the assistant aggregator, and pass it on.

        Raises:
            TooManyToolRounds: The turn fails.
            ToolLoop: The turn fails.
            UnusableCalls: The turn fails.
            LeaseLost: Nothing was written.
            StoreUnavailable: Redis did not answer.
        """
        match frame:
            case FunctionCallsStartedFrame():
                self._begin(frame.function_calls)
                await push(frame)
            case FunctionCallInProgressFrame():
                await push(frame)
                if self._unsaved:
                    self._unsaved = False
                    await self._save_response()
            case FunctionCallResultFrame():
                await self._finish(frame)
                await push(frame)
            case _:
                await push(frame)

    def _begin(self, calls: Sequence[FunctionCallFromLLM]) -> None:
        if all(call.tool_call_id in self._open for call in calls):
            return  # of an earlier attempt, or sent out: they stand in the context
        self._rounds += 1
        if self._rounds >= self._limits.max_tool_rounds:
            raise TooManyToolRounds(
                f"the model wants tools after {self._rounds} rounds, which is all that a turn has"
            )
        self._count(calls)
        self._open = {call.tool_call_id: call for call in calls}
        self.wants_run = False
        self._unsaved = True

    def _count(self, calls: Sequence[FunctionCallFromLLM]) -> None:
        """Count in how many rounds in a row each call was made, or none that can be run."""
        unusable = all(it.raw_arguments is None or not self.get(it.function_name) for it in calls)
        if unusable and self._were_unusable:
            raise UnusableCalls("no call of the response can be run, for the second time in a row")
        self._were_unusable = unusable
        before, self._repeats = self._repeats, {}
        for call in calls:
            key = (call.function_name, _encode_sorted(call.arguments).decode())
            self._repeats[key] = before.get(key, 0) + 1
            if self._repeats[key] > _SAME_CALL_TOLD:
                raise ToolLoop("the model makes the same call again and again")
            if self._repeats[key] == _SAME_CALL_TOLD:
                self._refused.add(call.tool_call_id)

    async def _save_response(self) -> None:
        """Make the model's response safe before any of its calls runs."""
        facts, steps = self._facts, list[bytes]()
        if not self._begun:
            if facts.rollback is not None and not self._steps.is_rolled_back(facts.rollback):
                steps.append(b"x" + facts.rollback.encode())
            steps.append(b"u" + facts.last_entry.encode())
            self._begun = True
        spent, on_saved = self._take_spend()
        steps += [b"c" + _encode(call) for call in spent]
        added = self._context.new_messages_encoded()
        steps.append(message_step(added[-1 - len(self._open)]))
        await self._steps.save(steps, on_saved=on_saved)
        self._relax()
        for call in self._open.values():
            self._tell_started(call)

    def _relax(self) -> None:
        """Leave it to the model whether it calls tools again: to be made to would never end."""
        choice = self._context.tool_choice
        if is_given(choice) and choice not in ("auto", "none"):
            self._context.set_tool_choice("auto")

    async def _finish(self, frame: FunctionCallResultFrame) -> None:
        """Make a result safe before anybody acts on it."""
        call_id = frame.tool_call_id
        content, runs = content_of(frame), wants_run(frame)
        cut = cut_to(content, self._limits.result_bytes)
        if cut is not content:
            frame.properties = FunctionCallResultProperties(
                frame.properties.run_llm if frame.properties else frame.run_llm,
                frame.properties.on_context_updated if frame.properties else None,
                content=cut,
            )
            runs = frame.properties.run_llm is not False
        finished = Finished(call_id, cut, runs, elsewhere=call_id in self._answers)
        await self._steps.save([finished_step(finished)])
        self._open.pop(call_id, None)
        self._inherited.discard(call_id)
        self._running.discard(call_id)
        if finished.elsewhere:
            self.answered.add(call_id)
        self.wants_run = self.wants_run or runs
        if self.writer is not None:
            self.writer.event(
                ToolCallFinished(
                    **self._ids(),
                    call_id=call_id,
                    name=frame.function_name,
                    ok=frame.failure is None,
                )
            )

    def _tell_started(self, call: FunctionCallFromLLM) -> None:
        if self.writer is not None:
            self.writer.event(
                ToolCallStarted(
                    **self._ids(),
                    call_id=call.tool_call_id,
                    name=call.function_name,
                    arguments=call.raw_arguments or "{}",
                )
            )

    def _ids(self) -> dict[str, Any]:
        facts = self._facts
        return {
            "conversation_id": facts.conversation_id,
            "turn_id": facts.turn_id,
            "attempt": facts.attempt,
            "trace_id": facts.trace_id,
        }

    # -- handlers -------------------------------------------------------------------------------

    def get(self, name: str) -> RegisteredFunction | None:
        """Return how a call of this name is run; None if the turn does not offer the tool."""
        if name not in self._offered:
            return None
        options = self._toolbox.options(name) if self._toolbox is not None else None
        if options is None:
            return _registered(self._run_elsewhere, cancel=True, timeout_s=None)
        return _registered(
            self._run_here, cancel=options.cancel_on_interruption, timeout_s=options.timeout_s
        )

    async def _run_here(self, params: FunctionCallParams) -> None:
        call_id, name = params.tool_call_id, params.function_name
        self._refuse_repeated(call_id)
        assert self._toolbox is not None
        options = self._toolbox.options(name)
        assert options is not None
        if call_id in self._inherited:
            if not options.retry_safe:
                raise FunctionCallFailed(
                    f"The call of {name} was interrupted. Whether it took effect is unknown."
                )
            self._tell_started(self._open[call_id])
        facts = self._facts
        ids = CallIds(facts.conversation_id, facts.turn_id, facts.attempt, call_id)
        if not options.cancel_on_interruption:
            self._running.add(call_id)
        try:
            content = await self._toolbox.call(name, params.arguments, ids)
        finally:
            self._running.discard(call_id)
        await params.result_callback(content, FunctionCallResultProperties(content=content))

    async def _run_elsewhere(self, params: FunctionCallParams) -> None:
        call_id, name = params.tool_call_id, params.function_name
        answer = self._answers.get(call_id)
        if answer is not None:
            await _deliver(params, answer)
        elif call_id not in self._deadlines:
            self._refuse_repeated(call_id)
            await self._check_arguments(params)
            await self._send_out(params)
            raise FunctionCallElsewhere
        elif self._now_ms() >= self._deadlines[call_id]:
            raise FunctionCallFailed(f"The function {name} did not answer in time.")
        else:
            raise FunctionCallElsewhere

    async def _check_arguments(self, params: FunctionCallParams) -> None:
        schema = self._arguments.get(params.function_name)
        if schema is None:
            return
        raw = self._open[params.tool_call_id].raw_arguments or "{}"
        fault = await self._checker.fault(schema, params.arguments, raw.encode())
        if fault is not None:
            raise FunctionCallFailed(f"The arguments do not fit: {fault}")

    def _refuse_repeated(self, call_id: str) -> None:
        if call_id in self._refused:
            raise FunctionCallFailed(
                f"This is the same call for the {_SAME_CALL_TOLD}rd time in a row; it was not run. "
                "Use the results above, or do something else."
            )

    async def _send_out(self, params: FunctionCallParams) -> None:
        """Publish a call for whoever has the tool, once."""
        facts, call_id = self._facts, params.tool_call_id
        wait_s = self._offered.get(params.function_name) or self._limits.wait_s
        deadline_at_ms = self._now_ms() + int(wait_s * 1000)
        ids = CallIds(facts.conversation_id, facts.turn_id, facts.attempt, call_id)
        request = ToolRequest(
            conversation_id=facts.conversation_id,
            turn_id=facts.turn_id,
            call_id=call_id,
            name=params.function_name,
            arguments=msgspec.Raw((self._open[call_id].raw_arguments or "{}").encode()),
            idempotency_key=ids.idempotency_key,
            deadline_at_ms=deadline_at_ms,
            trace_id=facts.trace_id,
            traceparent=facts.traceparent,
        )
        await self._steps.save(
            [elsewhere_step(Elsewhere(call_id, deadline_at_ms))],
            copies=[Copy(facts.stream, {"e": _encode(request)})],
        )
        self._deadlines[call_id] = deadline_at_ms
        self._inherited.discard(call_id)


async def _deliver(params: FunctionCallParams, answer: ToolResult) -> None:
    """Hand over what a `tool_result` says."""
    if answer.is_error:
        text = answer.result if isinstance(answer.result, str) else to_json(answer.result)
        raise FunctionCallFailed(text)
    content = answer.result if isinstance(answer.result, str) else to_json(answer.result)
    await params.result_callback(content, FunctionCallResultProperties(content=content))


def _registered(
    handler: Callable[[FunctionCallParams], Awaitable[None]],
    *,
    cancel: bool,
    timeout_s: float | None,
) -> RegisteredFunction:
    return RegisteredFunction(
        handler=handler,
        takes_params=True,
        cancel_on_interruption=cancel,
        start_callback=None,
        timeout_s=timeout_s,
    )


def cut_to(content: str, most_bytes: int) -> str:
    """Return a text of at most so many UTF-8 bytes, its end replaced by a note; or the same one."""
    data = content.encode(errors="replace")  # a lone surrogate, as in names of files, has no UTF-8
    if len(data) <= most_bytes:
        whole = data.decode()
        return content if whole == content else whole
    note = f"\n[cut: {len(data)} bytes, of which these are the first]"
    kept = data[: max(0, most_bytes - len(note))].decode(errors="ignore")
    return kept + note


_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
