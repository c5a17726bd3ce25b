"""One run of what stands first in an inbox: collect it, refuse or answer it, commit it."""

import itertools
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from turnline.contracts.messages import Interrupt
from turnline.contracts.replies import TurnCompleted, TurnFailed, TurnInterrupted, TurnStarted
from turnline.worker.effects import ConversationSnapshot, Entry
from turnline.worker.errors import RateLimited, Retryable, Terminal
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
from turnline.worker.turn.attempt import Attempt, Parts, backoff_s, given_up, note_health
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
    Left,
    Progress,
    last_entry_step,
    progress_of,
    rollback_step,
)
from turnline.worker.turn.clock import TurnClock
from turnline.worker.turn.commit import Ending, build_commit
from turnline.worker.turn.event_writer import EventWriter
from turnline.worker.turn.gathering import ConsumedEntry, Turn, collect, collect_again
from turnline.worker.turn.grants import Grants
from turnline.worker.turn.inbox import Inbox
from turnline.worker.turn.ledger import Ledger, payer_of
from turnline.worker.turn.model_lists import FallBack, fall_back, with_models
from turnline.worker.turn.open_calls import OpenCalls
from turnline.worker.turn.plan import Plan
from turnline.worker.turn.pooling import choose, find_room, leave_lines
from turnline.worker.turn.ratings import records_of_rated
from turnline.worker.turn.reply_format import InvalidReply, parsed_reply

turns_log = logging.getLogger("turnline.turns")

