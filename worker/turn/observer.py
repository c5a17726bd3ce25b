"""What whoever watches turns learns. Plain calls: they take no time and never fail."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from turnline.contracts.conversation import ConversationSettings
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.lease import Lease
from turnline.worker.outcome import Outcome
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.turn.gathering import ConsumedEntry


class AttemptObserver:
    """Watches one attempt at one turn; what a subclass does not override does nothing."""

    def collected(self, used: Sequence[ConsumedEntry], owner: ConsumedEntry) -> None:
        """The inbox entries that make the turn are known; again after a rollback.

        Args:
            used: In their order.
            owner: The one that carries the reply; the first, if none is wanted.
        """

    def call_started(
        self, call: LLMCall, context: OpenAILLMContext, settings: ConversationSettings
    ) -> None:
        """A request is about to be sent; the settings are those it was made by."""

    def on_text(self, text: str) -> None:
        """The model said something."""

    def call_finished(self, call: LLMCall) -> None:
        """A call is over, in whatever way."""

    def tool_started(self, call_id: str, name: str, arguments: Any) -> None:
        """A function that the model calls begins to run."""

    def tool_finished(self, call_id: str, result: Any, failure: str | None) -> None:
        """A function has its result; `failure` says why it is only an error, None on success."""

    def traceparent(self, call_id: str) -> str:  # noqa: ARG002  a subclass's
        """Return the W3C trace context of a function call; empty, if calls are not traced."""
        return ""

    def tool_runs(self, call_id: str) -> AbstractContextManager[None]:  # noqa: ARG002  a subclass's
        """Hold while a function runs, in the task in which it does."""
        return nullcontext()

    def waited(self, what: str) -> None:
        """The turn waited for this before it was attempted."""

    def retrying(self, code: str, wait_s: float) -> None:
        """The attempt is given up; another one is made after a while."""

    def committing(self) -> None:
        """The commit is about to be sent."""

    def committed(self, effects: Effects, outcome: str) -> None:
        """The commit was answered: `committed`, `released` or `duplicate`."""

    def ended(self, outcome: Outcome | BaseException) -> None:
        """The attempt is over: called once, last."""


class Observer(Protocol):
    """Watches a worker's turns."""

    def attempt(
        self, lease: Lease, loaded: ConversationSnapshot, *, began_at_s: float, loaded_at_s: float
    ) -> AttemptObserver:
        """Watch an attempt.

        Args:
            lease: Under which it is made.
            loaded: The conversation as it begins, just fetched.
            began_at_s: On the clock `time.monotonic`, as all here; the conversation was asked for
                then.
            loaded_at_s: And was there then.
        """
        ...


class Unobserved(AttemptObserver):
    """Nobody watches. Is both kinds of observer."""

    def attempt(
        self,
        lease: Lease,  # noqa: ARG002  the port's
        loaded: ConversationSnapshot,  # noqa: ARG002  the port's
        *,
        began_at_s: float,  # noqa: ARG002  the port's
        loaded_at_s: float,  # noqa: ARG002  the port's
    ) -> AttemptObserver:
        """Return this."""
        return self
