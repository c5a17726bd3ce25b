"""Requests of chat completions: their form, and refusals in xAI's order.

The order is: syntax, types, model, key, arguments, messages, length.
"""

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from turnline.ops.simulator.model import api_errors as errors
from turnline.ops.simulator.model.api_errors import PLAIN, ApiError, Refused, check_key, invalid
from turnline.ops.simulator.model.models import Catalogue, Model
from turnline.ops.simulator.model.prompt import (
    Asked,
    ChatMessage,
    CountedMessage,
    ToolFunction,
    counted,
    prompt_of,
)

MAX_TOOLS: Final = 128
_MEMORY_BYTES: Final = 64 * 1024 * 1024


class Tool(msgspec.Struct, frozen=True):
    """A tool of the request."""

    type: str = "function"
    function: ToolFunction | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """Whether the stream ends with a usage report."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """A schema that the answer has to fit."""

    name: str = "answer"
    schema: dict[str, object] | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form of the answer."""

    type: str = "text"
    json_schema: JsonSchema | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """The body of a chat completion. Unknown keys are ignored, as xAI does."""

    messages: list[Raw]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Tool] | None = None
    tool_choice: object = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    search_parameters: dict[str, object] | None = None
    deferred: bool | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    user: str | None = None
    n: int | None = None
    seed: int | None = None


class _Named(msgspec.Struct, frozen=True):
    name: str


class _NamedChoice(msgspec.Struct, frozen=True):
    """`tool_choice` that demands one function."""

    function: _Named


class BadMessage(ValueError):
    """A message of the request has the wrong types; the text names where."""


class MessageReader:
    """Decodes and counts messages; equal bytes are worked out once.

    Contexts grow at their end, so nearly all messages of a request have been read before.
    """

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(ChatMessage).decode
        self._known: OrderedDict[bytes, CountedMessage] = OrderedDict()
        self._bytes = 0

    def read(self, messages: Sequence[Raw]) -> list[CountedMessage]:
        """Read all messages of a request.

        Raises:
            BadMessage: One of them has the wrong types.
        """
        return [self._read(index, bytes(raw)) for index, raw in enumerate(messages)]

    def _read(self, index: int, raw: bytes) -> CountedMessage:
        known = self._known.get(raw)
        if known is not None:
            self._known.move_to_end(raw)
            return known
        try:
            read = self._known[raw] = counted(self._decode(raw))
        except msgspec.ValidationError as error:
            raise BadMessage(_place_first(str(error), f"messages[{index}]")) from None
        self._bytes += len(raw)
        while self._bytes > _MEMORY_BYTES and len(self._known) > 1:
            oldest, _ = self._known.popitem(last=False)
            self._bytes -= len(oldest)
        return read


def _place_first(error: str, prefix: str = "") -> str:
    """Turn msgspec's description of a wrong type round: place first, as xAI has it."""
    problem, _, path = error.partition(" - at `$")
    where = (prefix + path.rstrip("`")).lstrip(".")
    problem = problem[:1].lower() + problem[1:].replace("`", "")
    return f"{where}: invalid type: {problem}" if where else f"invalid type: {problem}"


