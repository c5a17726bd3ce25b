"""Makes the plainest JSON value that fits a JSON schema."""

from collections.abc import Mapping
from typing import Final, cast

Json = object
_DEEPEST: Final = 12
_MOST_STEPS: Final = 5_000
_FORMATS: Final[Mapping[str, str]] = {
    "date": "2026-01-02",
    "date-time": "2026-01-02T03:04:05Z",
    "time": "03:04:05Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def instance(schema: Mapping[str, Json], root: Mapping[str, Json] | None = None) -> Json:
    """Make a value; references are looked up in the root schema.

    Understands types, enum, const, default, required and optional properties, items, the first
    branch of anyOf and oneOf, all of allOf, lengths, ranges, and the common string formats. None
    where that takes too many steps.
    """
    try:
        return _instance(schema, _Work(schema if root is None else root), 0)
    except (_TooMuch, RecursionError):
        return None


class _TooMuch(Exception):
    """The schema grows without end."""


class _Work:
    """The root schema, and how much may still be done for it."""

    def __init__(self, root: Mapping[str, Json]) -> None:
        self.root = root
        self._left = _MOST_STEPS

    def step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooMuch


def _instance(schema: Mapping[str, Json], work: _Work, depth: int) -> Json:
    if depth > _DEEPEST:
        return None
    schema = _resolved(schema, work)
    given = _given(schema)
    if given:
        return given[0]
    branches = _schemas(schema.get("anyOf")) or _schemas(schema.get("oneOf"))
    if branches:
        return _instance(branches[0], work, depth + 1)
    match _type(schema):
        case "object":
            properties = _mapping(schema.get("properties"))
            return {
                name: _instance(_mapping(part), work, depth + 1)
                for name, part in properties.items()
            }
        case "array":
            item = _mapping(schema.get("items"))
            return [_instance(item, work, depth + 1) for _ in range(_items(schema))]
        case kind:
            return _scalar(kind, schema)


def _given(schema: Mapping[str, Json]) -> list[Json]:
    """Values that the schema itself names."""
    for key in ("const", "default"):
        if key in schema:
            return [schema[key]]
    choices = schema.get("enum")
    return cast(list[Json], choices) if isinstance(choices, list) else []


def _items(schema: Mapping[str, Json]) -> int:
    fewest = max(1, _integer(schema.get("minItems"), 1))
    return min(fewest, _integer(schema.get("maxItems"), fewest))


def _scalar(kind: str, schema: Mapping[str, Json]) -> Json:
    match kind:
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _string(schema)


def _resolved(schema: Mapping[str, Json], work: _Work) -> Mapping[str, Json]:
    work.step()
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        target: Mapping[str, Json] = work.root
        for name in reference.removeprefix("#").strip("/").split("/"):
            target = _mapping(target.get(name)) if name else target
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    for part in _schemas(schema.get("allOf")):
        merged = _resolved(part, work)
        properties = {**_mapping(schema.get("properties")), **_mapping(merged.get("properties"))}
        schema = {**merged, **schema}
        if properties:
            schema = {**schema, "properties": properties}
    return schema


def _type(schema: Mapping[str, Json]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        kind = cast(list[Json], kind)[0]
    if isinstance(kind, str):
        return kind
    return "object" if "properties" in schema else "string"


def _number(schema: Mapping[str, Json]) -> Json:
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if isinstance(schema.get("exclusiveMinimum"), int | float):
        lowest = cast(float, schema["exclusiveMinimum"]) + 1
    value: int | float = 1
    if isinstance(lowest, int | float):
        value = max(value, lowest)
    if isinstance(highest, int | float):
        value = min(value, highest)
    return int(value) if _type(schema) == "integer" else value


def _string(schema: Mapping[str, Json]) -> str:
    known = schema.get("format")
    if isinstance(known, str) and known in _FORMATS:
        return _FORMATS[known]
    shortest = _integer(schema.get("minLength"), 0)
    return "example"[: _integer(schema.get("maxLength"), 2048)].ljust(shortest, "x")


def _mapping(value: Json) -> Mapping[str, Json]:
    return cast(Mapping[str, Json], value) if isinstance(value, Mapping) else {}


def _schemas(value: Json) -> list[Mapping[str, Json]]:
    if not isinstance(value, list):
        return []
    return [_mapping(part) for part in cast(list[Json], value)]


def _integer(value: Json, default: int) -> int:
    return min(max(value, 0), _LONGEST) if isinstance(value, int) else default


_LONGEST = 2048
"""Characters or items; more would be a text that no model writes, or none that fits in memory."""
