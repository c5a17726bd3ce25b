"""Types of tools' parameters: what msgspec reads, what pydantic reads, and their JSON Schema."""

import dataclasses
import datetime as dt
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, cast

import msgspec

from turnline.contracts.schema_bounds import one_line

_FORMATS: Final[dict[Any, str]] = {dt.datetime: "date-time", dt.time: "time"}
"""Of types that msgspec describes as any text."""
_BY_PYDANTIC: Final = frozenset({"pydantic", "pydantic_core", "annotated_types"})
"""Packages whose classes say something about a type that only pydantic understands."""


class BadTool(Exception):
    """A function cannot be a tool; the text says why, in one line."""

    def __init__(self, why: str) -> None:
        """Say why; whatever the text of a library holds, it becomes one line."""
        super().__init__(one_line(" ".join(why.split())))


class _Adapted:
    """Base of the types that stand for what pydantic reads; one for each parameter."""

    adapter: Any
    schema: dict[str, Any]

    def __init__(self, value: Any) -> None:
        self.value = value


def readable(name: str, kind: Any) -> Any:
    """Return a parameter's type as msgspec takes it.

    Raises:
        BadTool: It says something that nobody here understands.
    """
    for part in parts_of(kind):
        if is_pydantics(part):
            return _by_pydantic(name, kind)
    for it in _metadata(kind):
        if not isinstance(it, str | msgspec.Meta) and _text_of(it) is None:
            raise BadTool(f"parameter {name}: {type(it).__name__} in Annotated is not understood")
    return kind


def adapted(kind: type, value: Any) -> Any:
    """Decode what pydantic reads; for msgspec's `dec_hook`. `plain` unwraps it.

    Raises:
        ValueError: The value does not fit; it is not repeated.
    """
    if not issubclass(kind, _Adapted):
        raise NotImplementedError
    import pydantic  # noqa: PLC0415  the tool's author has it, or there is no such type

    try:
        return kind(kind.adapter.validate_json(msgspec.json.encode(value)))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise ValueError(f"{at}: {first['msg']}" if at else first["msg"]) from None


def plain(value: Any) -> Any:
    """Return a decoded argument as its function takes it."""
    return value.value if isinstance(value, _Adapted) else value


def schema_of(
    arguments: type[msgspec.Struct], fields: Sequence[tuple[str, Any]], *, adapters: bool = True
) -> dict[str, Any]:
    """Return the JSON Schema of the arguments, an object at its root.

    Args:
        arguments: What they are decoded into.
        fields: (name as the model has it, type) of each.
        adapters: Whether what pydantic reads is described too.

    Raises:
        BadTool: A type has none.
    """
    classes = {
        id(part): part
        for _, kind in fields
        for part in parts_of(kind)
        if not is_pydantics(part) and _fields_of(part)
    }
    try:
        (root, *others), components = msgspec.json.schema_components(
            [arguments, *classes.values()],
            schema_hook=_adapted_schema if adapters else _unread_schema,
            ref_template="#/$defs/{name}",
        )
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise BadTool(f"its annotations have no JSON Schema: {error}") from None
    parts = dict(components)
    for reference, kind in zip(others, classes.values(), strict=True):
        found = parts.get(_component(reference), {}).get("properties", {})
        for name, hint in _fields_of(kind):
            if name in found:
                _explain(found[name], hint)
    whole = parts.pop(_component(root))
    for name, kind in fields:
        _explain(whole["properties"][name], kind)
        if adapters and isinstance(kind, type) and issubclass(kind, _Adapted):
            for inner, schema in kind.schema.get("$defs", {}).items():
                parts[f"{kind.__name__}.{inner}"] = schema
    schema = {
        "type": "object",
        "properties": whole["properties"],
        "required": whole["required"],
        "additionalProperties": False,
    }
    return {**schema, "$defs": parts} if parts else schema


# -- regular expressions ------------------------------------------------------------------------


def without_patterns(kind: Any) -> Any:
    """Return a type without the regular expressions that stand in it, classes left as they are.

    msgspec would run them by Python's `re`, whose time has no bound.
    """
    origin = typing.get_origin(kind)
    if not any(_has_pattern(part) for part in parts_of(kind)):
        return kind
    if origin is Annotated:
        metadata = (_without_pattern(it) for it in kind.__metadata__)
        return Annotated[(without_patterns(kind.__origin__), *metadata)]
    for name in ("__supertype__", "__value__"):
        if hasattr(kind, name) and origin is None:
            return without_patterns(getattr(kind, name))
    if origin is None:
        return kind
    inner = tuple(map(without_patterns, typing.get_args(kind)))
    return typing.Union[inner] if is_union(kind) else origin[inner]  # noqa: UP007


