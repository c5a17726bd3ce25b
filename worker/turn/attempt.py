"""One attempt at what stands at the head of an inbox: collect, answer, commit."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from turnline.contracts.conversation import CallEntry
from turnline.contracts.messages import ContextAppend, Interrupt, UserMessage
from turnline.contracts.numbers import number
from turnline.contracts.replies import (
    AnyTerminal,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)
from turnline.worker.effects import ConversationSnapshot, Entry
from turnline.worker.errors import (
    LeaseLost,
    ProviderUnavailable,
    RateLimited,
    Retryable,
    StoreUnavailable,
    Terminal,
    UnusableReply,
    Words,
    WorkerError,
)
from turnline.worker.lease import Lease
from turnline.worker.logs import bind_log_context
from turnline.worker.outcome import Done, Outcome, Parked
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMUserAggregatorParams,
)
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import Message, OpenAILLMContext
from turnline.worker.pipeline.frames import (
    LLMFullResponseStartFrame,
    LLMTextFrame,
    OpenAILLMContextFrame,
    StartInterruptionFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM
from turnline.worker.pipeline.tool_schemas import NOT_GIVEN
from turnline.worker.turn.checkpoints import Steps, progress_of
from turnline.worker.turn.collecting import Collector
from turnline.worker.turn.commit import settle
from turnline.worker.turn.event_writer import EventWriter
from turnline.worker.turn.gathering import ConsumedEntry, Turn, message_of
from turnline.worker.turn.inbox import Inbox
from turnline.worker.turn.ledger import Ledger, entry_of, note_of
from turnline.worker.turn.plan import Plan
from turnline.worker.turn.ports import Parts
from turnline.worker.turn.reply_format import InvalidReply, parsed_reply
from turnline.worker.turn.retrying import backoff_s
from turnline.worker.turn.tap import BETWEEN_ANSWERS, Tap
from turnline.worker.turn.tool_calls import ToolCalls, TurnFacts

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(dict, float_hook=number).decode
_SPEECH_PARK_MS = 60_000
_BEYOND_S = 1.0
"""Seconds beyond a turn's budget: what stops by itself says why."""
_SAME_REPLY = 2
"""Replies that cannot be used for the same reason, after which a turn is not tried again."""


