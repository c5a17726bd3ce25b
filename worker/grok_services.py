"""Makes the service for one attempt at one turn, by the settings of worker and conversation."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from turnline.contracts.conversation import ConversationSettings
from turnline.worker.pipeline.calls import CallObserver
from turnline.worker.pool import Member, Pool, ident_of
from turnline.worker.services.grok.llm import GrokLLMService
from turnline.worker.services.grok.model_catalogue import BUILT_IN, Model
from turnline.worker.services.grok.responses_request import ResponsesOptions
from turnline.worker.services.openai.llm import OpenAIInputParams
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.services.transport import TimeLimits
from turnline.worker.settings import Settings
from turnline.worker.telemetry.setup import TracedHeaders
from turnline.worker.turn.reply_format import request_format

_ALONE: Final = Member()
_SPEECH_S = 600.0
_THOUGHT_S = 1800.0
"""Seconds that a turn may take whose model does not think, and whose model does."""


class GrokServices:
    """Makes the service for one attempt at one turn, around one client per worker."""

    def __init__(self, settings: Settings) -> None:
        """Open a client; nothing is sent yet."""
        self._settings = settings
        self.catalogue = BUILT_IN
        """What is known of the models; at the start the provider is asked."""
        self._models = settings.models
        self.members = settings.members
        """Settings with the key and the address of each member of the pool."""
        self.pool = Pool(members_of(self.members))
        self.clients = [ProviderClient(it.api_key.value, it.base_url) for it in self.members]
        self.create_context_aggregator = self("", ConversationSettings()).create_context_aggregator
        """Needs no service of its own: nothing of a pair depends on a turn's settings."""

    def learn(self, listed: Sequence[Model]) -> None:
        """Take note of what the provider says of its models: it wins over what was known."""
        self.catalogue = BUILT_IN.updated(listed)

    def take_keys(self, members: Sequence[Settings]) -> None:
        """Use the keys of these from now on: as many as before, at the same addresses."""
        self.members = tuple(members)
        self.pool.replace(members_of(self.members))
        for client, member in zip(self.clients, members, strict=True):
            client.use_key(member.api_key.value)

    def models_of(self, settings: ConversationSettings) -> tuple[str, ...]:
        """Return the names of the models that a conversation may talk to, in order."""
        return (settings.model,) if settings.model else self._models

    def budget_s(self, settings: ConversationSettings) -> float:
        """Return how long a turn with these settings may take, where nobody says, seconds."""
        model = self.catalogue.nearest(self.models_of(settings)[0])
        return _THOUGHT_S if model.thinks(settings.reasoning_effort) else _SPEECH_S

    def __call__(
        self,
        conversation_id: str,
        settings: ConversationSettings,
        observer: CallObserver | None = None,
        *,
        budget_s: float = _THOUGHT_S,
        member: Member = _ALONE,
    ) -> GrokLLMService:
        """Return a service that talks as this conversation's settings say."""
        given = {
            name: value
            for name in ("temperature", "top_p", "max_tokens", "seed")
            if (value := getattr(settings, name)) is not None
        }
        extra: dict[str, Any] = {}
        if settings.reasoning_effort:
            extra["reasoning_effort"] = settings.reasoning_effort
        if settings.response_format is not None:
            extra["response_format"] = request_format(settings.response_format)
        headers: Mapping[str, str] = {"x-grok-conv-id": _header_value(conversation_id)}
        if self._settings.send_traceparent:
            headers = TracedHeaders(headers)
        return GrokLLMService(
            api_key=self.members[member.number].api_key.value,
            base_url=self.members[member.number].base_url,
            model=self.models_of(settings)[0],
            params=OpenAIInputParams(**given, extra=extra) if given or extra else None,
            client=self.clients[member.number],
            extra_headers=headers,
            observer=observer,
            limits=TimeLimits(
                silence_s=self._settings.silence_timeout_s,
                first_token_s=self._settings.first_token_timeout_s,
                idle_s=self._settings.idle_timeout_s,
                total_s=budget_s,
            ),
            catalogue=self.catalogue,
            wire=settings.wire or self._settings.wire,
            options=ResponsesOptions(
                cache_key=conversation_id,
                owner=member.owner,
                server_tools=msgspec.to_builtins(tools) if (tools := settings.server_tools) else (),
                max_output_tokens=settings.max_output_tokens,
                summary=bool(settings.reasoning_summary),
            ),
        )


def _header_value(conversation_id: str) -> str:
    """Return an id that HTTP headers can carry; ASCII ids stay as they are."""
    return conversation_id.encode("ascii", "backslashreplace").decode()


def members_of(settings: Sequence[Settings]) -> list[Member]:
    """Return the members of a pool with the key and address of each of these settings."""
    return [
        Member(
            it.base_url,
            number,
            f"{it.base_url} (key {number + 1})" if len(settings) > 1 else "",
            ident_of(it.base_url, it.api_key.value),
            server_of(it.base_url),
        )
        for number, it in enumerate(settings)
    ]


def server_of(base_url: str) -> tuple[str, int]:
    """Return host and port of an address."""
    where = urlsplit(base_url)
    return where.hostname or "", where.port or (80 if where.scheme == "http" else 443)
