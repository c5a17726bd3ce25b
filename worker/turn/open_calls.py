"""Tool calls of a turn that have no result yet, and what bounds them; no I/O."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from turnline.contracts.messages import ToolResult
from turnline.worker.effects import Entry
from turnline.worker.errors import Terminal
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import FunctionCallFromLLM
from turnline.worker.pipeline.functions import function_call
from turnline.worker.turn.checkpoints import External, Finished, Progress
from turnline.worker.turn.plan import Plan

SAME_CALL_REFUSED: Final = 3
"""The third identical call in consecutive rounds is refused; the fourth fails the turn."""
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


class TooManyToolRounds(Terminal):
    """The model still wants tools in the last round that it has."""

    code = "too_many_tool_rounds"


class ToolLoop(Terminal):
    """The model makes the same call again and again, also after it was told."""

    code = "tool_loop"


class UnusableCalls(Terminal):
    """The model makes calls of which none can be run, also after it was told."""

    code = "unusable_calls"


class OpenCalls:
    """The calls of a turn's last response that have no result, and how many there were before."""

    def __init__(
        self,
        progress: Progress,
        context: OpenAILLMContext,
        plan: Plan,
        now_ms: Callable[[], int],
    ) -> None:
        """Go on where `progress` ends.

        Args:
            progress: What earlier attempts left; its messages stand in the context.
            context: That the model answers.
            plan: The turn's tools, and how they are bounded.
            now_ms: Redis' clock.
        """
        self._plan = plan
        self._now_ms = now_ms
        self.open: dict[str, FunctionCallFromLLM] = {}
        """By id, in the model's order."""
        self.deadlines = dict(progress.deadlines)
        """Calls of the turn that were sent out: id to deadline, Redis' clock, ms."""
        self.answers: dict[str, ToolResult] = {}
        """Results that came in for such calls."""
        self.refused: set[str] = set()
        """Calls that are not run, as they were made too often."""
        self.rounds = 0
        """Responses with calls."""
        self.wants_run = progress.wants_run
        """Whether a result of the last response wants the model to run."""
        self._answered = set(progress.answered)
        self._repeats: dict[tuple[str, bytes], int] = {}
        self._were_unusable = False
        """None of the calls of the last response could be run."""
        for message in progress.messages:
            if message.get("tool_calls"):
                calls = [
                    function_call(
                        it["function"]["name"], it["id"], it["function"]["arguments"], context
                    )
                    for it in message["tool_calls"]
                ]
                self._count(calls)
                self.open = {it.tool_call_id: it for it in calls}
        waiting = set(context.in_progress_ids()) if self.open else set[str]()
        self.open = {call_id: it for call_id, it in self.open.items() if call_id in waiting}
        self.inherited = {*self.open} - {*self.deadlines}
        """Calls that an earlier attempt may have run."""

    @property
    def unfinished(self) -> list[FunctionCallFromLLM]:
        """Calls of the last response that have no result."""
        return [*self.open.values()]

    @property
    def can_go_on(self) -> bool:
        """Whether something can be done before a message or a deadline comes."""
        return not self.open or any(
            it not in self.deadlines or it in self.answers or self.is_overdue(it)
            for it in self.open
        )

    @property
    def defer_ms(self) -> int:
        """Until the next deadline of a call without a result, at least 1."""
        return max(1, min(self.deadlines[it] for it in self.open) - self._now_ms())

    def is_overdue(self, call_id: str) -> bool:
        """Whether nobody has answered a call that was sent out in time."""
        return self._now_ms() >= self.deadlines[call_id]

    def raw_arguments(self, call_id: str) -> bytes:
        """Return the arguments of a call without a result, JSON."""
        return (self.open[call_id].raw_arguments or "{}").encode()

    def find_answers(self, entries: Iterable[Entry]) -> list[tuple[Entry, ToolResult]]:
        """Find the results of calls that were sent out; the first one of a call counts.

        Returns:
            Entries whose results were used, in this attempt or an earlier one, or can be.
        """
        found: dict[str, tuple[Entry, ToolResult]] = {}
        for entry in entries if self.deadlines else ():
            message = entry.message
            if isinstance(message, ToolResult) and message.call_id not in found:
                call_id = message.call_id
                if call_id in self._answered or (
                    call_id in self.open and call_id in self.deadlines
                ):
                    found[call_id] = (entry, message)
        self.answers = {call_id: message for call_id, (_, message) in found.items()}
        return [*found.values()]

    def used_answers(self, entries: Iterable[Entry]) -> list[tuple[Entry, ToolResult]]:
        """Return the results that have become part of the turn."""
        return [it for it in self.find_answers(entries) if it[1].call_id in self._answered]

    def begin(self, calls: Sequence[FunctionCallFromLLM]) -> None:
        """Note the calls of a new response.

        Raises:
            TooManyToolRounds: The turn fails.
            ToolLoop: The turn fails.
            UnusableCalls: The turn fails.
        """
        most = self._plan.limits.max_tool_rounds
        if self.rounds + 1 >= most:
            raise TooManyToolRounds(
                f"the model wants tools after {most} rounds, which is all that a turn has"
            )
        were_unusable = self._were_unusable
        self._count(calls)
        if self._were_unusable and were_unusable:
            raise UnusableCalls("no call of the response can be run, for the second time in a row")
        if max(self._repeats.values(), default=0) > SAME_CALL_REFUSED:
            raise ToolLoop("the model makes the same call again and again")
        self.open = {call.tool_call_id: call for call in calls}
        self.wants_run = False

    def _count(self, calls: Sequence[FunctionCallFromLLM]) -> None:
        """Count in how many rounds in a row each call was made, or none that can be run."""
        self.rounds += 1
        offered = self._plan.offered
        self._were_unusable = all(
            it.raw_arguments is None or it.function_name not in offered for it in calls
        )
        before, self._repeats = self._repeats, {}
        for call in calls:
            key = (call.function_name, _encode_sorted(call.arguments))
            self._repeats[key] = before.get(key, 0) + 1
            if self._repeats[key] == SAME_CALL_REFUSED:
                self.refused.add(call.tool_call_id)

    def finish(self, result: Finished) -> None:
        """Note a result that is safe."""
        self.open.pop(result.call_id, None)
        self.inherited.discard(result.call_id)
        if result.external:
            self._answered.add(result.call_id)
        self.wants_run = self.wants_run or result.wants_run

    def external(self, call_id: str, name: str) -> External:
        """Return a call to be sent out: until when it is to be answered."""
        wait_s = self._plan.offered.get(name) or self._plan.limits.wait_s
        return External(call_id, self._now_ms() + int(wait_s * 1000))

    def sent_out(self, call: External) -> None:
        """Note a call that others are to answer."""
        self.deadlines[call.call_id] = call.deadline_at_ms
        self.inherited.discard(call.call_id)
