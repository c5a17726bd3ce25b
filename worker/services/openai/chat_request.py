"""Builds the request of a chat completion; its sampling parameters, as pipecat has them."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from turnline.worker.pipeline.context import OpenAILLMContext, is_given
from turnline.worker.pipeline.tool_schemas import NOT_GIVEN, NotGiven
from turnline.worker.services.openai.sdk_client import of_sdk

if TYPE_CHECKING:
    from openai import NotGiven as OpenAINotGiven

log = logging.getLogger(__name__)

CHAT_PATH: Final = "/chat/completions"
_encode = msgspec.json.Encoder().encode

_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "seed": (0, float("inf")),
    "top_k": (0, float("inf")),
    "max_tokens": (1, float("inf")),
    "max_completion_tokens": (1, float("inf")),
}


_Number: TypeAlias = "float | NotGiven | OpenAINotGiven | None"
_Whole: TypeAlias = "int | NotGiven | OpenAINotGiven | None"


def sdk_value(value: Any) -> Any:
    """Return a value; where none was given, a constant: the SDK's own if somebody uses the SDK.

    Who compares with the SDK's, or hands it to the SDK, which knows no other, has imported it.
    """
    return value if is_given(value) else of_sdk("NOT_GIVEN", NOT_GIVEN)


@dataclasses.dataclass(init=False)
class OpenAIInputParams:
    """Sampling parameters. What is not given is left out of the request; None is sent as null.

    An unknown one is logged and ignored, unless a subclass declares it.
    """

    frequency_penalty: _Number = NOT_GIVEN
    """-2 to 2."""
    presence_penalty: _Number = NOT_GIVEN
    """-2 to 2."""
    seed: _Whole = NOT_GIVEN
    """0 or more."""
    temperature: _Number = NOT_GIVEN
    """0 to 2."""
    top_k: int | None = None
    """0 or more; accepted and never sent."""
    top_p: _Number = NOT_GIVEN
    """0 to 1."""
    max_tokens: _Whole = NOT_GIVEN
    """1 or more."""
    max_completion_tokens: _Whole = NOT_GIVEN
    """1 or more."""
    extra: Mapping[str, Any] | None = dataclasses.field(default_factory=dict[str, Any])
    """Merged into the request last; replaces anything."""

    def __init__(
        self,
        *,
        frequency_penalty: _Number = NOT_GIVEN,
        presence_penalty: _Number = NOT_GIVEN,
        seed: _Whole = NOT_GIVEN,
        temperature: _Number = NOT_GIVEN,
        top_k: int | None = None,
        top_p: _Number = NOT_GIVEN,
        max_tokens: _Whole = NOT_GIVEN,
        max_completion_tokens: _Whole = NOT_GIVEN,
        extra: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Take parameters.

        Raises:
            ValueError: A number is out of its range, or a parameter has the wrong type.
        """
        self.frequency_penalty = sdk_value(frequency_penalty)
        self.presence_penalty = sdk_value(presence_penalty)
        self.seed = sdk_value(seed)
        self.temperature = sdk_value(temperature)
        self.top_k = top_k
        self.top_p = sdk_value(top_p)
        self.max_tokens = sdk_value(max_tokens)
        self.max_completion_tokens = sdk_value(max_completion_tokens)
        self.extra = {} if extra is None else extra
        for name, value in more.items():
            if any(name in inspect.get_annotations(cls) for cls in type(self).__mro__):
                setattr(self, name, value)
            else:
                log.warning("llm.unknown_parameter", extra={"parameter": name})
        self._check()

    def _check(self) -> None:
        for name, (lowest, highest) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None or not is_given(value):
                continue
            whole = name in {"seed", "top_k", "max_tokens", "max_completion_tokens"}
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"{name}: a {'whole ' if whole else ''}number")  # noqa: TRY004
            if not lowest <= value <= highest:
                raise ValueError(f"{name}: {lowest:g} to {highest:g}")


SENT_PARAMETERS: Final = (
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
)
_DEFAULT_PARAMS: Final = OpenAIInputParams()
SDK_OPTIONS: Final = frozenset({"extra_body", "extra_headers", "extra_query", "timeout"})
"""What `extra` may hold that is the SDK's business and no part of the request's body."""


def settings_of(params: OpenAIInputParams | None) -> dict[str, Any]:
    """Return the parameters that are sent, see `sdk_value` for one not given, and `extra`."""
    params = params or _DEFAULT_PARAMS
    settings = {name: sdk_value(getattr(params, name)) for name in SENT_PARAMETERS}
    return {**settings, "extra": dict(params.extra) if isinstance(params.extra, Mapping) else {}}


def chat_body(
    context: OpenAILLMContext,
    model: str,
    settings: Mapping[str, Any],
    remove_refused: Callable[[dict[str, Any]], None],
) -> bytes:
    """Return the request's body: the messages as they were stored, then all else.

    Args:
        context: What is answered.
        model: As the provider names it.
        settings: Parameters by name, and `extra`.
        remove_refused: Takes out of the fields what the model is known to refuse.
    """
    fields = chat_fields(model, settings, fields_of(context), remove_refused)
    if "messages" in fields:
        return _encode(fields)
    return b'{"messages":%b,%b' % (context.encoded_request_messages(), _encode(fields)[1:])


def fields_of(context: OpenAILLMContext) -> dict[str, Any]:
    """Return the fields of a request that a context gives beside its messages."""
    fields: dict[str, Any] = {}
    if is_given(context.tools) and context.tools is not None:
        fields["tools"] = context.tools
        if context.tool_choice is not None:
            fields["tool_choice"] = context.tool_choice
    return fields


def chat_fields(
    model: str,
    settings: Mapping[str, Any],
    in_context: Mapping[str, Any],
    remove_refused: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Return the fields of a request; `in_context` are those that the context gives."""
    fields: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **in_context,
        **{name: settings[name] for name in SENT_PARAMETERS},
        **settings["extra"],
    }
    fields = {name: value for name, value in fields.items() if is_given(value)}
    remove_refused(fields)
    return fields
