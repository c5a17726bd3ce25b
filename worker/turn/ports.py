"""What a conversation's driver is made of: ports to the adapters, and its settings."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from turnline.contracts.conversation import ConversationSettings
from turnline.contracts.keys import ShardKeys
from turnline.worker.effects import Committed, ConversationSnapshot, Copy, Effects, Entry
from turnline.worker.lease import Lease
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
)
from turnline.worker.pipeline.calls import CallObserver, LLMCall
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import (
    Frame,
    FunctionCallFromLLM,
)
from turnline.worker.pipeline.functions import FunctionRegistry
from turnline.worker.pipeline.processor import FrameDirection, FrameProcessor
from turnline.worker.turn.event_writer import EventSink
from turnline.worker.turn.observer import Observer
from turnline.worker.turn.plan import Planner


class Store(EventSink, Protocol):
    """What the driver asks of the store; see `turnline.worker.store.conversations`."""

    async def load(self, lease: Lease) -> ConversationSnapshot: ...  # noqa: D102
    async def more(self, lease: Lease, after: str) -> list[Entry]: ...  # noqa: D102
    async def shown(self, lease: Lease, after: str, turn_id: str) -> str: ...  # noqa: D102
    async def checkpoint(  # noqa: D102
        self, lease: Lease, known: int, steps: Sequence[bytes], copies: Sequence[Copy] = ()
    ) -> int: ...
    async def commit(  # noqa: D102
        self, lease: Lease, effects: Effects, *, go_on: bool
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

    @property
    def model_name(self) -> str: ...  # noqa: D102
    @property
    def calls(self) -> Sequence[LLMCall]: ...  # noqa: D102
    def link(self, processor: FrameProcessor) -> None: ...  # noqa: D102
    def unlink(self) -> None: ...  # noqa: D102
    def use_functions(self, functions: FunctionRegistry) -> None: ...  # noqa: D102
    async def process_frame(  # noqa: D102
        self, frame: Frame, direction: FrameDirection
    ) -> None: ...
    async def resume(  # noqa: D102
        self, context: OpenAILLMContext, calls: Sequence[FunctionCallFromLLM], *, answer: bool
    ) -> None: ...
    def create_context_aggregator(  # noqa: D102
        self,
        context: OpenAILLMContext,
        *,
        user_params: LLMUserAggregatorParams,
        assistant_params: LLMAssistantAggregatorParams,
    ) -> AggregatorPair: ...


ServiceFactory = Callable[[str, ConversationSettings, CallObserver], ModelService]
"""(conversation id, settings, observer) -> a service for one attempt at one turn."""


class DriverSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How conversations are run; see `turnline.worker.settings` for what each means."""

    worker_name: str
    provider: str = ""
    """Base URL; names the breakers, together with the model."""
    turn_quota: int = 16
    max_crashes: int = 3
    turn_budget_s: float = 600.0
    turn_attempts: int = 5
    turn_spend_tokens: int = 2_000_000
    aggregation_timeout_s: float = 0.5
    speech_timeout_s: float = 30.0
    coalesce_s: float = 0.02
    coalesce_bytes: int = 512


class Parts(NamedTuple):
    """What every turn of a shard is run with."""

    store: Store
    services: ServiceFactory
    breakers: Breakers
    shard: ShardKeys
    settings: DriverSettings
    observer: Observer
    planner: Planner
