"""Reads a function as a tool: description from the docstring, JSON Schema from the annotations."""

import copy
import functools
import inspect
import json
import keyword
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from turnline.contracts.conversation import FUNCTION_NAME_PATTERN, FunctionDefinition
from turnline.contracts.json_schemas import Schemas
from turnline.contracts.schema_bounds import BadSchema
from turnline.worker.tools.declaration import Tool, ToolContext, ToolOptions
from turnline.worker.tools.types import (
    BadTool,
    adapted,
    is_union,
    parts_of,
    readable,
    refuse_patterns,
    schema_of,
    without_patterns,
)

_SECTION = re.compile(
    r"^(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?|Source):", re.MULTILINE
)
_ARGUMENT = re.compile(r"^(\w+)(?: \([^)]*\))?: *(.*)$")
_NAME_MAX_CHARS = 64


class Described(NamedTuple):
    """A tool as the model and the worker see it."""

    definition: FunctionDefinition
    arguments: type[msgspec.Struct]
    """What the model's arguments are decoded into."""
    context_parameter: str | None
    """Name of the parameter that takes the `ToolContext`."""
    is_async: bool
    """Whether it is called in the event loop; what a thread gives back is awaited if it can be."""
    patterns: dict[str, Any] | None = None
    """Schema of the parameters with regular expressions, which decoding does not look at."""


def describe(tool: Tool[Any, Any]) -> Described:
    """Read a tool's function.

    Raises:
        BadTool: It cannot be a tool.
    """
    function, options = tool.function, tool.options
    if len(options.name) > _NAME_MAX_CHARS or not re.search(FUNCTION_NAME_PATTERN, options.name):
        raise BadTool("its name has to be 1 to 64 letters, digits, `_`, `.` or `-`")
    _check_numbers(tool)
    inner = innermost(function)
    _check_kind(function, inner)
    text, sections = _docstring(inner, function)
    description = options.description or text
    if not description:
        raise BadTool("it has no docstring: the model would not know what it is for")
    fields, context_parameter = _fields(function, inner)
    names = _names(fields, options)
    whole = _struct(fields, names)
    parameters = schema_of(whole, [(names[name], kind) for name, kind, _ in fields])
    stripped = [(name, without_patterns(kind), default) for name, kind, default in fields]
    arguments = _struct(stripped, names)
    kinds = [(names[name], kind) for name, kind, _ in stripped]
    refuse_patterns(schema_of(arguments, kinds, adapters=False))
    checked = {
        names[name]: parameters["properties"][names[name]]
        for (name, kind, _), (_, other, _) in zip(fields, stripped, strict=True)
        if kind is not other
    }
    for name, words in _argument_texts(sections).items():
        about = parameters["properties"].get(names.get(name, name))
        if about is not None:
            about.setdefault("description", words)
    try:
        Schemas().of_arguments(parameters)
    except BadSchema as error:
        raise BadTool(f"its parameters: {error}") from None
    definition = FunctionDefinition(
        name=options.name, description=description, parameters=parameters
    )
    patterns = None
    if checked:
        patterns = {"properties": checked, "$defs": parameters.get("$defs", {})}
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner)
    return Described(definition, arguments, context_parameter, is_async, patterns)