class ChatRequests:
    """Reads requests for a catalogue of models and a set of keys."""

    def __init__(self, catalogue: Catalogue, api_keys: Sequence[str]) -> None:
        self._catalogue = catalogue
        self._api_keys = frozenset(api_keys)
        self._decode = msgspec.json.Decoder(ChatRequest).decode
        self._reader = MessageReader()

    def read(
        self, body: bytes, *, authorization: str | None, model: str | None, rng: random.Random
    ) -> Asked:
        """Accept a request or refuse it.

        Args:
            body: As received.
            authorization: The header.
            model: Stands in for the model of the body if given.
            rng: The randomness of the answer.

        Raises:
            Refused: With the error that xAI would give first.
        """
        request, messages = self._decoded(body)
        name = model or request.model or "latest"
        found = self._catalogue.resolve(name)
        if found is None:
            raise Refused(errors.model_not_found(name))
        check_key(authorization, self._api_keys)
        _check_arguments(request, found)
        functions = _functions(request)
        _check_messages(messages)
        prompt = prompt_of(messages, request.tools or (), found)
        if prompt.tokens > found.context_tokens:
            raise Refused(errors.context_too_long(found.context_tokens, prompt.tokens))
        options, stops = request.stream_options, request.stop or ()
        limit = request.max_completion_tokens
        return Asked(
            model=found,
            prompt=prompt,
            effort=request.reasoning_effort or found.default_effort,
            tools=functions,
            demanded=_demanded(request, functions),
            may_call=request.tool_choice != "none",
            schema=_schema(request.response_format),
            stops=[stops] if isinstance(stops, str) else stops,
            max_visible_tokens=request.max_tokens if limit is None else limit,
            stream=bool(request.stream),
            include_usage=options is not None and bool(options.include_usage),
            deferred=bool(request.deferred),
            priority=request.service_tier == "priority",
            rng=rng,
        )

    def _decoded(self, body: bytes) -> tuple[ChatRequest, list[CountedMessage]]:
        try:
            request = self._decode(body)
            return request, self._reader.read(request.messages)
        except msgspec.ValidationError as error:
            raise Refused(errors.undecodable(_place_first(str(error)))) from None
        except BadMessage as error:
            raise Refused(errors.undecodable(str(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            message = "Failed to parse the request body as JSON"
            raise Refused(ApiError(400, message, bare=PLAIN)) from None


def _check_arguments(request: ChatRequest, model: Model) -> None:
    if request.stream and request.deferred:
        raise Refused(errors.STREAM_AND_DEFERRED)
    if request.search_parameters is not None:
        raise Refused(errors.LIVE_SEARCH_GONE)
    for value, parameter in (
        (request.presence_penalty, "presencePenalty"),
        (request.frequency_penalty, "frequencyPenalty"),
        (request.logit_bias, "logitBias"),
    ):
        if value is not None:
            raise Refused(errors.unsupported(model.name, parameter))
    if request.stop and not model.takes_stop:
        raise Refused(errors.argument_unsupported("stop"))
    effort = request.reasoning_effort
    if effort is not None and not model.efforts:
        raise Refused(errors.unsupported(model.name, "reasoningEffort"))
    if effort is not None and effort not in model.efforts:
        raise Refused(invalid(f"This model does not support `reasoning_effort` value `{effort}`"))


def _functions(request: ChatRequest) -> list[ToolFunction]:
    """Return the functions of the tools.

    Raises:
        Refused: One of the tools is none that may be offered.
    """
    tools = request.tools or []
    if request.tool_choice is not None and not tools:
        raise Refused(errors.NO_TOOLS)
    if len(tools) > MAX_TOOLS:
        raise Refused(invalid(f"A maximum of {MAX_TOOLS} tools is allowed per request."))
    functions: list[ToolFunction] = []
    for tool in tools:
        function = tool.function
        if function is None or not function.name:
            raise Refused(errors.BAD_SCHEMA)
        if function.parameters and function.parameters.get("type", "object") != "object":
            raise Refused(
                invalid(
                    f"Invalid request content: The root of the schema of tool '{function.name}'"
                    " must be an object."
                )
            )
        functions.append(function)
    return functions


def _demanded(request: ChatRequest, functions: Sequence[ToolFunction]) -> ToolFunction | None:
    """Return the tool that `tool_choice` demands; an unknown choice is taken as auto."""
    if request.tool_choice == "required":
        return functions[0]
    try:
        name = msgspec.convert(request.tool_choice, _NamedChoice).function.name
    except msgspec.ValidationError:
        return None
    return next((it for it in functions if it.name == name), None)


def _schema(form: ResponseFormat | None) -> dict[str, object] | None:
    if form is None or form.type not in {"json_object", "json_schema"}:
        return None
    schema = form.json_schema.schema if form.json_schema is not None else None
    return schema or {"type": "object"}


def _check_messages(messages: Sequence[CountedMessage]) -> None:
    if not messages:
        raise Refused(invalid("Messages cannot be empty"))
    for message in (it.message for it in messages):
        if message.content is None or message.content == []:
            raise Refused(errors.NO_CONTENT)
        for call in message.tool_calls or ():
            try:
                msgspec.json.decode(call.function.arguments)
            except msgspec.DecodeError:
                raise Refused(
                    invalid(
                        f"The arguments to a tool_call with ID '{call.id}' are not a valid JSON"
                        " string"
                    )
                ) from None