class TurnRun:
    """One attempt at what stands at the head of an inbox."""

    def __init__(
        self, parts: Parts, lease: Lease, loaded: ConversationSnapshot, began_at_s: float
    ) -> None:
        """Prepare context, aggregators and service; nothing is sent."""
        self._parts = parts
        self._settings = parts.settings
        self._store = parts.store
        self._lease = lease
        self._loaded = loaded
        self._inbox = Inbox(parts.store, lease, loaded.entries)
        self._batches = itertools.count(1)
        self._ledger = Ledger(loaded)
        self._steps = Steps(parts.store, lease, loaded.steps)
        self._began_at = time.monotonic()
        self.following: ConversationSnapshot | None = None
        """The conversation as the commit left it; None: it must be loaded again."""
        self._prepare()
        self._seen = parts.observer.attempt(
            lease, loaded, began_at_s=began_at_s, loaded_at_s=self._began_at
        )

    def _prepare(self) -> None:
        loaded = self._loaded
        rollback = self._inbox.acting("rollback")
        if rollback is not None and not self._steps.is_rolled_back(rollback.entry_id):
            self._ledger.roll_back()
        self._progress = progress_of(self._steps.safe, rollback.entry_id if rollback else None)
        self._context = OpenAILLMContext.from_stored(loaded.messages)
        self._use_plan(self._parts.planner.plan(loaded.settings))
        self._pair = self._service.create_context_aggregator(
            self._context,
            user_params=LLMUserAggregatorParams(
                aggregation_timeout=self._settings.aggregation_timeout_s
            ),
            assistant_params=LLMAssistantAggregatorParams(expect_stripped_words=False),
        )
        self._turn = Turn(
            self._lease.conversation_id,
            loaded.settings,
            self._pair.user(),
            since_ms=loaded.since_ms,
            schemas=self._parts.planner.checker.schemas,
        )
        self._tap = Tap()
        self._service.link(self._tap)
        self._tap.link(self._pair.assistant())
        self._tools: ToolCalls | None = None
        self._stop: Entry | None = None
        self._answering: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._started = False
        self._said: Words | None = None
        self._misfit = ""
        """A reply whose form is not what was asked for."""

    def _use_plan(self, plan: Plan) -> None:
        """Work with these settings and tools."""
        self._plan, context = plan, self._context
        if plan.reply is not None:
            self._parts.planner.checker.expect(plan.reply)  # while the model is at work
        choice = plan.settings.tool_choice
        context.set_tools(plan.tools or NOT_GIVEN)
        context.set_tool_choice(choice if choice is not None else NOT_GIVEN)
        context.system_prompt = plan.settings.system_prompt
        self._service = self._parts.services(self._lease.conversation_id, plan.settings, self)
        self._entered = 0
        """Calls of the service that stand in the ledger."""
        self._has_saved = False
        """Whether any of them is safe in a step."""

    # -- the phases -----------------------------------------------------------------------------

    async def run(self, *, go_on: bool) -> Outcome:
        """Collect, answer, commit.

        Raises:
            LeaseLost: Nothing was written since.
            StoreUnavailable: Redis did not answer.
        """
        try:
            outcome = await self._run(go_on=go_on)
        except BaseException as error:
            self._seen.ended(error)
            raise
        finally:
            self._let_go()
        self._seen.ended(outcome)
        return outcome

    def _let_go(self) -> None:
        """Break the circles that its parts make; else their memory waits for a collection."""
        self._pair.user().unlink()
        self._service.unlink()
        self._tap.unlink()
        self._answering = self._tools = None
        vars(self).pop("_writer", None)
        del self._service, self._tap

    async def _run(self, *, go_on: bool) -> Outcome:
        if self._progress.deadlines:  # what is waited for may stand anywhere in the inbox
            await self._inbox.see_all()
            self._prepare()
        while True:
            parked = await self._collect()
            if parked is not None:
                return parked
            turn = self._turn
            owner = turn.primary if turn.wants_answer else turn.used[0]
            bind_log_context(
                conversation_id=self._lease.conversation_id,
                turn_id=owner.turn_id,
                attempt=self._loaded.attempt,
                trace_id=owner.trace.trace_id,
            )
            self._seen.collected(turn.used, owner)
            if not self._turn.wants_answer:
                return await self._commit(None, go_on=go_on)
            ending = await self._answer()
            if isinstance(ending, Parked):
                return ending
            if ending is not None:
                return await self._commit(ending, go_on=go_on)
            self._prepare()  # rolled back: the same messages again, joined with what came

    async def _collect(self) -> Parked | None:
        """Take entries until an answer is wanted, or only changes are left to commit."""
        collector = Collector(
            self._inbox,
            self._turn,
            self._pair.user(),
            self._lease,
            aggregation_timeout_s=self._settings.aggregation_timeout_s,
            speech_timeout_s=self._settings.speech_timeout_s,
        )
        if self._progress.last_entry is not None:
            await collector.collect_again(self._progress.last_entry)
        elif not await collector.collect():
            return Parked(_SPEECH_PARK_MS, "input", seen=self._inbox.last)
        return None

    async def _answer(self) -> AnyTerminal | Parked | None:  # noqa: PLR0911  each way it ends
        """Run the model; None if the turn was rolled back."""
        primary = self._turn.primary
        assert primary.message is not None
        self._plan_for(primary)
        self._context.add_messages(map(dict, self._progress.messages))
        self._tools = tools = self._tool_calls(primary)
        if (refusal := self._refusal(primary)) is not None:
            return refusal
        self._stop = self._inbox.acting("interrupt")
        tools.take_answers(self._inbox.entries)
        if self._stop is None and not tools.can_go_on:
            return await self._wait_elsewhere(primary, tools)
        if self._stop is None and (failure := await self._attempt(primary, tools)) is not None:
            return failure
        if self._stop is None:
            if tools.unfinished:
                return await self._wait_elsewhere(primary, tools)
            return await self._completed(primary)
        if self._stop.control_for(self._inbox.head) == "rollback":
            await self._roll_back(primary, self._stop)
            return None
        return await self._interrupted(primary, self._stop)

    def _plan_for(self, primary: ConsumedEntry) -> None:
        """Heed what the message itself asks for."""
        message = primary.message
        if isinstance(message, UserMessage | ContextAppend) and (
            message.agent or message.response_format
        ):
            self._use_plan(
                self._parts.planner.plan(
                    self._loaded.settings,
                    agent=message.agent,
                    response_format=message.response_format,
                )
            )
            self._service.link(self._tap)

    def _tool_calls(self, primary: ConsumedEntry) -> ToolCalls:
        plan, trace = self._plan, primary.trace
        rollback = self._inbox.acting("rollback")
        tools = ToolCalls(
            facts=TurnFacts(
                conversation_id=self._lease.conversation_id,
                turn_id=primary.turn_id,
                attempt=self._loaded.attempt,
                trace_id=trace.trace_id,
                traceparent=f"00-{trace.trace_id}-{trace.span_id}-{int(trace.sampled):02d}",
                stream=self._parts.shard.tool_calls,
                last_entry=self._turn.used[-1].entry.entry_id,
                rollback=rollback.entry_id if rollback is not None else None,
            ),
            steps=self._steps,
            progress=self._progress,
            context=self._context,
            toolbox=self._parts.planner.toolbox,
            offered=plan.offered,
            arguments=plan.arguments,
            checker=self._parts.planner.checker,
            limits=plan.limits,
            now_ms=self._now_ms,
            take_spend=self._take_spend,
        )
        if plan.offered:
            self._service.use_functions(tools)
        return tools

    def _take_spend(self) -> tuple[list[CallEntry], Callable[[], None]]:
        """Return the calls that are not safe yet, and what to call once they are."""
        spent, count = self._calls(self._turn.primary), len(self._service.calls)

        def saved() -> None:
            self._ledger.keep(spent)
            self._entered, self._has_saved = count, True

        return spent, saved

    async def _wait_elsewhere(self, primary: ConsumedEntry, tools: ToolCalls) -> Parked:
        """Wait without a slot for what others have to say."""
        if self._started:
            await self._writer.publish_rest()
        defer_ms = tools.defer_ms
        assert primary.message is not None
        if primary.message.deadline_at_ms is not None:
            left_ms = primary.message.deadline_at_ms - self._now_ms()
            defer_ms = min(defer_ms, max(1, left_ms))
        return Parked(defer_ms, "input", seen=self._inbox.last)

    def _now_ms(self) -> int:
        """Return Redis' clock."""
        return self._loaded.now_ms + int((time.monotonic() - self._began_at) * 1000)

    async def _attempt(
        self, primary: ConsumedEntry, tools: ToolCalls
    ) -> TurnFailed | Parked | None:
        """Call the model if it is to be called now; return what went wrong."""
        provider = f"{self._settings.provider} {self._service.model_name}"
        breakers = self._parts.breakers
        if wait_s := await breakers.wait_s(provider, self._lease.conversation_id):
            return self._wait(primary, wait_s, "provider_unavailable", "the provider is failing")
        try:
            await self._run_model(primary, tools)
        except WorkerError as error:
            self._said = error.said
            if isinstance(error, Retryable | Terminal):
                # Its frames hold the task that holds it, and megabytes of a reply: they would stay
                # until a collection, while turns after turns fail.
                error.__traceback__ = None
            if isinstance(error, UnusableReply | Terminal):
                await breakers.succeeded(provider)  # it does answer
            elif isinstance(error, ProviderUnavailable) and not isinstance(error, RateLimited):
                await breakers.failed(provider, self._lease.conversation_id)
            if isinstance(error, Terminal):
                return self._failed(primary, error.code, str(error))
            if not isinstance(error, Retryable):
                raise
            if self._stop is not None:
                return None  # asked to stop meanwhile: there is nothing to try again
            return await self._later(primary, error)
        await breakers.succeeded(provider)
        return None

    async def _run_model(self, primary: ConsumedEntry, tools: ToolCalls) -> None:
        """Run the pipeline from the model on, until it is done or somebody stops it.

        Raises:
            WorkerError: As the service raises it.
        """
        lease = self._lease
        self._writer = writer = self._new_writer(primary)
        self._tap.writer = writer
        self._tap.seen = self._seen
        self._tap.tools = tools
        tools.writer = writer
        if self._progress.messages:
            self._show_again(primary, writer)
        self._answering = answering = asyncio.create_task(self._proceed(tools))
        lease.on_inbox_changed = self._look
        if lease.inbox_changed.is_set():
            self._look()
        try:
            await answering
        except asyncio.CancelledError:
            if self._stop is None:
                writer.close()
                await self._hand_over(primary)
                raise
            await self._steps.settle()
        finally:
            lease.on_inbox_changed = None

    async def _proceed(self, tools: ToolCalls) -> None:
        """Answer, going on where an earlier attempt ended, until something has to be waited for.

        Raises:
            Terminal: The turn's budget is used up, by its tools or by the model.
            WorkerError: As the service raises it.
        """
        # This attempt's alone: the first one may have begun before an outage of all workers.
        budget = asyncio.timeout(self._settings.turn_budget_s + _BEYOND_S)
        try:
            async with budget:
                await self._answer_calls(tools)
        except TimeoutError:
            if not budget.expired():
                raise
            raise Terminal("the turn's budget is used up", code="turn_budget_exceeded") from None

    async def _answer_calls(self, tools: ToolCalls) -> None:
        if not self._progress.messages:
            await self._service.process_frame(OpenAILLMContextFrame(self._context), DOWNSTREAM)
        elif tools.unfinished or tools.wants_run:
            await self._resume(tools)
        while tools.unfinished and self._stop is None:
            await self._inbox.see_all()
            tools.take_answers(self._inbox.entries)
            if not tools.can_go_on:
                return
            await self._resume(tools)

    async def _resume(self, tools: ToolCalls) -> None:
        await self._service.resume(self._context, tools.unfinished, answer=tools.wants_run)

    def _show_again(self, primary: ConsumedEntry, writer: EventWriter) -> None:
        """Tell readers of this attempt what earlier ones said for good."""
        self._started = True
        ids = self._ids(primary)
        del ids["metadata"]
        writer.event(TurnStarted(**ids, worker=self._settings.worker_name))
        writer.text(self._safe_text())

    def _safe_text(self) -> str:
        """Return what earlier attempts said for good."""
        return BETWEEN_ANSWERS.join(text for it in self._progress.messages if (text := _said(it)))

    # -- being stopped --------------------------------------------------------------------------

    def _look(self) -> None:
        """Something came in: see whether it stops this turn."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_stop())

    async def _look_for_stop(self) -> None:
        while self._lease.inbox_changed.is_set():
            self._lease.inbox_changed.clear()
            try:
                more = await self._inbox.more()
            except StoreUnavailable:
                return  # looked at again with the next news, and by the next attempt
            acting = (entry for entry in more if entry.control_for(self._inbox.head))
            stop = next(acting, None)
            if stop is not None and self._stop is None and self._answering is not None:
                self._stop = stop
                await self._end_answering(self._answering)

    async def _end_answering(self, answering: "asyncio.Task[None]") -> None:
        """Cancel what may be cancelled; a tool that may not be has its result kept."""
        if self._tools is not None and self._tools.must_finish:
            self._tap.is_closed = True
            await self._service.process_frame(StartInterruptionFrame(), DOWNSTREAM)
        else:
            answering.cancel()

    async def _hand_over(self, primary: ConsumedEntry) -> None:
        """Leave a note of what was spent, if the lease still allows it."""
        if self._lease.lost or not self._service.calls:
            return
        try:
            async with asyncio.timeout(1):
                await self._steps.settle()
                self._abandon(primary)
                await self._save_abandoned()
        except (LeaseLost, StoreUnavailable, TimeoutError):
            pass  # the call that was open is noted as unknown by the next attempt

    async def _save_abandoned(self) -> None:
        steps = [b"c" + _encode(call) for call in self._ledger.note_abandoned()]
        if steps:
            await self._steps.save(steps)

    async def _roll_back(self, primary: ConsumedEntry, stop: Entry) -> None:
        """Forget what was said and done; what was spent stays known."""
        self._abandon(primary)
        if self._progress.last_entry is not None or self._has_saved:
            await self._steps.save([b"x" + stop.entry_id.encode()])
            self._ledger.roll_back()
        await self._save_abandoned()

    # -- how it ends ----------------------------------------------------------------------------

    def _refusal(self, primary: ConsumedEntry) -> TurnFailed | None:
        """Return why this turn is not attempted (again), if so."""
        loaded, limits = self._loaded, self._settings
        if self._plan.problem is not None:
            return self._failed(primary, *self._plan.problem)
        if loaded.crashes >= limits.max_crashes:
            text = f"{loaded.crashes} attempts ended without a word"
            return self._failed(primary, "crashed", text)
        assert primary.message is not None
        deadline_at_ms = primary.message.deadline_at_ms
        if deadline_at_ms is not None and self._now_ms() > deadline_at_ms:
            return self._failed(primary, "deadline_exceeded", "the producer's deadline has passed")
        return self._given_up(primary) if loaded.attempt > 1 else None

    async def _later(self, primary: ConsumedEntry, error: Retryable) -> TurnFailed | Parked:
        """Note what was spent and wait without a slot; past the budget, fail."""
        if self._started:
            self._writer.close()
        self._abandon(primary)
        if (failure := self._given_up(primary, error)) is None:
            wait_s = backoff_s(self._loaded.attempt, error.retry_after_s)
            outcome = self._wait(primary, wait_s, error.code, str(error))
            if isinstance(outcome, Parked):
                await self._save_abandoned()
                return outcome
            failure = outcome
        return failure

    def _given_up(
        self, primary: ConsumedEntry, error: Retryable | None = None
    ) -> TurnFailed | None:
        """Return why this turn is not tried (again), whatever time is left, if so."""
        failures = self._ledger.failures(primary.turn_id)
        if isinstance(error, UnusableReply):
            alike = sum(call.error == error.code for call in failures)
            if alike >= _SAME_REPLY:
                return self._failed(primary, error.code, f"{error}, {alike} times in this turn")
        last = error.code if error is not None else failures[-1].error if failures else ""
        answered = sum(call.state != "unknown" for call in failures)
        if answered >= self._settings.turn_attempts:
            text = f"the provider answered {answered} times in vain; the last error: {last}"
            return self._failed(primary, "attempts_exhausted", text)
        tokens = self._ledger.wasted_tokens(primary.turn_id)
        if tokens > self._settings.turn_spend_tokens:
            text = f"about {tokens} tokens were used up in vain; the last error: {last or 'none'}"
            return self._failed(primary, "spend_exhausted", text)
        return None

    def _wait(
        self, primary: ConsumedEntry, wait_s: float, code: str, text: str
    ) -> TurnFailed | Parked:
        """Wait without a slot; fail where that would outlast the turn's budget or deadline."""
        assert primary.message is not None
        spent_s = time.monotonic() - self._began_at
        if not self._progress.deadlines:  # else most of it may have been a wait
            spent_s += (self._loaded.now_ms - self._loaded.since_ms) / 1000
        deadline_at_ms = primary.message.deadline_at_ms
        late = deadline_at_ms is not None and self._now_ms() + wait_s * 1000 > deadline_at_ms
        if late or spent_s + wait_s > self._settings.turn_budget_s:
            return self._failed(primary, code, text)
        self._seen.retrying(code, wait_s)
        # An interrupt that nobody has looked at yet ends the wait.
        return Parked(max(1, int(wait_s * 1000)), "backoff", seen=self._inbox.last)

    async def _completed(self, primary: ConsumedEntry) -> TurnCompleted | TurnFailed:
        parsed: Any = None
        if self._plan.reply is not None:
            text = self._last_text()
            try:
                checker = self._parts.planner.checker
                parsed = await parsed_reply(text, self._plan.reply, checker)
            except InvalidReply as error:
                self._misfit = text
                return self._failed(primary, "invalid_reply", str(error))
        self._ledger.keep(self._calls(primary))
        last = self._ledger.kept[-1] if self._ledger.kept else None
        return TurnCompleted(
            **self._ids(primary),
            text=self._text(),
            finish_reason=last.finish_reason if last else None,
            usage=self._ledger.usage,
            usage_state=self._ledger.usage_state,
            model=last.model if last else "",
            parsed=parsed,
        )

    async def _interrupted(self, primary: ConsumedEntry, stop: Entry) -> TurnInterrupted:
        """Keep what was said so far, cut to what was heard, and close open tool calls."""
        message = message_of(stop)
        heard = message.heard if isinstance(message, Interrupt) else None
        if not self._started:
            await self._recover_shown(primary)
        await self._service.process_frame(StartInterruptionFrame(heard), DOWNSTREAM)
        self._context.repair_in_progress()
        if isinstance(message, Interrupt) and not self._turn.has_used(stop):
            await self._turn.take(stop)
        self._ledger.keep(self._calls(primary))
        last = self._ledger.kept[-1] if self._ledger.kept else None
        return TurnInterrupted(
            **self._ids(primary),
            text=self._text(),
            usage=self._ledger.usage,
            usage_state=self._ledger.usage_state,
            model=last.model if last else "",
        )

    async def _recover_shown(self, primary: ConsumedEntry) -> None:
        """Say again what an attempt that is over had shown: it is what the user interrupted."""
        if self._loaded.attempt > 1:
            shown = await self._store.shown(self._lease, primary.entry.after, primary.turn_id)
            if safe := self._safe_text():
                shown = shown.removeprefix(safe).removeprefix(BETWEEN_ANSWERS)
            if shown:
                assistant = self._pair.assistant()
                await assistant.process_frame(LLMFullResponseStartFrame(), DOWNSTREAM)
                await assistant.process_frame(LLMTextFrame(shown), DOWNSTREAM)

    def _failed(self, primary: ConsumedEntry, code: str, text: str) -> TurnFailed:
        self._abandon(primary)
        self._ledger.roll_back()
        return TurnFailed(**self._ids(primary), code=code, message=text)

    async def _commit(self, ending: AnyTerminal | None, *, go_on: bool) -> Outcome:
        """Let it take effect."""
        if ending is not None and self._tools is not None and self._tools.elsewhere:
            for entry, result in self._tools.take_answers(self._inbox.entries):
                if result.call_id in self._tools.answered:
                    self._turn.consume_result(entry, result)
        writer = self._writer if self._started else None
        effects, messages = settle(
            ending,
            turn=self._turn,
            loaded=self._loaded,
            context=self._context,
            calls=self._ledger.entries,
            events=writer.rest() if writer is not None else (),
            conversation_id=self._lease.conversation_id,
            shard=self._parts.shard,
            worker=self._settings.worker_name,
            now_ms=self._now_ms(),
            said=self._said.text if self._said is not None else "",
            reply=self._misfit,
        )
        self._seen.committing()
        committed = await self._store.commit(self._lease, effects, go_on=go_on)
        self._seen.committed(effects, committed.outcome)
        if committed.outcome == "committed" and committed.length == len(messages):
            self.following = ConversationSnapshot(
                attempt=1,
                crashes=0,
                settings=effects.settings or self._loaded.settings,
                messages=messages,
                steps=[],
                entries=committed.entries,
                since_ms=committed.now_ms,
                now_ms=committed.now_ms,
            )
        return Done()

    # -- pieces ---------------------------------------------------------------------------------

    def _ids(self, primary: ConsumedEntry) -> dict[str, Any]:
        assert primary.message is not None
        return {
            "conversation_id": self._lease.conversation_id,
            "turn_id": primary.turn_id,
            "attempt": self._loaded.attempt,
            "trace_id": primary.trace.trace_id,
            "metadata": primary.message.metadata,
        }

    def _calls(self, primary: ConsumedEntry) -> list[CallEntry]:
        """Return the calls of this attempt that are not in the ledger yet."""
        unsaved = self._service.calls[self._entered :]
        return [entry_of(call, primary.turn_id, self._loaded.attempt) for call in unsaved]

    def _abandon(self, primary: ConsumedEntry) -> None:
        """Enter the calls since the last step as ones that led to nothing."""
        self._ledger.abandon(self._calls(primary))
        self._entered = len(self._service.calls)

    def _text(self) -> str:
        """Return what the assistant said in this turn, as it is committed."""
        return BETWEEN_ANSWERS.join(text for it in self._added() if (text := _said(it)))

    def _last_text(self) -> str:
        """Return the assistant's last message of this turn."""
        said = [text for it in self._added() if (text := _said(it))]
        return said[-1] if said else ""

    def _added(self) -> list[Message]:
        """Return the messages of this turn, of which none was loaded."""
        if self._turn.context_replaced:
            return self._context.messages
        return [_decode_message(data) for data in self._context.new_messages_encoded()]

    def _new_writer(self, primary: ConsumedEntry) -> EventWriter:
        assert primary.message is not None
        return EventWriter(
            self._store,
            self._lease,
            conversation_id=self._lease.conversation_id,
            turn_id=primary.turn_id,
            attempt=self._loaded.attempt,
            trace_id=primary.trace.trace_id,
            head=self._inbox.head,
            next_batch=self._next_batch,
            coalesce_s=self._settings.coalesce_s,
            coalesce_bytes=self._settings.coalesce_bytes,
            on_lost=self._lost,
        )

    def _next_batch(self) -> int:
        return self._loaded.attempt * 1_000_000 + next(self._batches)

    def _lost(self) -> None:
        if self._answering is not None:
            self._answering.cancel()

    # -- CallObserver ---------------------------------------------------------------------------

    def on_call_started(self, call: LLMCall) -> Awaitable[None]:
        """Tell readers and leave a note of the call before its request is sent."""
        self._seen.call_started(call, self._context, self._plan.settings)
        primary = self._turn.primary
        started = None
        if not self._started:
            self._started = True
            ids = self._ids(primary)
            del ids["metadata"]
            started = TurnStarted(**ids, worker=self._settings.worker_name)
        note = note_of(call, primary.turn_id, self._loaded.attempt)
        return self._writer.begin_call(started, note)

    async def on_call_finished(self, call: LLMCall) -> None:
        """Nothing more: calls are read from the service when the turn ends."""
        self._seen.call_finished(call)


def _said(message: Message) -> str:
    """Return what a message says, if the assistant says it."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return ""
    return content if content.strip() else ""
