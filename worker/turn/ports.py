"""The ports of a turn to the adapters, and the settings by which turns are run."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from turnline.contracts.conversation import CallEntry, ConversationSettings
from turnline.contracts.replies import TurnRecord
from turnline.worker.effects import Committed, ConversationSnapshot, Copy, Effects, Entry
from turnline.worker.lease import Lease
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
)
from turnline.worker.pipeline.calls import CallObserver
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import Frame, FunctionCallFromLLM
from turnline.worker.pipeline.functions import FunctionRegistry
from turnline.worker.pipeline.processor import FrameDirection, FrameProcessor
from turnline.worker.pool import Member
from turnline.worker.turn.kept_reasoning import REASONING_MAX_BYTES


class Store(Protocol):
    """What a turn asks of the store; see `turnline.worker.store.conversations`."""

    async def load(self, lease: Lease) -> ConversationSnapshot: ...  # noqa: D102
    async def more(self, lease: Lease, after: str) -> list[Entry]: ...  # noqa: D102
    async def shown(self, lease: Lease, after: str, turn_id: str) -> str: ...  # noqa: D102
    async def records(  # noqa: D102
        self, lease: Lease, turn_ids: Sequence[str]
    ) -> Mapping[str, TurnRecord]: ...
    async def emit(  # noqa: D102
        self,
        lease: Lease,
        events: Sequence[bytes],
        *,
        head: str,
        batch: int,
        call: CallEntry | None = None,
    ) -> None: ...
    async def checkpoint(  # noqa: D102
        self, lease: Lease, known: int, steps: Sequence[bytes], copies: Sequence[Copy] = ()
    ) -> int: ...
    async def commit(  # noqa: D102
        self, lease: Lease, effects: Effects, *, keep_lease: bool
    ) -> Committed: ...


class Breakers(Protocol):
    """What the driver asks of the circuit breakers; see `turnline.worker.store.breakers`."""

    async def wait_s(self, name: str, conversation_id: str) -> float: ...  # noqa: D102
    async def succeeded(self, name: str) -> None: ...  # noqa: D102
    async def failed(self, name: str, conversation_id: str) -> None: ...  # noqa: D102


class AggregatorPair(Protocol):
    """What `create_context_aggregator` returns."""

    def user(self) -> LLMUserContextAggregator: ...  # noqa: D102
    def assistant(self) -> LLMAssistantContextAggregator: ...  # noqa: D102


class ModelService(Protocol):
    """A Grok service as the driver uses it; see `turnline.worker.services.grok.llm`."""

    def link(self, processor: FrameProcessor) -> None: ...  # noqa: D102
    def unlink(self) -> None: ...  # noqa: D102
    def use_functions(self, functions: FunctionRegistry) -> None: ...  # noqa: D102
    async def process_frame(  # noqa: D102
        self, frame: Frame, direction: FrameDirection
    ) -> None: ...
    async def resume(  # noqa: D102
        self, context: OpenAILLMContext, calls: Sequence[FunctionCallFromLLM], *, answer: bool
    ) -> None: ...


class Services(Protocol):
    """Makes what talks to the model; see `turnline.worker.main.GrokServices`."""

    def create_context_aggregator(  # noqa: D102
        self,
        context: OpenAILLMContext,
        *,
        user_params: LLMUserAggregatorParams,
        assistant_params: LLMAssistantAggregatorParams,
    ) -> AggregatorPair: ...
    def models_of(self, settings: ConversationSettings) -> tuple[str, ...]:
        """Return the names of the models that a conversation may talk to, in order."""
        ...

    def budget_s(self, settings: ConversationSettings) -> float:
        """Return how long a turn with these settings may take, where nobody says, seconds."""
        ...

    def __call__(
        self,
        conversation_id: str,
        settings: ConversationSettings,
        observer: CallObserver,
        *,
        budget_s: float,
        member: Member,
    ) -> ModelService:
        """Return a service for one attempt at one turn, none of whose calls takes longer."""
        ...


class DriverSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How conversations are run; see `turnline.worker.settings` for what each means."""

    worker_name: str
    turn_quota: int = 16
    max_crashes: int = 3
    turn_budget_s: float | None = None
    turn_attempts: int = 5
    turn_spend_tokens: int = 2_000_000
    aggregation_timeout_s: float = 0.5
    speech_timeout_s: float = 30.0
    coalesce_s: float = 0.02
    coalesce_bytes: int = 512
    reasoning_max_bytes: int = REASONING_MAX_BYTES
