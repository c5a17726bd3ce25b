"""Requests of `/v1/responses`: their form, and refusals in xAI's order.

The order is: syntax, types, model, key, arguments, tools, items, reasoning, length.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from turnline.ops.simulator.config import Profile, SimulatorConfig
from turnline.ops.simulator.model import api_errors as errors
from turnline.ops.simulator.model.api_errors import PLAIN, ApiError, Refused, check_key, invalid
from turnline.ops.simulator.model.models import Catalogue, Model
from turnline.ops.simulator.model.prompt import Asked, Prompt, prompt_of
from turnline.ops.simulator.responses import reasoning_blobs as blobs
from turnline.ops.simulator.responses.asked_items import (
    ItemReader,
    ReadItem,
    check_items,
    text_item,
)
from turnline.ops.simulator.responses.offered_tools import (
    Tools,
    check_schema,
    demanded,
    read_tools,
)
from turnline.ops.simulator.responses.reasoning_blobs import Kind
from turnline.ops.simulator.responses.stored_responses import Stored

ENCRYPTED: Final = "reasoning.encrypted_content"
NO_CITATIONS: Final = "no_inline_citations"
_XHIGH_IS_HIGH: Final = frozenset({"grok-4.5"})
"""Models that take the effort `xhigh` and do no more for it than for `high`."""
_LIMITS_VISIBLE_ONLY: Final = frozenset({"grok-4.3"})
"""Models whose `max_output_tokens` was seen not to count reasoning."""
_with: Final = msgspec.structs.replace


class Reasoning(msgspec.Struct, frozen=True):
    """How much the model is to think."""

    effort: str | None = None
    summary: str | None = None


class TextFormat(msgspec.Struct, frozen=True):
    """The form of the answer."""

    type: str = "text"
    name: str | None = None
    schema: dict[str, object] | None = None


class TextOptions(msgspec.Struct, frozen=True):
    """What is asked of the text of the answer."""

    format: TextFormat | None = None


class ResponseRequest(msgspec.Struct, frozen=True):
    """The body of a request. Unknown keys are ignored, as xAI does."""

    input: str | list[Raw]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    store: bool | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: object = None
    tools: list[dict[str, object]] | None = None
    text: TextOptions | None = None
    service_tier: str | None = None
    top_logprobs: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    search_parameters: dict[str, object] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A request that will be answered."""

    body: ResponseRequest
    asked: Asked
    tools: Tools
    items: Sequence[ReadItem]
    """All of the input, those of earlier responses that the server has included."""
    tokens: Sequence[int]
    """What each item counts."""
    profile: Profile
    owner: bytes
    """Who may open what is sealed in the answer."""
    format: Mapping[str, object]
    """The text's format as it is told again."""

    @property
    def unreadable(self) -> int:
        """Reasoning items that count nothing, since they have no sealed content."""
        pairs = zip(self.items, self.tokens, strict=True)
        return sum(item.type == "reasoning" and not counts for item, counts in pairs)

    def includes(self, name: str) -> bool:
        """Whether something is to be included in the answer."""
        return name in (self.body.include or ())