def refuse_patterns(schema: Any) -> None:
    """Refuse regular expressions that `re` would run and that may take more than linear time.

    Args:
        schema: Of what msgspec decodes into.

    Raises:
        BadTool: There is one: it stands in a class.
    """
    if not all(map(_is_plain, _patterns_in(schema))):
        raise BadTool(_NOT_PLAIN)


_NOT_PLAIN: Final = (
    "a pattern of a class has to begin with ^ and repeat one thing at most, without groups "
    "and |, to take linear time; or stand at the parameter itself"
)
_ONE_THING: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED: Final = re.compile(r"[*+]|\{\d*,\d*\}")
_MOST_OPTIONAL: Final = 5
"""Each doubles the time at worst."""


def _is_plain(pattern: str) -> bool:
    """Whether Python's `re` certainly takes linear time for a pattern."""
    rest = _ONE_THING.sub("x", pattern)
    if not rest.startswith("^") or "(" in rest or "|" in rest:
        return False
    return len(_REPEATED.findall(rest)) < 2 and rest.count("?") <= _MOST_OPTIONAL


def _patterns_in(schema: Any) -> Iterator[str]:
    for part in _values_in(schema):
        if isinstance(part, dict):
            pattern = cast("dict[str, Any]", part).get("pattern")
            if isinstance(pattern, str):
                yield pattern


def _values_in(value: Any) -> Iterator[Any]:
    """Yield a value of dicts and lists and all that it holds, each once; it may hold itself."""
    waiting, seen = [value], dict[int, Any]()
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            yield part
            if isinstance(part, dict):
                waiting += cast("dict[str, Any]", part).values()
            elif isinstance(part, list | tuple):
                waiting += cast("Sequence[Any]", part)


def _has_pattern(part: Any) -> bool:
    return isinstance(part, msgspec.Meta) and part.pattern is not None


