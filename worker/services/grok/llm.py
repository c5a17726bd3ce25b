"""Answers contexts with xAI's Grok, streaming."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from turnline.worker.errors import REASONING_REFUSED, ProviderRejected, WorkerError
from turnline.worker.pipeline.aggregators import (
    LLMAssistantAggregatorParams,
    LLMUserAggregatorParams,
)
from turnline.worker.pipeline.context import MessageAdapter, OpenAILLMContext
from turnline.worker.pipeline.frames import LLMTokenUsage
from turnline.worker.pipeline.reply_items import owned_by
from turnline.worker.pipeline.responses_stream import ResponsesStream
from turnline.worker.services.completion import Completion, UsageTally
from turnline.worker.services.grok.model_catalogue import BUILT_IN, GROK_BASE_URL, Catalogue
from turnline.worker.services.grok.responses_request import (
    RESPONSES_PATH,
    ResponsesOptions,
    Wire,
    responses_body,
)
from turnline.worker.services.llm_service import Run
from turnline.worker.services.openai.aggregator_pair import (
    ASSISTANT_PARAMS,
    USER_PARAMS,
    OpenAIContextAggregatorPair,
)
from turnline.worker.services.openai.chat_request import SDK_OPTIONS, chat_fields, fields_of
from turnline.worker.services.openai.llm import OpenAILLMService
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.services.transport import Parser

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)

_REFUSALS: Final = frozenset({200, 400, 422})
"""Statuses of answers that refuse a request for what is in it; 200: in a stream."""
_NO_OPTIONS: Final = ResponsesOptions()


class GrokContextAggregatorPair(OpenAIContextAggregatorPair):
    """The two aggregators of one context."""


class GrokMessages(MessageAdapter):
    """Gives messages the form that xAI takes.

    xAI refuses a `name` on any message but a user's, and a message without content; an assistant
    message that only calls tools gets a single space.
    """

    def encode_message(self, message: Mapping[str, Any]) -> bytes:
        """Return the message as compact JSON. The same message always gives the same bytes."""
        role = message.get("role")
        if "name" in message and role != "user":
            message = {key: value for key, value in message.items() if key != "name"}
        if role == "assistant" and not message.get("content"):
            message = {**message, "content": " "}
        return super().encode_message(message)


_GROK_MESSAGES: Final = GrokMessages()


class GrokUsageTally(UsageTally):
    """The seed's rule for xAI's running counts: first prompt, largest completion."""

    def __init__(self) -> None:
        """Begin with nothing reported."""
        super().__init__()
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def add(self, tokens: LLMTokenUsage) -> None:
        """Keep the first prompt above zero and the largest completion."""
        super().add(tokens)
        if not self._prompt_tokens:
            self._prompt_tokens = max(0, tokens.prompt_tokens)
        self._completion_tokens = max(self._completion_tokens, tokens.completion_tokens)

    def total(self) -> LLMTokenUsage | None:
        """Return both and their sum; None if both are zero."""
        if self._last is None or not (self._prompt_tokens or self._completion_tokens):
            return None
        return LLMTokenUsage(
            self._prompt_tokens,
            self._completion_tokens,
            self._prompt_tokens + self._completion_tokens,
            cache_read_input_tokens=self._last.cache_read_input_tokens,
            reasoning_tokens=self._last.reasoning_tokens,
        )


class GrokLLMService(OpenAILLMService):
    """Streams Grok's chat completions.

    Parameters that the model is known to refuse are left out, wherever they come from: xAI answers
    a penalty, even of 0, with an error. The seed's default model took all of them and gets them;
    a model nobody has heard of gets all but what every model of today refuses.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str = GROK_BASE_URL,
        model: str = "grok-3-beta",
        catalogue: Catalogue = BUILT_IN,
        wire: Wire = "chat",
        options: ResponsesOptions = _NO_OPTIONS,
        **kwargs: Any,
    ) -> None:
        """Prepare a service; nothing is sent.

        Args:
            api_key: xAI's key. Never taken from the environment.
            base_url: xAI's address.
            model: The seed's default is no longer served by xAI; name one that is.
            catalogue: What the models take.
            wire: "responses" sends and keeps what the model's reasoning leaves behind; xAI
                recommends it. "chat" is what the seed speaks, and a subclass that changes how a
                request of chat is made.
            options: What the wire "responses" has beside the parameters of chat.
            **kwargs: As `OpenAILLMService` takes them.

        Raises:
            ValueError: `api_key` is missing or empty, or there is no such wire.
        """
        if wire not in {"chat", "responses"}:
            raise ValueError(f"there is no wire {wire!r}: chat or responses")
        super().__init__(api_key=api_key, base_url=base_url, model=model, **kwargs)
        self._catalogue = catalogue
        self._wire = wire
        self._options = options
        self.shows_thoughts = options.summary

    def create_client(
        self, api_key: str | None = None, base_url: str | None = None, **kwargs: Any
    ) -> "AsyncOpenAI":
        """Make the SDK's client for xAI; see `OpenAILLMService.create_client`."""
        log.debug("grok.create_client")
        return super().create_client(api_key, base_url or GROK_BASE_URL, **kwargs)

    _own_create_client = create_client

    def _provider_client(self, base_url: str | None, **given: Any) -> ProviderClient:
        return ProviderClient(base_url=base_url or GROK_BASE_URL, **given)

    async def start_llm_usage_metrics(self, tokens: LLMTokenUsage) -> None:
        """Take note of a usage report of the running completion; ignored outside of one.

        xAI may repeat running counts on every chunk. Of one completion the first prompt above zero
        and the largest completion are kept; their sum is the total, reported once at the end.
        """
        if self._current_run() is not None:
            await super().start_llm_usage_metrics(tokens)

    def create_context_aggregator(
        self,
        context: OpenAILLMContext,
        *,
        user_params: LLMUserAggregatorParams = USER_PARAMS,
        assistant_params: LLMAssistantAggregatorParams = ASSISTANT_PARAMS,
    ) -> GrokContextAggregatorPair:
        """Make the aggregators that stand before and after this service.

        Args:
            context: Shared by both.
            user_params: The aggregator keeps a copy; nothing is shared with other pairs.
            assistant_params: Likewise.
        """
        pair = super().create_context_aggregator(
            context, user_params=user_params, assistant_params=assistant_params
        )
        return GrokContextAggregatorPair(pair.user(), pair.assistant())

    def _new_tally(self) -> UsageTally:
        return GrokUsageTally()

    def get_llm_adapter(self) -> MessageAdapter:
        """Return what gives messages the form that xAI takes."""
        return _GROK_MESSAGES

    def _remove_refused(self, fields: dict[str, Any]) -> None:
        takes = self._catalogue.nearest(str(fields.get("model", "")))
        refused = {"search_parameters"}
        if not takes.penalties:
            refused |= {"frequency_penalty", "presence_penalty", "logit_bias"}
        if not takes.stop:
            refused.add("stop")
        if "reasoning_effort" in fields:
            effort = takes.nearest_effort(fields["reasoning_effort"])
            if effort is None:
                refused.add("reasoning_effort")
            else:
                fields["reasoning_effort"] = effort
        if "tools" not in fields:
            refused.add("tool_choice")
        for name in refused.intersection(fields):
            log.debug("grok.parameter_left_out", extra={"parameter": name})
            del fields[name]

    def _request(self, context: OpenAILLMContext) -> tuple[str, bytes, Parser]:
        if self._wire == "chat":
            return super()._request(context)
        fields = chat_fields(self._model, self._settings, fields_of(context), self._remove_refused)
        body = responses_body(
            context,
            fields,
            self._options,
            effort=fields.get("reasoning_effort") or self._default_effort(),
            thinks=self._catalogue.nearest(self._model).reasons is not False,
            is_same=owned_by(self._options.owner, partial(self._catalogue.is_same, self._model)),
        )
        return RESPONSES_PATH, body, ResponsesStream()

    def _default_effort(self) -> str | None:
        """Return the effort to ask for by name, so that no change of a default goes unseen."""
        model = self._catalogue.find(self._model)
        return model.default_effort if model is not None and model.efforts else None

    async def _make_call(self, context: OpenAILLMContext, run: Run) -> Completion:
        """Make a call; where earlier reasoning is refused, once more without it."""
        try:
            return await super()._make_call(context, run)
        except ProviderRejected as error:
            if error.code == "not_found" and self._wire == "responses":
                raise ProviderRejected(
                    f"{error}; a host without /responses is spoken to by chat (TURNLINE_WIRE=chat)",
                    code=error.code,
                    status=error.status,
                ) from None
            refused = self._code_of(error, run) == REASONING_REFUSED and not _has_begun(run)
            if not refused or not context.drop_reply_items():
                raise
            log.warning("grok.reasoning_refused", extra={"model": self._model, "code": error.code})
        return await super()._make_call(context, run)

    def _code_of(self, error: WorkerError, run: Run) -> str:
        """As in the base; a request that is refused for no known reason may be for its reasoning.

        Providers have many words for that, and a turn that fails would send it again and again.
        """
        is_unknown = error.code == "bad_request" and error.status in _REFUSALS
        is_suspect = is_unknown and self._wire == "responses" and not _has_begun(run)
        return REASONING_REFUSED if is_suspect and run.context.has_reply_items else error.code

    async def _stream_by_sdk(
        self, context: OpenAILLMContext, completion: Completion, run: Run
    ) -> None:
        """Push the text of a response that the SDK reads, over the wire that is asked for."""
        if self._wire == "chat" or self._changes_chat():
            await super()._stream_by_sdk(context, completion, run)
            return
        from turnline.worker.services.openai.sdk import (  # noqa: PLC0415  costly
            SdkStream,
            in_time,
            sdk_failures,
        )

        _, body, parser = self._request(context)
        completion.call.request_bytes, completion.body = len(body), body
        fields: dict[str, Any] = msgspec.json.decode(body)
        options: dict[str, Any] = {it: fields.pop(it) for it in SDK_OPTIONS & fields.keys()}
        first = {name: fields.pop(name) for name in ("model", "input", "stream")}
        options["extra_headers"] = {**self._extra_headers, **options.get("extra_headers", {})}
        options["extra_body"] = {**fields, **options.get("extra_body", {})}
        with sdk_failures():
            run.is_sent = True
            asking = self._client.responses.create(**first, **options)
            chunks = await in_time(asking, self._limits)
            stream = SdkStream(chunks, limits=self._limits, parser=parser)
            await self._read_sdk(stream, completion)


def _has_begun(run: Run) -> bool:
    return run.completion is not None and run.completion.has_content