class ResponseRequests:
    """Reads requests for a catalogue of models and a set of keys."""

    def __init__(self, config: SimulatorConfig, catalogue: Catalogue, stored: Stored) -> None:
        self._catalogue = catalogue
        self._profile = config.profile
        self._api_keys = frozenset(config.api_keys)
        self._stored = stored
        self._decode = msgspec.json.Decoder(ResponseRequest).decode
        self.reader = ItemReader()

    def read(
        self,
        body: bytes,
        *,
        authorization: str | None,
        model: str | None,
        rng: random.Random,
        finds_ids: bool = True,
    ) -> Received:
        """Accept a request or refuse it.

        Args:
            body: As received.
            authorization: The header.
            model: Stands in for the model of the body if given.
            rng: The randomness of the answer.
            finds_ids: Whether reasoning without its sealed content is looked up by its id.

        Raises:
            Refused: With the error that xAI would give first.
        """
        request, items = self._decoded(body)
        name = model or request.model or "latest"
        found = self._catalogue.resolve(name)
        if found is None:
            raise Refused(errors.model_not_found(name))
        check_key(authorization, self._api_keys)
        effort = _checked_effort(request, found)
        _check_arguments(request, found)
        tools = read_tools(request.tools or ())
        function = demanded(request.tool_choice, tools)
        items = [*self._before(request), *items]
        check_items(items)
        owner = blobs.owner(authorization, found.name)
        tokens = [self._tokens(item, owner, finds_ids=finds_ids) for item in items]
        prompt = _prompt(items, tokens, request.tools or (), found)
        if prompt.tokens > found.context_tokens:
            raise Refused(errors.context_too_long(found.context_tokens, prompt.tokens))
        echoed, schema = _format(request)
        asked = _asked(request, tools, prompt, found, rng)
        return Received(
            body=request,
            asked=_with(asked, effort=effort, demanded=function, schema=schema),
            tools=tools,
            items=items,
            tokens=tokens,
            profile=self._profile,
            owner=owner,
            format=echoed,
        )

    def _decoded(self, body: bytes) -> tuple[ResponseRequest, list[ReadItem]]:
        try:
            request = self._decode(body)
        except msgspec.ValidationError as error:
            raise Refused(errors.undecodable(str(error).replace("`", ""))) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            message = "Failed to parse the request body as JSON"
            raise Refused(ApiError(400, message, bare=PLAIN)) from None
        given = request.input
        if isinstance(given, str):
            return request, [self.reader.read_one(text_item("user", given))]
        return request, self.reader.read(given)

    def _before(self, request: ResponseRequest) -> list[ReadItem]:
        """Return what stands before the input: instructions, or what the server has kept."""
        if request.previous_response_id is not None:
            if request.instructions is not None:
                message = "Argument not supported: instructions and previous_response_id together"
                raise Refused(ApiError(400, message, "400"))
            return list(self._stored.find(request.previous_response_id).items)
        if request.instructions is None:
            return []
        return [self.reader.read_one(text_item("system", request.instructions))]

    def _tokens(self, item: ReadItem, owner: bytes, *, finds_ids: bool) -> int:
        """Count an item, what is sealed in it included.

        Raises:
            Refused: The sealed content is not what was given out, or not to this caller.
        """
        if item.type == "compaction":
            sealed = blobs.unseal(item.blob or "", owner)
            if sealed is None or sealed.kind is not Kind.COMPACTION:
                raise Refused(errors.BAD_COMPACTION)
            return sealed.tokens
        if item.type != "reasoning":
            return item.tokens
        if not item.blob:
            return self._stored.reasoning_tokens(item.id) if finds_ids else 0
        sealed = blobs.unseal_item(item.blob, owner)
        if sealed is None or sealed.kind is Kind.COMPACTION:
            raise Refused(errors.UNREADABLE)
        return sealed.tokens


def _asked(
    request: ResponseRequest, tools: Tools, prompt: Prompt, model: Model, rng: random.Random
) -> Asked:
    limits_visible = model.name in _LIMITS_VISIBLE_ONLY
    return Asked(
        model=model,
        prompt=prompt,
        effort="",
        tools=tools.functions,
        hosted=tools.hosted,
        demands_any=request.tool_choice == "required",
        cites_inline=NO_CITATIONS not in (request.include or ()),
        may_call=request.tool_choice != "none",
        max_visible_tokens=request.max_output_tokens if limits_visible else None,
        stream=bool(request.stream),
        include_usage=True,
        priority=request.service_tier == "priority",
        rng=rng,
    )


def _checked_effort(request: ResponseRequest, model: Model) -> str:
    effort = None if request.reasoning is None else request.reasoning.effort
    if effort is None:
        return model.default_effort
    if effort == "xhigh" and model.name in _XHIGH_IS_HIGH:
        return "high"
    if not model.efforts:
        raise Refused(errors.unsupported(model.name, "reasoningEffort"))
    if effort not in model.efforts:
        raise Refused(invalid(f"This model does not support `reasoning_effort` value `{effort}`"))
    return effort


def _check_arguments(request: ResponseRequest, model: Model) -> None:
    if request.search_parameters is not None:
        raise Refused(errors.LIVE_SEARCH_GONE)
    for value, parameter in (
        (request.presence_penalty, "presencePenalty"),
        (request.frequency_penalty, "frequencyPenalty"),
    ):
        if value is not None:
            raise Refused(errors.unsupported(model.name, parameter))
    for value, name, most in (
        (request.temperature, "temperature", 2),
        (request.top_p, "top_p", 1),
        (request.top_logprobs, "top_logprobs", 8),
    ):
        if value is not None and not 0 <= value <= most:
            raise Refused(invalid(f"{name} must be between 0 and {most}"))
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        raise Refused(invalid("max_output_tokens must be at least 1"))


def _format(request: ResponseRequest) -> tuple[Mapping[str, object], dict[str, object] | None]:
    """Return the format as it is told again, and the schema that the answer has to fit."""
    form = None if request.text is None else request.text.format
    if form is None or form.type not in {"json_object", "json_schema"}:
        return {"type": "text"}, None
    if form.type == "json_object":
        return {"type": form.type}, {"type": "object"}
    schema = form.schema or {"type": "object"}
    check_schema(schema)
    return {"type": form.type, "schema": schema}, schema


def _prompt(
    items: Sequence[ReadItem], tokens: Sequence[int], tools: Sequence[object], model: Model
) -> Prompt:
    messages = [item.message for item in items if item.message is not None]
    counted = prompt_of(messages, tools, model)
    all_tokens = model.hidden_tokens + counted.tool_tokens + sum(tokens)
    return msgspec.structs.replace(counted, tokens=all_tokens)