def _without_pattern(part: Any) -> Any:
    if not _has_pattern(part):
        return part
    words = (
        *("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "tz", "title"),
        *("description", "examples", "extra_json_schema", "extra"),
    )
    return msgspec.Meta(**{word: getattr(part, word) for word in words})


def is_union(kind: Any) -> bool:
    """Whether a type is one of several."""
    return typing.get_origin(kind) in {typing.Union, types.UnionType}


def _component(reference: dict[str, Any]) -> str:
    return str(reference.get("$ref", "")).rpartition("/")[2]


# -- looking into types -------------------------------------------------------------------------


def parts_of(kind: Any) -> Iterator[Any]:
    """Yield a type, its metadata, and all types that it consists of, each once."""
    waiting, seen = [kind], dict[int, Any]()
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen[id(part)] = part  # kept, so that no other gets its id
            yield part
            yield from _metadata(part)
            inner = [*_arguments(part), *(hint for _, hint in _fields_of(part))]
            waiting += reversed(inner)


def _arguments(kind: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return ()
    if origin is Annotated:
        return (kind.__origin__,)
    for name in ("__supertype__", "__value__"):  # NewType and `type X = ...`
        if hasattr(kind, name) and origin is None:
            return (getattr(kind, name),)
    return typing.get_args(kind)


def _metadata(kind: Any) -> tuple[Any, ...]:
    return tuple(kind.__metadata__) if typing.get_origin(kind) is Annotated else ()


def _fields_of(kind: Any) -> list[tuple[str, Any]]:
    """Return (name in JSON, type) of each field of a class that has fields."""
    origin: Any = typing.get_origin(kind) or kind
    if not isinstance(origin, type):
        return []
    of: type[Any] = origin
    try:
        if issubclass(of, msgspec.Struct):
            hints = typing.get_type_hints(of, include_extras=True)
            known = zip(of.__struct_fields__, of.__struct_encode_fields__, strict=True)
            return [(encoded, hints[name]) for name, encoded in known]
        named_tuple = hasattr(of, "_fields") and tuple in of.__mro__
        if named_tuple or dataclasses.is_dataclass(of) or typing.is_typeddict(of):
            return [*typing.get_type_hints(of, include_extras=True).items()]
    except (NameError, TypeError) as error:
        raise BadTool(f"the annotations of {of.__name__} cannot be read: {error}") from None
    return []


def _text_of(metadata: Any) -> str | None:
    """Return what a piece of metadata says in words: a text, or a `Doc`."""
    text = metadata if isinstance(metadata, str) else getattr(metadata, "documentation", None)
    return text if isinstance(text, str) else None


def _explain(  # noqa: C901, PLR0912  one branch for each kind of type
    schema: Any, kind: Any
) -> None:
    """Add to a schema what msgspec leaves out: descriptions that are plain texts, two formats."""
    if not isinstance(schema, dict):
        return
    rules = cast("dict[str, Any]", schema)
    for it in _metadata(kind):
        if (text := _text_of(it)) is not None:
            rules.setdefault("description", text)
    arguments = _arguments(kind)
    origin = typing.get_origin(kind)
    if kind in _FORMATS and rules.get("type") == "string":
        rules.setdefault("format", _FORMATS[kind])
    elif is_union(kind):
        several = rules.get("anyOf", [rules])
        for part in arguments:
            for choice in several if str not in arguments else ():
                _explain(choice, part)
    elif origin is Annotated or origin is None:
        for part in arguments:
            _explain(rules, part)
    elif "prefixItems" in rules:
        for part, item in zip(arguments, rules["prefixItems"], strict=False):
            _explain(item, part)
    elif "items" in rules and arguments:
        _explain(rules["items"], arguments[0])
    elif "additionalProperties" in rules and len(arguments) == 2:
        _explain(rules["additionalProperties"], arguments[1])


# -- pydantic -----------------------------------------------------------------------------------


def is_pydantics(part: Any) -> bool:
    """Whether this is a class of pydantic's, or metadata that it alone understands."""
    if type(part).__module__.partition(".")[0] in _BY_PYDANTIC:
        return True
    if "pydantic" not in sys.modules or not dataclasses.is_dataclass(part):
        return False
    from pydantic.dataclasses import is_pydantic_dataclass  # noqa: PLC0415  only where it is used

    return isinstance(part, type) and is_pydantic_dataclass(part)


def dumped(value: Any) -> Any:
    """Return what `is_pydantics`, as JSON has it."""
    import pydantic  # noqa: PLC0415  only where a tool's author uses it

    adapter: Any = pydantic.TypeAdapter(cast("Any", type(value)))
    return adapter.dump_python(value, mode="json")


def _by_pydantic(name: str, kind: Any) -> type[_Adapted]:
    try:
        import pydantic  # noqa: PLC0415  only where a tool's author uses it
    except ModuleNotFoundError:
        raise BadTool(f"parameter {name}: its type needs pydantic, which is not here") from None
    try:
        adapter: Any = pydantic.TypeAdapter(kind)
        schema: dict[str, Any] = adapter.json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    except Exception as error:  # noqa: BLE001  whatever it is, the author has to hear of it
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise BadTool(f"parameter {name}: pydantic cannot read its type: {why}") from None
    _refuse_own_engine(name, adapter.core_schema)
    return type(name, (_Adapted,), {"adapter": adapter, "schema": schema})


def _refuse_own_engine(name: str, core: Any) -> None:
    """Refuse patterns that pydantic runs by Python's `re`, if they may take more than linear time.

    Raises:
        BadTool: There is one.
    """
    compiled = [str(it.pattern) for it in _values_in(core) if _is_compiled(it)]
    by_re = bool(compiled) or any(
        isinstance(it, dict) and cast("dict[str, Any]", it).get("regex_engine") == "python-re"
        for it in _values_in(core)
    )
    if by_re and not all(map(_is_plain, (*compiled, *_patterns_in(core)))):
        raise BadTool(f"parameter {name}: a pattern that Python's `re` would run: {_NOT_PLAIN}")


def _is_compiled(part: Any) -> bool:
    return isinstance(part, re.Pattern)


def _unread_schema(kind: type) -> dict[str, Any]:
    _adapted_schema(kind)
    return {"title": kind.__name__}


def _adapted_schema(kind: type) -> dict[str, Any]:
    if not issubclass(kind, _Adapted):
        module = sys.modules.get(kind.__module__)
        raise NotImplementedError(f"the type {module and kind.__name__} is not known")
    return {word: rule for word, rule in kind.schema.items() if word != "$defs"}
