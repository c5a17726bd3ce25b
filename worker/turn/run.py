"""One run of what stands first in an inbox: collect it, refuse or answer it, commit it."""

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from turnline.contracts.messages import ContextAppend, Interrupt, UserMessage
from turnline.contracts.replies import (
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnStarted,
)
from turnline.worker.effects import ConversationSnapshot, Entry
from turnline.worker.errors import (
    ProviderUnavailable,
    RateLimited,
    Retryable,
    Terminal,
    UnusableReply,
)
from turnline.worker.lease import Lease
from turnline.worker.logs import bind_log_context
from turnline.worker.outcome import Done, Outcome, Parked
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
)
from turnline.worker.pipeline.context import Message, OpenAILLMContext
from turnline.worker.pipeline.frames import (
    LLMFullResponseStartFrame,
    LLMTextFrame,
    StartInterruptionFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM
from turnline.worker.pipeline.tool_schemas import NOT_GIVEN
from turnline.worker.turn.attempt import Attempt, Parts, backoff_s, given_up
from turnline.worker.turn.attempt_log import (
    BETWEEN_ANSWERS,
    AttemptLog,
    TurnFacts,
    citations_of,
    text_of,
    texts_of,
)
from turnline.worker.turn.checkpoints import (
    Checkpoints,
    Progress,
    last_entry_step,
    progress_of,
    rollback_step,
)
from turnline.worker.turn.commit import Ending, build_commit
from turnline.worker.turn.event_writer import EventWriter
from turnline.worker.turn.gathering import ConsumedEntry, Turn, collect, collect_again
from turnline.worker.turn.inbox import Inbox
from turnline.worker.turn.ledger import Ledger
from turnline.worker.turn.open_calls import OpenCalls
from turnline.worker.turn.plan import Plan
from turnline.worker.turn.reply_format import InvalidReply, parsed_reply

turns_log = logging.getLogger("turnline.turns")

_SPEECH_PARK_MS = 60_000
_ASSISTANT_PARAMS = LLMAssistantAggregatorParams(expect_stripped_words=False)


class Draft(NamedTuple):
    """A turn in the making; after a rollback there is another one."""

    turn: Turn
    assistant: LLMAssistantContextAggregator
    """Brings the reply into the turn's context."""
    progress: Progress
    """How far earlier attempts came."""


class TurnRun:
    """Runs what stands first in an inbox, once: collects it, refuses or answers it, commits it."""

    def __init__(
        self, parts: Parts, lease: Lease, loaded: ConversationSnapshot, began_at_s: float
    ) -> None:
        """Prepare; nothing is sent. `began_at_s` is when the conversation was asked for."""
        self._parts = parts
        self._settings = parts.settings
        self._lease = lease
        self._loaded = loaded
        self._inbox = Inbox(parts.store, lease, loaded.entries)
        self._ledger = Ledger(loaded)
        self._checkpoints = Checkpoints(parts.store, lease, loaded.steps)
        self._batches = itertools.count(loaded.attempt * 1_000_000 + 1)
        self._began_at_s = time.monotonic()
        self._budget_s = 0.0
        self.following: ConversationSnapshot | None = None
        """The conversation as the commit left it; None: it must be loaded again."""
        self._observer = parts.observer.attempt(
            lease, loaded, began_at_s=began_at_s, loaded_at_s=self._began_at_s
        )

    async def run(self, *, keep_lease: bool) -> Outcome:
        """Collect, answer, commit.

        Args:
            keep_lease: Keep the conversation after the commit, if more waits.

        Raises:
            LeaseLost: Nothing was written since.
            StoreUnavailable: Redis did not answer.
        """
        try:
            outcome = await self._run(keep_lease=keep_lease)
        except BaseException as error:
            self._observer.ended(error)
            raise
        self._observer.ended(outcome)
        return outcome

    async def _run(self, *, keep_lease: bool) -> Outcome:
        if self._loaded.crashes > self._settings.max_crashes:
            return await self._give_up()
        while True:
            draft = await self._begin()
            turn = draft.turn
            if not await self._collect(draft):
                return Parked(_SPEECH_PARK_MS, "input", self._inbox.last)
            owner = turn.primary if turn.wants_answer else turn.used[0]
            bind_log_context(**self._facts(owner).ids)
            self._observer.collected(turn.used, owner)
            ended = await self._answer(draft) if turn.wants_answer else Ending()
            if isinstance(ended, Parked):
                return ended
            if ended is not None:
                return await self._commit(turn, ended, keep_lease=keep_lease)
            # Rolled back: the same messages again, joined with what came.

    # -- collecting -----------------------------------------------------------------------------

    async def _begin(self) -> Draft:
        """Begin with what earlier attempts left, and nothing of the inbox."""
        progress = self._progress()
        if progress.deadlines:  # what is waited for may stand anywhere in the inbox
            await self._inbox.read_all()
            progress = self._progress()
        context = OpenAILLMContext.from_stored(self._loaded.messages)
        pair = self._parts.services.create_context_aggregator(
            context,
            user_params=LLMUserAggregatorParams(self._settings.aggregation_timeout_s),
            assistant_params=_ASSISTANT_PARAMS,
        )
        return Draft(self._new_turn(pair.user()), pair.assistant(), progress)

    def _progress(self) -> Progress:
        """Return how far earlier attempts came: not at all, once a rollback is asked for."""
        rollback = self._inbox.pending_control("rollback")
        if rollback is None:
            return progress_of(self._checkpoints.safe, None)
        if not self._checkpoints.is_rolled_back(rollback.entry_id):
            self._ledger.roll_back()
        return progress_of(self._checkpoints.safe, rollback.entry_id)

    def _new_turn(self, user: LLMUserContextAggregator) -> Turn:
        return Turn(
            self._lease.conversation_id,
            self._loaded.settings,
            user,
            since_ms=self._loaded.since_ms,
            schemas=self._parts.planner.checker.schemas,
        )

    async def _collect(self, draft: Draft) -> bool:
        """Add entries until an answer is wanted, or only changes are left; False: wait for more."""
        try:
            if draft.progress.last_entry is not None:
                await collect_again(draft.turn, self._inbox, draft.progress.last_entry)
                return True
            return await collect(
                draft.turn,
                self._inbox,
                aggregation_timeout_s=self._settings.aggregation_timeout_s,
                speech_timeout_s=self._settings.speech_timeout_s,
            )
        finally:
            draft.turn.unlink()

    # -- answering ------------------------------------------------------------------------------

    async def _answer(self, draft: Draft) -> Ending | Parked | None:
        """Answer a turn or refuse to; None if it was rolled back."""
        turn = draft.turn
        plan = self._plan(turn)
        if draft.progress.reasoning_refused:
            turn.context.drop_reply_items()  # as the attempt did that was told
        turn.context.add_messages(map(dict, draft.progress.messages))
        calls = OpenCalls(draft.progress, turn.context, plan, self._now_ms)
        refusal = self._refusal(turn.primary, plan)
        ended = await self._respond(draft, plan, calls) if refusal is None else Ending(refusal)
        if isinstance(ended, Ending):
            for entry, result in calls.used_answers(self._inbox.entries):
                turn.consume_result(entry, result)
        return ended

    def _plan(self, turn: Turn) -> Plan:
        """Work out settings and tools, by what the message asks for, and tell the context."""
        planner, settings = self._parts.planner, self._loaded.settings
        message = turn.primary.message
        if isinstance(message, UserMessage | ContextAppend):
            form = message.response_format or None
            plan = planner.plan(settings, agent=message.agent or None, response_format=form)
        else:
            plan = planner.plan(settings)
        if plan.reply is not None:
            planner.checker.expect(plan.reply)  # while the model is at work
        choice = plan.settings.tool_choice
        turn.context.set_tools(plan.tools or NOT_GIVEN)
        turn.context.set_tool_choice(choice if choice is not None else NOT_GIVEN)
        turn.context.system_prompt = plan.settings.system_prompt
        self._budget_s = self._parts.budget_s(plan)
        return plan

    def _refusal(self, primary: ConsumedEntry, plan: Plan) -> TurnFailed | None:
        """Return why this turn is not attempted (again), if so."""
        loaded, deadline_at_ms = self._loaded, _deadline_at_ms(primary)
        why = plan.problem
        if why is None and loaded.crashes >= self._settings.max_crashes:
            why = ("crashed", f"{loaded.crashes} attempts ended without a word")
        if why is None and deadline_at_ms is not None and self._now_ms() > deadline_at_ms:
            why = ("deadline_exceeded", "the producer's deadline has passed")
        if why is None and loaded.attempt > 1:
            why = given_up(self._ledger, primary.turn_id, self._settings)
        return None if why is None else self._failed(primary, *why)

    async def _respond(self, draft: Draft, plan: Plan, calls: OpenCalls) -> Ending | Parked | None:
        """Have the model answer, unless that has to wait; None if the turn was rolled back."""
        stop = self._inbox.pending_control("interrupt")
        if stop is not None:
            return await self._interrupted(draft, stop, None)
        calls.find_answers(self._inbox.entries)
        if not calls.can_go_on:
            return self._wait_for_result(draft.turn.primary, calls)
        provider = f"{self._settings.provider} {self._parts.services.model_of(plan.settings)}"
        wait_s = await self._parts.breakers.wait_s(provider, self._lease.conversation_id)
        if wait_s:
            waiting = self._wait(draft, wait_s, "provider_unavailable", "the provider is failing")
            return waiting if isinstance(waiting, Parked) else Ending(waiting)
        failure: Retryable | Terminal | None = None
        log = self._open_log(draft, plan)
        attempt = Attempt(self._parts, self._lease, self._inbox, plan, calls, log, draft.assistant)
        try:
            async with attempt:
                await attempt.run()
        except (Retryable, Terminal) as error:
            # Its frames hold the task that holds it, and megabytes of a reply: they would stay
            # until a collection, while turns after turns fail.
            error.__traceback__ = None
            failure = error
        await self._note_health(provider, failure)
        return await self._conclude(draft, attempt, failure)

    async def _note_health(self, provider: str, failure: Retryable | Terminal | None) -> None:
        """Tell the breakers whether the provider works: also one that refuses does."""
        if failure is None or isinstance(failure, UnusableReply | Terminal):
            await self._parts.breakers.succeeded(provider)
        elif isinstance(failure, ProviderUnavailable) and not isinstance(failure, RateLimited):
            await self._parts.breakers.failed(provider, self._lease.conversation_id)

    def _open_log(self, draft: Draft, plan: Plan) -> AttemptLog:
        """Begin what an attempt leaves, with what earlier ones said for good."""
        turn, primary, settings = draft.turn, draft.turn.primary, self._settings
        facts = self._facts(primary)
        writer = EventWriter(
            self._parts.store,
            self._lease,
            facts.ids,
            entry_id=self._inbox.first,
            batches=self._batches,
            coalesce_s=settings.coalesce_s,
            coalesce_bytes=settings.coalesce_bytes,
            first=[TurnStarted(**facts.ids, worker=settings.worker_name)],
        )
        if draft.progress.messages:
            writer.text(text_of(draft.progress.messages))
        opening = list[bytes]()
        if draft.progress.last_entry is None:
            rollback = self._inbox.pending_control("rollback")
            if rollback is not None and not self._checkpoints.is_rolled_back(rollback.entry_id):
                opening.append(rollback_step(rollback.entry_id))
            opening.append(last_entry_step(turn.used[-1].entry.entry_id))
        return AttemptLog(
            facts,
            writer,
            self._checkpoints,
            self._ledger,
            self._observer,
            context=turn.context,
            settings=plan.settings,
            opening=opening,
        )

    # -- how it ends ----------------------------------------------------------------------------

    async def _conclude(
        self, draft: Draft, attempt: Attempt, failure: Retryable | Terminal | None
    ) -> Ending | Parked | None:
        """Say what an attempt that is over comes to; None if the turn was rolled back."""
        stop, log = attempt.stop, attempt.log
        if failure is not None and (stop is None or isinstance(failure, Terminal)):
            log.writer.close()
            log.abandon_calls()
            outcome = self._after(failure, draft)
            if isinstance(outcome, Parked):
                await log.save_abandoned()
                return outcome
            said = failure.said.text if failure.said is not None else ""
            return Ending(outcome, log.writer.rest(), said=said)
        if stop is None:
            if attempt.calls.open:
                await log.writer.publish_rest()
                return self._wait_for_result(draft.turn.primary, attempt.calls)
            return await self._completed(draft, attempt)
        if stop.control_for(self._inbox.first) == "rollback":
            await log.roll_back(stop.entry_id)
            return None
        return await self._interrupted(draft, stop, log)

    def _after(self, failure: Retryable | Terminal, draft: Draft) -> TurnFailed | Parked:
        """Fail, or try again later: without a slot, within the turn's budget."""
        primary = draft.turn.primary
        if isinstance(failure, Terminal):
            return self._failed(primary, failure.code, str(failure))
        why = given_up(self._ledger, primary.turn_id, self._settings, failure)
        if why is not None:
            return self._failed(primary, *why)
        wait_s = backoff_s(self._loaded.attempt, failure.retry_after_s)
        return self._wait(draft, wait_s, failure.code, str(failure))

    def _wait(self, draft: Draft, wait_s: float, code: str, text: str) -> TurnFailed | Parked:
        """Wait without a slot; fail where that would outlast the turn's budget or deadline."""
        primary, deadline_at_ms = draft.turn.primary, _deadline_at_ms(draft.turn.primary)
        spent_s = time.monotonic() - self._began_at_s
        if not draft.progress.deadlines:  # else most of it may have been a wait
            spent_s += (self._loaded.now_ms - self._loaded.since_ms) / 1000
        late = deadline_at_ms is not None and self._now_ms() + wait_s * 1000 > deadline_at_ms
        if late or spent_s + wait_s > self._budget_s:
            return self._failed(primary, code, text)
        self._observer.retrying(code, wait_s)
        # An interrupt that nobody has looked at yet ends the wait.
        return Parked(max(1, int(wait_s * 1000)), "backoff", self._inbox.last)

    def _wait_for_result(self, primary: ConsumedEntry, calls: OpenCalls) -> Parked:
        """Wait without a slot for what others have to say."""
        defer_ms, deadline_at_ms = calls.defer_ms, _deadline_at_ms(primary)
        if deadline_at_ms is not None:
            defer_ms = min(defer_ms, max(1, deadline_at_ms - self._now_ms()))
        return Parked(defer_ms, "input", self._inbox.last)

    async def _completed(self, draft: Draft, attempt: Attempt) -> Ending:
        turn, log, asked = draft.turn, attempt.log, attempt.plan.reply
        parsed: Any = None
        if asked is not None:
            texts = texts_of(self._messages(turn))
            reply = texts[-1] if texts else ""
            try:
                parsed = await parsed_reply(reply, asked, self._parts.planner.checker)
            except InvalidReply as error:
                log.abandon_calls()
                failed = self._failed(turn.primary, "invalid_reply", str(error))
                return Ending(failed, log.writer.rest(), reply=reply)
        log.keep_calls()
        finish_reason = self._ledger.kept[-1].finish_reason if self._ledger.kept else None
        completed = TurnCompleted(
            **self._answered(turn), finish_reason=finish_reason, parsed=parsed
        )
        return Ending(completed, log.writer.rest())

    async def _interrupted(self, draft: Draft, stop: Entry, log: AttemptLog | None) -> Ending:
        """Keep what was said so far, cut to what was heard, and close open tool calls."""
        turn, message = draft.turn, stop.message
        heard = message.heard if isinstance(message, Interrupt) else None
        if log is None:
            await self._recover_shown(draft)
        await draft.assistant.process_frame(StartInterruptionFrame(heard), DOWNSTREAM)
        turn.context.repair_in_progress()
        if isinstance(message, Interrupt) and not turn.has_used(stop):
            await turn.add(stop)
        if log is not None:
            log.keep_calls()
        interrupted = TurnInterrupted(**self._answered(turn))
        return Ending(interrupted, log.writer.rest() if log is not None else ())

    async def _recover_shown(self, draft: Draft) -> None:
        """Say again what an attempt that is over had shown: it is what the user interrupted."""
        primary = draft.turn.primary
        if self._loaded.attempt > 1:
            store = self._parts.store
            shown = await store.shown(self._lease, primary.entry.after, primary.turn_id)
            if safe := text_of(draft.progress.messages):
                shown = shown.removeprefix(safe).removeprefix(BETWEEN_ANSWERS)
            if shown:
                await draft.assistant.process_frame(LLMFullResponseStartFrame(), DOWNSTREAM)
                await draft.assistant.process_frame(LLMTextFrame(shown), DOWNSTREAM)

    def _failed(self, primary: ConsumedEntry, code: str, text: str) -> TurnFailed:
        self._ledger.roll_back()
        return TurnFailed(**self._ids(primary), code=code, message=text)

    def _answered(self, turn: Turn) -> dict[str, Any]:
        """Return what completed and interrupted turns have in common."""
        return {
            **self._ids(turn.primary),
            "text": self._text(turn),
            "citations": citations_of(self._messages(turn)),
            "usage": self._ledger.usage,
            "usage_state": self._ledger.usage_state,
            "model": self._ledger.kept[-1].model if self._ledger.kept else "",
        }

    def _ids(self, primary: ConsumedEntry) -> dict[str, Any]:
        assert primary.message is not None
        return {**self._facts(primary).ids, "metadata": primary.message.metadata}

    def _facts(self, owner: ConsumedEntry) -> TurnFacts:
        conversation_id, attempt = self._lease.conversation_id, self._loaded.attempt
        return TurnFacts(conversation_id, owner.turn_id, attempt, owner.trace)

    def _text(self, turn: Turn) -> str:
        """Return what the assistant said in this turn, as it is committed."""
        return text_of(self._messages(turn))

    @staticmethod
    def _messages(turn: Turn) -> Sequence[Message]:
        """Return the messages of a turn, of which none was loaded."""
        return turn.context.messages if turn.context_replaced else turn.context.own_messages

    def _now_ms(self) -> int:
        """Return Redis' clock."""
        return self._loaded.now_ms + int((time.monotonic() - self._began_at_s) * 1000)

    # -- committing -----------------------------------------------------------------------------

    async def _give_up(self) -> Outcome:
        """Fail the first message unread: every attempt at it has ended without a word."""
        loaded = self._loaded
        turn = self._new_turn(
            LLMUserContextAggregator(OpenAILLMContext.from_stored(loaded.messages))
        )
        turn.unlink()
        text = f"{loaded.crashes} attempts ended without a word"
        turn.fail_unread(loaded.entries[0], "crashed", text, attempt=loaded.attempt)
        self._ledger.roll_back()
        owner = turn.used[0]
        self._observer.collected(turn.used, owner)
        outcome = await self._commit(turn, Ending(counts=True, is_unread=True), keep_lease=True)
        turns_log.warning("turn.failed", extra={**self._facts(owner).ids, "code": "crashed"})
        return outcome

    async def _commit(self, turn: Turn, ending: Ending, *, keep_lease: bool) -> Outcome:
        """Let it take effect."""
        loaded = self._loaded
        effects, messages = build_commit(
            ending,
            turn,
            loaded,
            self._ledger.entries,
            shard=self._parts.shard,
            worker=self._settings.worker_name,
            now_ms=self._now_ms(),
            reasoning_max_bytes=self._settings.reasoning_max_bytes,
        )
        self._observer.committing()
        committed = await self._parts.store.commit(self._lease, effects, keep_lease=keep_lease)
        self._observer.committed(effects, committed.outcome)
        if committed.outcome == "committed" and committed.length == len(messages):
            self.following = ConversationSnapshot(
                attempt=effects.next_attempt,
                crashes=0,
                settings=effects.settings or loaded.settings,
                messages=messages,
                steps=[],
                entries=committed.entries,
                since_ms=committed.now_ms,
                reasoning_bytes=effects.reasoning_bytes
                + (0 if effects.rewrite else loaded.reasoning_bytes),
                now_ms=committed.now_ms,
            )
        return Done()


def _deadline_at_ms(primary: ConsumedEntry) -> int | None:
    """Return the producer's deadline, if there is one."""
    assert primary.message is not None
    return primary.message.deadline_at_ms
