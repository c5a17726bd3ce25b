"""One attempt: the model at work on one turn, and when to try again."""

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from turnline.contracts.keys import ShardKeys
from turnline.worker.effects import Entry
from turnline.worker.errors import (
    ProviderUnavailable,
    RateLimited,
    Retryable,
    Stalled,
    StoreUnavailable,
    Terminal,
    UnusableReply,
    WorkerError,
)
from turnline.worker.lease import Lease
from turnline.worker.pipeline.aggregators import LLMAssistantContextAggregator
from turnline.worker.pipeline.calls import estimated_tokens
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import (
    Frame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    OpenAILLMContextFrame,
    StartInterruptionFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection, FrameProcessor
from turnline.worker.pipeline.reply_frames import (
    LLMReplyItemFrame,
    LLMServerToolFrame,
    LLMThoughtTextFrame,
)
from turnline.worker.pipeline.reply_items import owned
from turnline.worker.pool import OF_THE_KEY, Pool
from turnline.worker.provider_limits import Caller
from turnline.worker.turn.attempt_log import AttemptLog
from turnline.worker.turn.budgets import BudgetExceeded, Purse, TurnBudget
from turnline.worker.turn.grants import Grants, Limiter
from turnline.worker.turn.inbox import Inbox
from turnline.worker.turn.ledger import Ledger, Payer
from turnline.worker.turn.observer import Observer
from turnline.worker.turn.open_calls import OpenCalls
from turnline.worker.turn.plan import Plan, Planner
from turnline.worker.turn.ports import Breakers, DriverSettings, Services, Store
from turnline.worker.turn.tool_calls import ToolCalls

_BASE_S = 0.5
_CAP_S = 30.0
_RETRY_AFTER_CAP_S = 120.0
_BEYOND_S = 1.0
"""Seconds beyond a turn's budget: what stops by itself says why."""
_SAME_REPLY = 2
"""Replies that cannot be used for the same reason, after which a turn is not tried again."""
_STALLS = 2
"""Calls in which nothing came in time, after which a turn is not tried again."""
_CALL_FRAMES = (
    FunctionCallsStartedFrame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
)


class Parts(NamedTuple):
    """What every turn of a shard is run with."""

    store: Store
    services: Services
    breakers: Breakers
    shard: ShardKeys
    settings: DriverSettings
    observer: Observer
    planner: Planner
    limiters: Sequence[Limiter]
    """One for each member of the pool."""
    pool: Pool
    purse: Purse | None = None
    """None where nothing limits what is spent."""

    def budget_s(self, plan: Plan) -> float:
        """Return how long a turn may take, seconds: its agent, the worker or the model says."""
        return (
            plan.limits.turn_budget_s
            or self.settings.turn_budget_s
            or self.services.budget_s(plan.settings)
        )


def caller_of(lease: Lease, payer: Payer) -> Caller:
    """Return who asks for the calls of a conversation's turn."""
    return Caller(lease.keys.job_id, payer.tenant, payer.is_batch)


def grants_of(
    parts: Parts, lease: Lease, plan: Plan, payer: Payer, context: OpenAILLMContext
) -> Grants:
    """Return what is asked before each call of the model about this context."""
    settings = plan.settings
    return Grants(
        parts.limiters[plan.member.number],
        parts.services.models_of(settings)[0],
        caller_of(lease, payer),
        lambda: estimated_tokens(context.encoded_request_messages()),
        settings.max_output_tokens or settings.max_tokens,
        member=plan.member,
    )


async def note_health(
    parts: Parts, provider: str, lease: Lease, plan: Plan, failure: Retryable | Terminal | None
) -> None:
    """Tell breakers and pool whether the provider works: also one that refuses does."""
    if isinstance(failure, BudgetExceeded):  # it was not asked
        return
    if failure is None:
        parts.pool.works(plan.member)
    elif failure.code in OF_THE_KEY:
        parts.pool.leave_out(plan.member, failure.code)
    if failure is None or isinstance(failure, UnusableReply | Terminal):
        await parts.breakers.succeeded(provider)
    elif isinstance(failure, ProviderUnavailable) and not isinstance(failure, RateLimited):
        await parts.breakers.failed(provider, lease.conversation_id)


class Tap(FrameProcessor):
    """Stands between model and assistant aggregator, and shows what passes to log and tools."""

    def __init__(
        self,
        log: AttemptLog,
        tools: ToolCalls,
        budget: TurnBudget | None = None,
        *,
        owner: str = "",
    ) -> None:
        """Show text to `log` and calls to `tools`; the model is asked again within `budget`.

        Reasoning is kept as that of the `owner` of the key.
        """
        super().__init__()
        self.is_closed = False
        """Whether the model is not to be asked again."""
        self.exceeded: BudgetExceeded | None = None
        """Why the model was not asked again, if that is so."""
        self._log = log
        self._tools = tools
        self._budget = budget
        self._owner = owner

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Show a frame before the assistant aggregator gets it."""
        if type(frame) is LLMTextFrame:
            self._log.on_text(frame.text)
        elif isinstance(frame, _CALL_FRAMES):
            await self._tools.handle(frame, self.push_frame)
            return
        elif isinstance(frame, LLMFullResponseStartFrame):
            self._log.response_started()
        elif isinstance(frame, LLMThoughtTextFrame):
            self._log.on_thought(frame.text)
        elif isinstance(frame, LLMReplyItemFrame):
            frame.model = owned(frame.model, self._owner)
            frame.asked = owned(frame.asked, self._owner)
        elif isinstance(frame, LLMServerToolFrame):
            self._log.server_tool(frame)
        elif isinstance(frame, OpenAILLMContextFrame) and not await self._may_go_on():
            return
        await self.push_frame(frame, direction)

    async def _may_go_on(self) -> bool:
        """Whether the model is to be asked again."""
        if self._budget is not None and not self.is_closed:
            try:
                await self._budget.check()
            except BudgetExceeded as error:
                self.exceeded = error
                self.is_closed = True
        return not self.is_closed


class Attempt:
    """The model at work on one turn, with all that it needs; leaving it takes that apart."""

    def __init__(  # noqa: PLR0917  what it is made of
        self,
        parts: Parts,
        lease: Lease,
        inbox: Inbox,
        plan: Plan,
        calls: OpenCalls,
        log: AttemptLog,
        assistant: LLMAssistantContextAggregator,
    ) -> None:
        """Link the service and what stands behind it; nothing is sent.

        Args:
            parts: What makes the service, and what it works with.
            lease: Under which all this happens.
            inbox: Read again when something comes in: it may be to stop.
            plan: Settings and tools of the turn.
            calls: Tool calls that earlier attempts left.
            log: Learns all that happens.
            assistant: Brings what is said and done into the context.
        """
        self.stop: Entry | None = None
        """The entry that asked to stop, if one did."""
        self._looking: asyncio.Task[None] | None = None
        budget_s = parts.budget_s(plan)
        self._budget_s = budget_s + _BEYOND_S
        self._lease = lease
        self._inbox = inbox
        self.plan = plan
        self.pool = parts.pool
        self.calls = calls
        self.log = log
        self._service = parts.services(
            lease.conversation_id, plan.settings, log, budget_s=budget_s, member=plan.member
        )
        self._tools = ToolCalls(log, calls, plan, parts.planner, stream=parts.shard.tool_calls)
        if plan.offered:
            self._service.use_functions(self._tools)
        self._budget = TurnBudget(parts.purse, lease, log) if parts.purse is not None else None
        self._tap = Tap(log, self._tools, self._budget, owner=plan.member.owner)
        self._service.link(self._tap)
        self._tap.link(assistant)

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Break the circles that its parts make; else their memory waits for a collection."""
        self._service.unlink()
        self._tap.unlink()
        if self._budget is not None:
            self._budget.close()

    async def run(self) -> None:
        """Answer until the model is done, somebody stops it, or a tool has to be waited for.

        Raises:
            Terminal: The turn's budget of time is used up, by its tools or by the model, or that of
                somebody's money or tokens.
            WorkerError: As the service raises it.
            asyncio.CancelledError: Handed over or lost; spend so far is noted if that is possible.
        """
        lease, log = self._lease, self.log
        answering = asyncio.create_task(self._answer())
        log.writer.cancel_when_lost(answering)
        lease.on_inbox_changed = partial(self._look, answering)
        if lease.inbox_changed.is_set():
            self._look(answering)
        try:
            await answering
        except asyncio.CancelledError:
            if self.stop is None:
                log.writer.close()
                if not lease.lost:
                    await log.hand_over()
                raise
            await log.flush()
        finally:
            lease.on_inbox_changed = None
            log.writer.cancel_when_lost(None)

    async def _answer(self) -> None:
        # This attempt's alone: the first one may have begun before an outage of all workers.
        budget = asyncio.timeout(self._budget_s)
        try:
            async with budget:
                await self._answer_calls()
            if self._tap.exceeded is not None and self.stop is None:
                raise self._tap.exceeded
        except TimeoutError:
            if not budget.expired():
                raise
            raise Terminal("the turn's budget is used up", code="turn_budget_exceeded") from None

    async def _answer_calls(self) -> None:
        """Go on where an earlier attempt ended, until something has to be waited for."""
        calls = self.calls
        if self._budget is not None and (not calls.rounds or calls.wants_run):
            await self._budget.check()
        if not calls.rounds:
            frame = OpenAILLMContextFrame(self.log.context)
            await self._service.process_frame(frame, DOWNSTREAM)
        elif calls.open or calls.wants_run:
            await self._resume()
        while calls.open and self.stop is None:
            await self._inbox.read_all()
            calls.find_answers(self._inbox.entries)
            if not calls.can_go_on:
                return
            await self._resume()

    async def _resume(self) -> None:
        calls = self.calls
        await self._service.resume(self.log.context, calls.unfinished, answer=calls.wants_run)

    # -- being stopped --------------------------------------------------------------------------

    def _look(self, answering: "asyncio.Task[None]") -> None:
        """Something came in: see whether it stops this turn."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_stop(answering))

    async def _look_for_stop(self, answering: "asyncio.Task[None]") -> None:
        while self._lease.inbox_changed.is_set():
            self._lease.inbox_changed.clear()
            try:
                more = await self._inbox.more()
            except StoreUnavailable:
                return  # looked at again with the next news, and by the next attempt
            stop = next((it for it in more if it.control_for(self._inbox.first)), None)
            if stop is not None and self.stop is None:
                self.stop = stop
                await self._end(answering)

    async def _end(self, answering: "asyncio.Task[None]") -> None:
        """Cancel what may be cancelled; a tool that may not be has its result kept."""
        if self._tools.must_finish:
            self._tap.is_closed = True
            await self._service.process_frame(StartInterruptionFrame(), DOWNSTREAM)
        else:
            answering.cancel()


def backoff_s(attempt: int, retry_after_s: float | None) -> float:
    """Return the seconds to wait after a failed attempt.

    Args:
        attempt: The one that failed, from 1.
        retry_after_s: What the provider asked for; honoured up to 120 s, and jitter is added to it.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ (full jitter)
    """
    ceiling_s = min(_CAP_S, _BASE_S * 2 ** min(attempt - 1, 16))
    jitter_s = random.uniform(0, ceiling_s)
    if retry_after_s is None:
        return jitter_s
    return min(max(retry_after_s, 0.0), _RETRY_AFTER_CAP_S) + min(jitter_s, 1.0)


def given_up(
    ledger: Ledger, turn_id: str, limits: DriverSettings, error: WorkerError | None = None
) -> tuple[str, str] | None:
    """Return why a turn is not tried (again), whatever time is left: code and text; None if it is.

    Args:
        ledger: Of the turn, with the calls of the attempt that failed.
        turn_id: Which turn.
        limits: Attempts and tokens that a turn may use in vain.
        error: By which an attempt failed just now, if one did.
    """
    failures = ledger.failures(turn_id)
    if isinstance(error, UnusableReply):
        alike = sum(call.error == error.code for call in failures)
        if alike >= _SAME_REPLY:
            return error.code, f"{error}, {alike} times in this turn"
    if isinstance(error, Stalled):
        stalls = sum((call.error or "").endswith("_timeout") for call in failures)
        if error.recurs or stalls >= _STALLS:
            return error.code, f"{error}, {stalls} times in this turn"
    last = error.code if error is not None else failures[-1].error if failures else ""
    answered = sum(call.state != "unknown" for call in failures)
    if answered >= limits.turn_attempts:
        text = f"the provider answered {answered} times in vain; the last error: {last}"
        return "attempts_exhausted", text
    tokens = ledger.wasted_tokens(turn_id)
    if tokens > limits.turn_spend_tokens:
        text = f"about {tokens} tokens were used up in vain; the last error: {last or 'none'}"
        return "spend_exhausted", text
    return None
