"""What both wires do with a request that is well-formed: rate limits, what is said, its price."""

import random
import time
import zlib
from collections.abc import Mapping

import msgspec
from msgspec import UNSET

from turnline.ops.simulator.config import Pacing, Profile, ReasoningMode, SimulatorConfig
from turnline.ops.simulator.faults import catalogue
from turnline.ops.simulator.faults.scenario import Scenario
from turnline.ops.simulator.faults.stream_faults import USAGE
from turnline.ops.simulator.http.http1 import Request
from turnline.ops.simulator.model import content
from turnline.ops.simulator.model.answer import Answer
from turnline.ops.simulator.model.api_errors import MEDIA_TYPE, Refused
from turnline.ops.simulator.model.content import CONTENT
from turnline.ops.simulator.model.dialogues import Dialogues
from turnline.ops.simulator.model.prompt import Asked
from turnline.ops.simulator.model.rate_limits import RateLimiter
from turnline.ops.simulator.model.usage import Usage, usage
from turnline.ops.simulator.request_ledger import Entry


class Turn(msgspec.Struct, kw_only=True):
    """One request on its way through."""

    request: Request
    entry: Entry
    rng: random.Random
    model: str | None
    """Stands in for the body's model, which had scenarios behind it."""
    wishes: Mapping[str, list[Scenario]]
    """Scenarios by group."""

    @property
    def authorization(self) -> str | None:
        """The header of that name."""
        return self.request.headers.get("authorization")

    def wish(self, group: str, name: str) -> Scenario | None:
        """Return the first scenario of a name; None if it was not asked for."""
        return next((it for it in self.wishes[group] if it.name == name), None)

    def check_media_type(self) -> None:
        """Look at the content type.

        Raises:
            Refused: The body is not said to be JSON.
        """
        if "json" not in self.request.headers.get("content-type", "").lower():
            raise Refused(MEDIA_TYPE)


class Speaker:
    """Decides what is said and what it costs, whatever the wire."""

    def __init__(self, config: SimulatorConfig, dialogues: Dialogues | None) -> None:
        self._config = config
        self._dialogues = dialogues
        self._limiter = RateLimiter(config)
        self.limits_of = self._limiter.of
        """What is allowed of a model."""

    def admit(self, turn: Turn, asked: Asked) -> None:
        """Let a request in.

        Raises:
            Refused: A rate limit is reached.
        """
        turn.entry.model, turn.entry.stream = asked.model.name, asked.stream
        limited = self._limiter.admit(
            _key(turn), asked.model, asked.prompt.tokens, time.monotonic()
        )
        if limited is not None:
            raise Refused(limited)

    def answer(self, turn: Turn, asked: Asked, shown: ReasoningMode) -> Answer:
        """Return what is said.

        Args:
            turn: The request.
            asked: What it asks.
            shown: How much of the reasoning is seen if nobody wishes otherwise.
        """
        answer = content.compose(
            asked,
            conversation_id=turn.entry.conversation_id,
            dialogues=self._dialogues,
            profile=self._config.profile,
            reasoning=self._config.reasoning or shown,
        )
        for scenario in turn.wishes["content"]:
            answer = CONTENT[scenario.name].run(answer, scenario, asked)
        return content.limit(answer, asked)

    def price(self, turn: Turn, asked: Asked, answer: Answer, cached_tokens: int) -> Usage:
        """Count and price an answer, and take it off the rate limit."""
        counted = usage(
            asked.model,
            prompt_tokens=asked.prompt.tokens,
            completion_tokens=answer.completion_tokens,
            reasoning_tokens=answer.reasoning_tokens,
            cached_tokens=cached_tokens,
            image_tokens=asked.prompt.image_tokens,
            priority=asked.priority,
        )
        spent = counted.total_tokens - counted.prompt_tokens
        cost = counted.cost_in_usd_ticks
        self._limiter.spend(
            _key(turn), asked.model, spent, cost if isinstance(cost, int) else 0, time.monotonic()
        )
        if self._config.profile in {Profile.OCT2025, Profile.LEGACY2024}:
            counted = msgspec.structs.replace(counted, cost_in_usd_ticks=UNSET)
        return counted

    def spoil(self, turn: Turn, counted: Usage) -> Usage:
        """Let scenarios change the usage, and write it down."""
        for scenario in turn.wishes["usage"]:
            counted = USAGE[scenario.name].run(counted, scenario)
        turn.entry.usage = counted
        return counted

    def pacing(self, turn: Turn) -> Pacing:
        """Return the pace of this answer."""
        pacing = self._config.pacing
        for scenario in turn.wishes["control"]:
            if scenario.name == "pace":
                pacing = catalogue.pace(pacing, scenario)
        return pacing


def _key(turn: Turn) -> str:
    return str(zlib.crc32((turn.authorization or "").encode()))
