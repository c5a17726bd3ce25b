"""The aggregators of a context, as the services make them."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMAssistantContextAggregator,
    LLMUserAggregatorParams,
    LLMUserContextAggregator,
)
from turnline.worker.pipeline.context import OpenAILLMContext

USER_PARAMS: Final = LLMUserAggregatorParams(aggregation_timeout=0.5)
ASSISTANT_PARAMS: Final = LLMAssistantAggregatorParams(expect_stripped_words=True)
"""Defaults as the seed spells them; aggregators copy what they are given."""


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class OpenAIUserContextAggregator(LLMUserContextAggregator):
    """The user aggregator."""


class OpenAIAssistantContextAggregator(LLMAssistantContextAggregator):
    """The assistant aggregator, on the process's clock unless another is given."""

    def __init__(
        self,
        context: OpenAILLMContext,
        *,
        params: LLMAssistantAggregatorParams | None = None,
        timestamp: Callable[[], str] = _utc_now,
        **kwargs: Any,
    ) -> None:
        """Collect into `context`; `timestamp` gives the time of day, ISO 8601, UTC."""
        super().__init__(context, params=params, timestamp=timestamp, **kwargs)


@dataclasses.dataclass
class OpenAIContextAggregatorPair:
    """The two aggregators of one context."""

    _user: OpenAIUserContextAggregator
    _assistant: OpenAIAssistantContextAggregator

    def user(self) -> OpenAIUserContextAggregator:
        """Return the user's, which stands before the service."""
        return self._user

    def assistant(self) -> OpenAIAssistantContextAggregator:
        """Return the assistant's, which stands after the service."""
        return self._assistant
