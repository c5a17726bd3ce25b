"""Structured replies: how a JSON Schema is asked for, and whether a reply fits it; pure."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

Schema = Mapping[str, Any]
_DEEPEST: Final = 64
_MADE_TYPES: Final = frozenset({"json_schema", "json_object", "text"})


class InvalidReply(Exception):
    """The reply is not what was asked for; the text says where, never what it says."""


def request_format(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request carries for a `response_format` setting.

    Args:
        asked: A JSON Schema, or OpenAI's `response_format` object, which stays as it is.
    """
    if asked.get("type") in _MADE_TYPES:
        return dict(asked)
    named = {"name": "reply", "schema": dict(asked), "strict": True}
    return {"type": "json_schema", "json_schema": named}


def schema_of(asked: Mapping[str, Any]) -> Schema | None:
    """Return the JSON Schema in a `response_format` setting; None where any text will do."""
    match asked.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            inner = asked.get("json_schema")
            found = cast("Schema", inner).get("schema") if isinstance(inner, Mapping) else None
            return cast("Schema", found) if isinstance(found, Mapping) else {}
        case _:
            return asked


def parsed_reply(text: str, asked: Mapping[str, Any]) -> Any:
    """Return the value of a reply.

    Raises:
        InvalidReply: It is no JSON, or does not fit the schema.
    """
    schema = schema_of(asked)
    if schema is None:
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidReply("the reply is not JSON") from None
    fault = next(_faults(value, schema, schema, "$", 0), None)
    if fault is not None:
        raise InvalidReply(f"the reply does not fit its schema: {fault}")
    return value


def _faults(  # noqa: C901  one branch for each keyword
    value: Any, schema: Any, root: Schema, at: str, depth: int
) -> Iterator[str]:
    """Yield where a value does not fit a schema; unknown keywords ask for nothing.

    Source: https://json-schema.org/draft/2020-12/json-schema-validation
    """
    if schema is True or depth > _DEEPEST:
        return
    if schema is False:
        yield f"{at}: nothing is allowed here"
        return
    if not isinstance(schema, Mapping):
        return
    rules = cast("Schema", schema)
    if isinstance(rules.get("$ref"), str):
        yield from _faults(value, _resolved(rules["$ref"], root), root, at, depth + 1)
    kinds = rules.get("type")
    if kinds is not None:
        wanted = cast("Sequence[Any]", [kinds] if isinstance(kinds, str) else kinds)
        if not any(_is_a(value, kind) for kind in wanted):
            yield f"{at}: expected {' or '.join(map(str, wanted))}"
            return
    if "enum" in rules and not any(_same(value, choice) for choice in rules["enum"]):
        yield f"{at}: not one of the values allowed"
    if "const" in rules and not _same(value, rules["const"]):
        yield f"{at}: not the value expected"
    yield from _branches(value, rules, root, at, depth)
    if isinstance(value, str):
        yield from _text_faults(value, rules, at)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number_faults(value, rules, at)
    elif isinstance(value, list):
        yield from _array_faults(cast("Sequence[Any]", value), rules, root, at, depth)
    elif isinstance(value, dict):
        yield from _object_faults(cast("dict[str, Any]", value), rules, root, at, depth)


def _branches(value: Any, rules: Schema, root: Schema, at: str, depth: int) -> Iterator[str]:
    def fits(schema: Any) -> bool:
        return next(_faults(value, schema, root, at, depth + 1), None) is None

    for part in rules.get("allOf", ()):
        yield from _faults(value, part, root, at, depth + 1)
    if "anyOf" in rules and not any(map(fits, rules["anyOf"])):
        yield f"{at}: none of the alternatives"
    if "oneOf" in rules and sum(map(fits, rules["oneOf"])) != 1:
        yield f"{at}: not exactly one of the alternatives"
    if "not" in rules and fits(rules["not"]):
        yield f"{at}: what is not allowed"


def _text_faults(value: str, rules: Schema, at: str) -> Iterator[str]:
    if len(value) < rules.get("minLength", 0):
        yield f"{at}: too short"
    if len(value) > rules.get("maxLength", math.inf):
        yield f"{at}: too long"
    pattern = rules.get("pattern")
    if isinstance(pattern, str):
        try:
            found = re.search(pattern, value)
        except re.error:
            return  # ECMA's dialect has what Python's lacks
        if found is None:
            yield f"{at}: not of the pattern expected"


def _number_faults(value: float, rules: Schema, at: str) -> Iterator[str]:
    for key, fits in _BOUNDS.items():
        bound = rules.get(key)
        if (
            isinstance(bound, int | float)
            and not isinstance(bound, bool)
            and not fits(value, bound)
        ):
            yield f"{at}: against {key}"


def _array_faults(
    value: Sequence[Any], rules: Schema, root: Schema, at: str, depth: int
) -> Iterator[str]:
    if len(value) < rules.get("minItems", 0):
        yield f"{at}: too few items"
    if len(value) > rules.get("maxItems", math.inf):
        yield f"{at}: too many items"
    if rules.get("uniqueItems") and any(
        _same(one, other) for n, one in enumerate(value) for other in value[:n]
    ):
        yield f"{at}: items are repeated"
    first = cast("Sequence[Any]", rules.get("prefixItems", ()))
    for number, item in enumerate(value):
        part = first[number] if number < len(first) else rules.get("items", True)
        yield from _faults(item, part, root, f"{at}[{number}]", depth + 1)


def _object_faults(
    value: dict[str, Any], rules: Schema, root: Schema, at: str, depth: int
) -> Iterator[str]:
    properties = cast("Schema", rules.get("properties", {}))
    for name in rules.get("required", ()):
        if name not in value:
            yield f"{at}: {name} is missing"
    if len(value) < rules.get("minProperties", 0) or len(value) > rules.get(
        "maxProperties", math.inf
    ):
        yield f"{at}: too few or too many fields"
    for name, item in value.items():
        if name in properties:
            yield from _faults(item, properties[name], root, f"{at}.{name}", depth + 1)
        elif next(_faults(item, rules.get("additionalProperties", True), root, at, depth + 1), ""):
            yield f"{at}: a field that is not allowed"


def _resolved(reference: str, root: Schema) -> Any:
    target: Any = root
    for word in reference.removeprefix("#").strip("/").split("/"):
        if word:
            name = word.replace("~1", "/").replace("~0", "~")
            target = cast("Schema", target).get(name) if isinstance(target, Mapping) else None
    return target


def _is_a(value: Any, kind: Any) -> bool:  # noqa: PLR0911  one for each type
    match kind:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            return whole and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            return True


def _same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _is_multiple(value: float, of: float) -> bool:
    return of <= 0 or math.isclose(value / of, round(value / of), abs_tol=1e-9)


_BOUNDS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "multipleOf": _is_multiple,
}