_SPEECH_PARK_MS = 60_000
_AHEAD_MS = 10
"""By which a turn comes back before it may call: it is loaded meanwhile."""
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
        self._clock = TurnClock(loaded)
        self._known: TurnFacts | None = None  # of the turn that was asked for last
        self.following: ConversationSnapshot | None = None
        """The conversation as the commit left it; None: it must be loaded again."""
        self._observer = parts.observer.attempt(
            lease, loaded, began_at_s=began_at_s, loaded_at_s=self._clock.began_at_s
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
        plan = self._plan(turn, draft.progress.left)
        if draft.progress.reasoning_refused:
            turn.context.drop_reply_items()  # as the attempt did that was told
        turn.context.add_messages(map(dict, draft.progress.messages))
        calls = OpenCalls(draft.progress, turn.context, plan, self._clock.now_ms)
        refusal = self._refusal(turn.primary, plan)
        if refusal is not None:
            leave_lines(self._parts, self._lease, self._facts(turn.primary).payer, plan)
            ended: Ending | Parked | None = Ending(refusal)
        else:
            ended = await self._respond(draft, plan, calls)
        if isinstance(ended, Ending):
            for entry, result in calls.used_answers(self._inbox.entries):
                turn.consume_result(entry, result)
        return ended

    def _plan(self, turn: Turn, left: Sequence[Left]) -> Plan:
        """Work out settings, models and tools by what the message asks for; tell the context."""
        planner, settings = self._parts.planner, self._loaded.settings
        plan = planner.plan_of(turn.primary.message, settings)
        plan = with_models(plan, self._parts.services.models_of(plan.settings), left)
        if plan.reply is not None:
            planner.checker.expect(plan.reply)  # while the model is at work
        choice = plan.settings.tool_choice
        turn.context.set_tools(plan.tools or NOT_GIVEN)
        turn.context.set_tool_choice(choice if choice is not None else NOT_GIVEN)
        turn.context.system_prompt = plan.settings.system_prompt
        self._clock.budget_s = self._parts.budget_s(plan)
        return plan

    def _refusal(self, primary: ConsumedEntry, plan: Plan) -> TurnFailed | None:
        """Return why this turn is not attempted (again), if so."""
        loaded = self._loaded
        why = plan.problem
        if why is None and loaded.crashes >= self._settings.max_crashes:
            why = ("crashed", f"{loaded.crashes} attempts ended without a word")
        if why is None and self._clock.left_ms(primary) < 0:
            why = ("deadline_exceeded", "the producer's deadline has passed")
        if why is None and loaded.attempt > 1:
            why = given_up(self._ledger, primary.turn_id, self._settings)
        return None if why is None else self._failed(primary, *why)

    async def _respond(self, draft: Draft, plan: Plan, calls: OpenCalls) -> Ending | Parked | None:
        """Have the model answer, unless that has to wait; None if the turn was rolled back."""
        if (stop := self._inbox.pending_control("interrupt")) is not None:
            leave_lines(self._parts, self._lease, self._facts(draft.turn.primary).payer, plan)
            return await self._interrupted(draft, stop, None)
        calls.find_answers(self._inbox.entries)
        if not calls.can_go_on:
            return self._wait_for_result(draft.turn.primary, calls)
        chosen = await choose(self._parts, self._lease, plan, draft.progress)
        if chosen.wait_s:
            what = "provider_unavailable", "the provider is failing"
            waiting = self._wait(draft, chosen.wait_s, *what)
            return waiting if isinstance(waiting, Parked) else Ending(waiting)
        payer = self._facts(draft.turn.primary).payer
        room = partial(find_room, self._parts, self._lease, payer, draft.turn.context)
        chosen, grants, wait_s = await room(chosen, progress=draft.progress, asks=not calls.open)
        if wait_s:
            return self._wait_for_limit(draft, wait_s, grants)
        plan = chosen.plan
        self._clock.budget_s = self._parts.budget_s(plan)
        if grants.waited:
            self._observer.waited(grants.waits_for)
        failure: Retryable | Terminal | None = None
        log = self._open_log(draft, plan, grants)
        attempt = Attempt(self._parts, self._lease, self._inbox, plan, calls, log, draft.assistant)
        try:
            async with attempt:
                await attempt.run()
        except (Retryable, Terminal) as error:
            # Its frames hold the task that holds it, and megabytes of a reply: they would stay
            # until a collection, while turns after turns fail.
            error.__traceback__ = None
            failure = error
            if isinstance(error, RateLimited):
                grants.refused(error)
        finally:
            grants.close()
        await note_health(self._parts, chosen.provider, self._lease, plan, failure)
        return await self._conclude(draft, attempt, failure)

    def _open_log(self, draft: Draft, plan: Plan, grants: Grants) -> AttemptLog:
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
            grants=grants,
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
            following = fall_back(failure, attempt, draft.progress.left)
            outcome = self._after(failure, draft, following)
            if isinstance(outcome, Parked):
                await log.save_abandoned(following.left if following is not None else ())
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

    def _after(
        self, failure: Retryable | Terminal, draft: Draft, following: FallBack | None
    ) -> TurnFailed | Parked:
        """Fail, or try again later: without a slot, within the turn's budget."""
        primary, at_once = draft.turn.primary, following is not None and following.at_once
        if isinstance(failure, Terminal) and following is None:
            return self._failed(primary, failure.code, str(failure))
        why = given_up(self._ledger, primary.turn_id, self._settings, None if at_once else failure)
        if why is not None:
            return self._failed(primary, *why)
        wait_s = 0.0 if at_once else backoff_s(self._loaded.attempt, failure.retry_after_s)
        return self._wait(draft, wait_s, failure.code, str(failure))

    def _wait(self, draft: Draft, wait_s: float, code: str, text: str) -> TurnFailed | Parked:
        """Wait without a slot; fail where that would outlast the turn's budget or deadline."""
        primary, clock = draft.turn.primary, self._clock
        in_budget = clock.is_in_budget(wait_s, of_attempt=bool(draft.progress.deadlines))
        if not in_budget or clock.left_ms(primary) < wait_s * 1000:
            return self._failed(primary, code, text)
        self._observer.retrying(code, wait_s)
        # An interrupt that nobody has looked at yet ends the wait.
        return Parked(max(1, int(wait_s * 1000)), "backoff", self._inbox.last)

    def _wait_for_limit(self, draft: Draft, wait_s: float, grants: Grants) -> Ending | Parked:
        """Wait without a slot for what the provider allows: that takes nothing of the budget."""
        primary = draft.turn.primary
        if self._clock.left_ms(primary) < wait_s * 1000:
            grants.leave()
            text = "no call is allowed before the producer's deadline"
            return Ending(self._failed(primary, "deadline_exceeded", text))
        self._observer.retrying(grants.waits_for, wait_s)
        made = self._ledger.has_calls_of(self._loaded.attempt)  # it was rolled back, and counts
        defer_ms = max(1, int((wait_s if made else grants.looks_s(wait_s)) * 1000) - _AHEAD_MS)
        return Parked(defer_ms, "backoff" if made else "limit", self._inbox.last)

    def _wait_for_result(self, primary: ConsumedEntry, calls: OpenCalls) -> Parked:
        """Wait without a slot for what others have to say."""
        defer_ms = min(calls.defer_ms, max(1, self._clock.left_ms(primary)))
        return Parked(int(defer_ms), "input", self._inbox.last)

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
            "text": text_of(self._messages(turn)),
            "citations": citations_of(self._messages(turn)),
            "usage": self._ledger.usage,
            "usage_state": self._ledger.usage_state,
            "model": self._ledger.kept[-1].model if self._ledger.kept else "",
        }

    def _ids(self, primary: ConsumedEntry) -> dict[str, Any]:
        assert primary.message is not None
        return {**self._facts(primary).ids, "metadata": primary.message.metadata}

    def _facts(self, owner: ConsumedEntry) -> TurnFacts:
        if self._known is None or self._known.turn_id != owner.turn_id:
            attempt = (owner.turn_id, self._loaded.attempt, owner.trace)
            payer = payer_of(owner.message, self._loaded.settings)
            self._known = TurnFacts(self._lease.conversation_id, *attempt, payer)
        return self._known

    @staticmethod
    def _messages(turn: Turn) -> Sequence[Message]:
        """Return the messages of a turn, of which none was loaded."""
        return turn.context.messages if turn.context_replaced else turn.context.own_messages

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
            await records_of_rated(self._parts.store, self._lease, turn.used),
            shard=self._parts.shard,
            worker=self._settings.worker_name,
            now_ms=self._clock.now_ms(),
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
