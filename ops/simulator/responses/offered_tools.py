"""Tools of a request: flat functions and tools of the server, with what xAI refuses of each."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from turnline.ops.simulator.model import api_errors as errors
from turnline.ops.simulator.model import hosted_tools
from turnline.ops.simulator.model.api_errors import Refused, invalid, undecodable
from turnline.ops.simulator.model.prompt import HostedTool, ToolFunction

MAX_TOOLS: Final = 128
_MAX_STORES: Final = 10
_MAX_DOMAINS: Final = 5
_MAX_HANDLES: Final = 10
_NO_CHOICE: Final = "data did not match any variant of untagged enum ModelToolChoice"
_REFUSED_KEYS: Final[Mapping[str, Sequence[str]]] = {
    hosted_tools.WEB: ("search_context_size", "user_location", "external_web_access"),
    hosted_tools.CODE: ("container",),
    hosted_tools.FILES: ("ranking_options", "filters"),
}
_LIMITED: Final[Mapping[str, Mapping[str, int]]] = {
    hosted_tools.WEB: {"allowed_domains": _MAX_DOMAINS, "excluded_domains": _MAX_DOMAINS},
    hosted_tools.X: {"allowed_x_handles": _MAX_HANDLES, "excluded_x_handles": _MAX_HANDLES},
    hosted_tools.FILES: {"vector_store_ids": _MAX_STORES},
}
_REQUIRED: Final[Mapping[str, Sequence[str]]] = {
    hosted_tools.MCP: ("server_label", "server_url"),
    hosted_tools.FILES: ("vector_store_ids",),
}
Json = Mapping[str, Any]
_Never = Literal["nothing that a schema has"]


class Tools(msgspec.Struct, frozen=True):
    """What a request offers."""

    functions: list[ToolFunction] = []
    hosted: list[HostedTool] = []
    echoed: list[dict[str, object]] = []
    """As the response tells them again."""


class _Schema(msgspec.Struct, frozen=True, rename="camel"):
    """A JSON Schema as far as xAI limits it."""

    properties: dict[str, "_Schema"] = {}
    items: "_Schema | bool" = True
    enum: Annotated[list[object], msgspec.Meta(min_length=1)] | UnsetType = UNSET
    any_of: Annotated[list["_Schema"], msgspec.Meta(min_length=1)] | UnsetType = UNSET
    one_of: "list[_Schema]" = []
    all_of: "list[_Schema]" = []
    additional_properties: "_Schema | bool" = False
    min_contains: _Never | UnsetType = UNSET
    max_contains: _Never | UnsetType = UNSET
    defs: dict[str, "_Schema"] = msgspec.field(default_factory=dict[str, Any], name="$defs")


class _ServerOfTools(msgspec.Struct, frozen=True):
    """What of an MCP server has to be known."""

    server_label: str = ""
    allowed_tools: list[str] = []


class _NamedChoice(msgspec.Struct, frozen=True):
    """`tool_choice` that demands one function."""

    type: Literal["function"]
    name: str


def read_tools(given: Sequence[Json]) -> Tools:
    """Read the tools of a request.

    Raises:
        Refused: One of them is none that may be offered.
    """
    if len(given) > MAX_TOOLS:
        raise Refused(invalid(f"A maximum of {MAX_TOOLS} tools is allowed per request."))
    tools, names = Tools(), set[str]()
    for index, tool in enumerate(given):
        kind = tool.get("type")
        if kind == "function":
            function = _function(index, tool)
            if function.name in names or function.name in hosted_tools.TICKS:
                raise Refused(invalid(f"Duplicate tool name: {function.name}"))
            names.add(function.name)
            tools.functions.append(function)
            tools.echoed.append(_echoed(tool, function))
        elif kind in hosted_tools.TICKS:
            tools.hosted.append(_hosted(index, str(kind), tool))
            size = {"search_context_size": "medium"} if kind == hosted_tools.WEB else {}
            tools.echoed.append({"type": kind, **size, **tool})
        else:
            raise Refused(undecodable(f"tools[{index}].type: unknown variant `{kind}`"))
    return tools


def _function(index: int, tool: Json) -> ToolFunction:
    """Read a function; one that is nested, as in chat, has no name here."""
    if "name" not in tool:
        raise Refused(undecodable(f"tools[{index}]: missing field `name`"))
    try:
        function = msgspec.convert(tool, ToolFunction)
    except msgspec.ValidationError as error:
        raise Refused(undecodable(f"tools[{index}]: {error}")) from None
    if not function.name:
        raise Refused(errors.BAD_SCHEMA)
    schema = function.parameters or {}
    check_schema(schema)
    if not _is_object(schema):
        raise Refused(
            invalid(
                f"Invalid request content: The root of the schema of tool '{function.name}'"
                " must be an object."
            )
        )
    return function


def _echoed(tool: Json, function: ToolFunction) -> dict[str, object]:
    return {
        "type": "function",
        "description": function.description,
        "name": function.name,
        "parameters": tool.get("parameters"),
        "strict": False,
    }


def _is_object(schema: Json) -> bool:
    branches: Sequence[Json] = schema.get("anyOf") or schema.get("oneOf") or ()
    if branches and "type" not in schema:
        return all(branch.get("type") == "object" for branch in branches)
    return bool(schema.get("type", "object") == "object")


def _hosted(index: int, kind: str, tool: Json) -> HostedTool:
    for key in _REFUSED_KEYS.get(kind, ()):
        if tool.get(key) is not None:
            raise Refused(invalid(f"Argument not supported: {key}"))
    for key in _REQUIRED.get(kind, ()):
        if not tool.get(key):
            raise Refused(undecodable(f"tools[{index}]: missing field `{key}`"))
    limited = _LIMITED.get(kind, {})
    try:
        given = msgspec.convert({key: tool.get(key) or [] for key in limited}, dict[str, list[str]])
        read = msgspec.convert(tool, _ServerOfTools)
    except msgspec.ValidationError as error:
        raise Refused(undecodable(f"tools[{index}]: {error}")) from None
    for key, most in limited.items():
        if len(given[key]) > most:
            raise Refused(invalid(f"A maximum of {most} {key} is allowed."))
    if sum(map(bool, given.values())) > 1:
        raise Refused(invalid(f"Only one of {' and '.join(limited)} may be set."))
    return HostedTool(kind, read.server_label, read.allowed_tools)


def check_schema(schema: Json) -> None:
    """Refuse what xAI's JSON Schema does not know.

    Raises:
        Refused: A part of the schema is of that kind.
    """
    try:
        msgspec.convert(schema, _Schema)
    except msgspec.ValidationError:
        raise Refused(errors.BAD_SCHEMA) from None


def demanded(choice: object, tools: Tools) -> ToolFunction | None:
    """Return the function that `tool_choice` demands; None if the model may choose.

    Raises:
        Refused: The choice has another shape, or there is nothing to choose from.
    """
    if choice is None:
        return None
    if not tools.echoed:
        raise Refused(errors.NO_TOOLS)
    if choice in ("auto", "none"):
        return None
    if choice == "required":
        return tools.functions[0] if tools.functions else None
    try:
        name = msgspec.convert(choice, _NamedChoice).name
    except msgspec.ValidationError:
        raise Refused(undecodable(_NO_CHOICE)) from None
    found = next((it for it in tools.functions if it.name == name), None)
    if found is None:
        raise Refused(invalid(f"Tool choice '{name}' is not among the tools."))
    return found
