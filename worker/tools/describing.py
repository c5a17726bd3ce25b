"""Reads a function as a tool: description from the docstring, JSON Schema from the annotations."""

import copy
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from contracts.conversation import FUNCTION_NAME_PATTERN, FunctionDefinition
from worker.tools.declaring import Tool, ToolContext

_SECTION = re.compile(
    r"^(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?|Source):", re.MULTILINE
)
_ARGUMENT = re.compile(r"^(\w+)(?: \([^)]*\))?: *(.*)$")
_NAME_MAX_CHARS = 64


class BadTool(Exception):
    """A function cannot be a tool; the text says why."""


class Described(NamedTuple):
    """A tool as the model and the worker see it."""

    definition: FunctionDefinition
    arguments: type[msgspec.Struct]
    """What the model's arguments are decoded into."""
    context_parameter: str | None
    """Name of the parameter that takes the `ToolContext`."""
    is_async: bool


def describe(tool: Tool[Any, Any]) -> Described:
    """Read a tool's function.

    Raises:
        BadTool: It cannot be a tool.
    """
    function, options = tool.function, tool.options
    if len(options.name) > _NAME_MAX_CHARS or not re.search(FUNCTION_NAME_PATTERN, options.name):
        raise BadTool("its name has to be 1 to 64 letters, digits, `_`, `.` or `-`")
    _check_numbers(tool)
    text, sections = _docstring(function)
    description = options.description or text
    if not description:
        raise BadTool("it has no docstring: the model would not know what it is for")
    fields, context_parameter = _fields(function)
    arguments = msgspec.defstruct(
        "Arguments", fields, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
    )
    parameters = _schema(arguments)
    for name, words in _argument_texts(sections).items():
        about = cast("dict[str, Any]", parameters["properties"]).get(name)
        if about is not None:
            about.setdefault("description", words)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  the bound method, to look at
    )
    definition = FunctionDefinition(
        name=options.name, description=description, parameters=parameters
    )
    return Described(definition, arguments, context_parameter, is_async)


def _check_numbers(tool: Tool[Any, Any]) -> None:
    options = tool.options
    if options.timeout_s is not None and options.timeout_s <= 0:
        raise BadTool("timeout_s has to be above 0")
    if options.max_concurrency is not None and options.max_concurrency < 1:
        raise BadTool("max_concurrency has to be at least 1")


def _fields(function: Callable[..., Any]) -> tuple[list[tuple[str, Any, Any]], str | None]:
    """Return (name, type, default) of each argument, and the parameter for the context."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise BadTool(f"its annotations cannot be read: {error}") from None
    fields: list[tuple[str, Any, Any]] = []
    context_parameter: str | None = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise BadTool(f"parameter *{parameter.name}: a model names each argument")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise BadTool(f"parameter {parameter.name}: it has to be possible to name it")
        if parameter.name not in hints:
            raise BadTool(f"parameter {parameter.name} has no annotation")
        kind = hints[parameter.name]
        if kind is ToolContext or typing.get_origin(kind) is ToolContext:
            context_parameter = parameter.name
        elif parameter.default is parameter.empty:
            fields.append((parameter.name, kind, msgspec.NODEFAULT))
        else:
            fields.append((parameter.name, kind, _default(parameter.default)))
    return fields, context_parameter


def _default(value: Any) -> Any:
    """Return a default that no two calls share."""
    if type(value) not in {list, dict, set, bytearray} or not value:
        return value
    return msgspec.field(default_factory=functools.partial(copy.deepcopy, value))


def _schema(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON Schema of the arguments, an object at its root."""
    try:
        (root,), components = msgspec.json.schema_components(
            [arguments], ref_template="#/$defs/{name}"
        )
    except (TypeError, ValueError) as error:
        raise BadTool(f"its annotations have no JSON Schema: {error}") from None
    parts = dict(components)
    name = cast("str", root["$ref"]).rpartition("/")[2]
    found = parts.pop(name)
    schema = {
        "type": "object",
        "properties": found["properties"],
        "required": found["required"],
        "additionalProperties": False,
    }
    return {**schema, "$defs": parts} if parts else schema


def _docstring(function: Callable[..., Any]) -> tuple[str, str]:
    """Return a docstring's description and its sections."""
    text = inspect.getdoc(function) or ""
    section = _SECTION.search(text)
    if section is None:
        return text.strip(), ""
    return text[: section.start()].strip(), text[section.start() :]


def _argument_texts(sections: str) -> Mapping[str, str]:
    """Read an `Args:` section in Google's style."""
    match = re.match(r"(?:Args|Arguments|Parameters):\n((?:[ \t]+.*\n?|\n)*)", sections)
    if match is None:
        return {}
    texts: dict[str, str] = {}
    name = ""
    lines = inspect.cleandoc(match[1]).splitlines()
    for line in lines:
        entry = _ARGUMENT.match(line)
        if entry is not None:
            name, texts[entry[1]] = entry[1], entry[2]
        elif name and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts
