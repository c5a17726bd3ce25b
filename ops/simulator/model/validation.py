"""Refuses requests that xAI refuses, in its order: syntax, types, model, key, arguments."""

from collections.abc import Sequence
from typing import Final

import msgspec

from turnline.ops.simulator.model.error_bodies import (
    JSON,
    PLAIN,
    ApiError,
    argument_unsupported,
    bad_key,
    context_too_long,
    invalid,
    live_search_gone,
    model_not_found,
    no_credentials,
    undecodable,
    unsupported,
)
from turnline.ops.simulator.model.models import Catalogue, Model
from turnline.ops.simulator.model.prompt import (
    BadMessage,
    ChatRequest,
    MessageReader,
    Prompt,
    ReadMessage,
    Tool,
    place,
    prompt_of,
)

MAX_TOOLS: Final = 128


class Refused(Exception):
    """The request gets an error response."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A request that will be answered."""

    request: ChatRequest
    model: Model
    prompt: Prompt
    effort: str
    """Reasoning effort, asked for or the model's own."""

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools that the model may call."""
        return self.request.tools or ()

    @property
    def max_visible_tokens(self) -> int | None:
        """Limit of visible tokens; reasoning is not limited."""
        request = self.request
        if request.max_completion_tokens is not None:
            return request.max_completion_tokens
        return request.max_tokens


class Validator:
    """Checks chat requests against a catalogue and a set of keys."""

    def __init__(self, catalogue: Catalogue, api_keys: Sequence[str]) -> None:
        self._catalogue = catalogue
        self._api_keys = frozenset(api_keys)
        self._decode = msgspec.json.Decoder(ChatRequest).decode
        self._reader = MessageReader()

    def check(
        self, body: bytes, *, content_type: str, authorization: str | None, model: str | None = None
    ) -> Accepted:
        """Accept a request or refuse it.

        Args:
            body: As received.
            content_type: Of the body.
            authorization: The header.
            model: Stands in for the model of the body if given.

        Raises:
            Refused: With the error that xAI would give first.
        """
        if "json" not in content_type.lower():
            raise Refused(ApiError(status=415, message="", bare=""))
        request = self._decoded(body)
        messages = self._messages(request)
        name = model or request.model or "latest"
        found = self._catalogue.resolve(name)
        if found is None:
            raise Refused(model_not_found(name))
        self.check_key(authorization)
        _check_arguments(request, found)
        _check_messages(messages)
        prompt = prompt_of(messages, request.tools or (), found)
        if prompt.tokens > found.context_tokens:
            raise Refused(context_too_long(found.context_tokens, prompt.tokens))
        return Accepted(
            request=request,
            model=found,
            prompt=prompt,
            effort=request.reasoning_effort or found.default_effort,
        )

    def check_key(self, authorization: str | None) -> None:
        """Look at the key.

        Raises:
            Refused: There is none, or it is not let in.
        """
        if authorization is None:
            raise Refused(no_credentials())
        key = authorization.partition(" ")[2].strip()
        if not key or (self._api_keys and key not in self._api_keys):
            raise Refused(bad_key())

    def _decoded(self, body: bytes) -> ChatRequest:
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            raise Refused(undecodable(place(str(error)))) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refused(
                ApiError(
                    status=400,
                    message="Failed to parse the request body as JSON",
                    bare=PLAIN,
                )
            ) from None

    def _messages(self, request: ChatRequest) -> list[ReadMessage]:
        try:
            return self._reader.read(request.messages)
        except BadMessage as error:
            raise Refused(undecodable(str(error))) from None


def _check_arguments(request: ChatRequest, model: Model) -> None:
    if request.stream and request.deferred:
        message = "A request may either be streaming or deferred, but not both."
        raise Refused(ApiError(status=400, message=message, bare=JSON))
    if request.search_parameters is not None:
        raise Refused(live_search_gone())
    for value, parameter in (
        (request.presence_penalty, "presencePenalty"),
        (request.frequency_penalty, "frequencyPenalty"),
        (request.logit_bias, "logitBias"),
    ):
        if value is not None:
            raise Refused(unsupported(model.name, parameter))
    if request.stop and not model.takes_stop:
        raise Refused(argument_unsupported("stop"))
    _check_effort(request, model)
    _check_tools(request)


def _check_effort(request: ChatRequest, model: Model) -> None:
    effort = request.reasoning_effort
    if effort is None:
        return
    if not model.efforts:
        raise Refused(unsupported(model.name, "reasoningEffort"))
    if effort not in model.efforts:
        raise Refused(invalid(f"This model does not support `reasoning_effort` value `{effort}`"))


def _check_tools(request: ChatRequest) -> None:
    tools = request.tools or []
    if request.tool_choice is not None and not tools:
        raise Refused(invalid("A tool_choice was set on the request but no tools were specified."))
    if len(tools) > MAX_TOOLS:
        raise Refused(invalid(f"A maximum of {MAX_TOOLS} tools is allowed per request."))
    for tool in tools:
        function = tool.function
        if function is None or not function.name:
            raise Refused(invalid("Invalid request content: Invalid function schema."))
        if function.parameters and function.parameters.get("type", "object") != "object":
            raise Refused(
                invalid(
                    f"Invalid request content: The root of the schema of tool '{function.name}'"
                    " must be an object."
                )
            )


def _check_messages(messages: Sequence[ReadMessage]) -> None:
    if not messages:
        raise Refused(invalid("Messages cannot be empty"))
    for read in messages:
        message = read.message
        if message.content is None or message.content == []:
            raise Refused(
                invalid(
                    "Invalid request content: Each message must have at least one content element."
                )
            )
        for call in message.tool_calls or ():
            if not _is_json(call.function.arguments):
                raise Refused(
                    invalid(
                        f"The arguments to a tool_call with ID '{call.id}' are not a valid JSON"
                        " string"
                    )
                )


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