def innermost(function: Any) -> Any:
    """Return what annotations and docstring are read from: under partials, objects, decorators."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func  # pyright: ignore[reportUnknownMemberType]
        elif isinstance(function, staticmethod):
            function = cast("staticmethod[..., Any]", function).__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not inspect.isroutine(function) and not isinstance(function, type):
            function = type(function).__call__
        else:
            return function


def _struct(fields: Sequence[tuple[str, Any, Any]], names: dict[str, str]) -> type[msgspec.Struct]:
    """Return what arguments are decoded into."""
    try:
        arguments = msgspec.defstruct(
            "Arguments",
            fields,
            kw_only=True,
            forbid_unknown_fields=True,
            omit_defaults=True,
            rename=names,
        )
    except (TypeError, ValueError) as error:
        raise BadTool(f"its annotations cannot be decoded: {error}") from None
    try:
        msgspec.convert({}, arguments, dec_hook=adapted)
    except msgspec.ValidationError:
        pass  # arguments are missing; what matters is that the types can be decoded
    except (TypeError, ValueError) as error:
        raise BadTool(f"its annotations cannot be decoded: {error}") from None
    return arguments


def _check_kind(function: Any, inner: Any) -> None:
    for it in (function, inner):
        if inspect.isgeneratorfunction(it) or inspect.isasyncgenfunction(it):
            raise BadTool("it is a generator; a tool returns one value")
    if isinstance(function, type):
        raise BadTool("it is a class; a tool is a function, or an object that can be called")
    if isinstance(function, classmethod):
        raise BadTool("it is a class method, which cannot be called without its class")
    if not callable(function):
        raise BadTool("it cannot be called")


def _check_numbers(tool: Tool[Any, Any]) -> None:
    options = tool.options
    if options.timeout_s is not None and options.timeout_s <= 0:
        raise BadTool("timeout_s has to be above 0")
    if options.max_concurrency is not None and options.max_concurrency < 1:
        raise BadTool("max_concurrency has to be at least 1")


def _fields(function: Any, inner: Any) -> tuple[list[tuple[str, Any, Any]], str | None]:
    """Return (name, type, default) of each argument, and the parameter for the context."""
    try:
        hints = typing.get_type_hints(inner, include_extras=True)
        parameters = inspect.signature(function).parameters
    except (NameError, TypeError, ValueError, AttributeError, SyntaxError) as error:
        raise BadTool(f"its annotations cannot be read: {error}") from None
    given = _given_names(function)
    fields: list[tuple[str, Any, Any]] = []
    context_parameter: str | None = None
    for parameter in parameters.values():
        if parameter.name in given:
            continue
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            why = "a model names each argument (is a decorator without functools.wraps around it?)"
            raise BadTool(f"parameter *{parameter.name}: {why}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise BadTool(f"parameter {parameter.name}: it has to be possible to name it")
        if parameter.name not in hints:
            raise BadTool(f"parameter {parameter.name} has no annotation")
        kind = hints[parameter.name]
        if _is_context(kind):
            if context_parameter is not None:
                raise BadTool(f"parameter {parameter.name}: a second ToolContext")
            context_parameter = parameter.name
            continue
        if any(map(_is_context, parts_of(kind))):  # the model never makes one up
            raise BadTool(f"parameter {parameter.name}: a ToolContext inside another type")
        kind = readable(parameter.name, kind)
        fields.append((parameter.name, kind, _default(parameter)))
    return fields, context_parameter


def _given_names(function: Any) -> set[str]:
    """Return the parameters that partials have filled in by name."""
    given: set[str] = set()
    while isinstance(function, functools.partial):
        given |= function.keywords.keys()
        function = function.func  # pyright: ignore[reportUnknownMemberType]
    return given


def _is_context(kind: Any) -> bool:
    """Whether a parameter takes the `ToolContext`, with its type of resources or as one of two."""
    if kind is ToolContext or typing.get_origin(kind) is ToolContext:
        return True
    if typing.get_origin(kind) is typing.Annotated:
        return _is_context(kind.__origin__)
    return is_union(kind) and any(map(_is_context, typing.get_args(kind)))


def _names(fields: Sequence[tuple[str, Any, Any]], options: ToolOptions) -> dict[str, str]:
    """Return the name of each parameter as the model sees it."""
    own = [name for name, _, _ in fields]
    if unknown := sorted(set(options.names) - {*own}):
        raise BadTool(f"names: it has no parameter {unknown[0]}")
    names: dict[str, str] = {}
    for name in own:
        word = name.removesuffix("_")
        plain = word if keyword.iskeyword(word) else name
        names[name] = options.names.get(name, plain)
    if len({*names.values()}) < len(names):
        raise BadTool("names: two parameters have the same name")
    return names


def _default(parameter: inspect.Parameter) -> Any:
    """Return a default that no two calls share; one without a JSON form is not shown."""
    name, value = parameter.name, parameter.default
    if value is parameter.empty:
        return msgspec.NODEFAULT
    if type(value).__module__.partition(".")[0] == "pydantic" and not hasattr(value, "model_dump"):
        raise BadTool(f"parameter {name}: write `Annotated[..., Field(...)]`, with a plain default")
    try:
        json.dumps(msgspec.to_builtins(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return msgspec.field(default_factory=lambda: value)
    if type(value) not in {list, dict, set, bytearray} or not value:
        return value
    return msgspec.field(default_factory=functools.partial(copy.deepcopy, value))


def _docstring(inner: Any, function: Any) -> tuple[str, str]:
    """Return a docstring's description and its sections."""
    text = inspect.getdoc(inner) or ""
    kind = cast("Any", type(function))
    if inner is getattr(kind, "__call__", None):  # noqa: B004  to compare it
        text = inner.__doc__ or inspect.getdoc(kind) or ""
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
