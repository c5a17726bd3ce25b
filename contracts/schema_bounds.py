"""What a JSON Schema may cost, found out before a library follows its structure.

Here is also how a schema that cannot be used is refused: `BadSchema`.
"""

import re
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, cast
from urllib.parse import unquote

SCHEMA_MAX_VALUES: Final = 8_192
"""Most JSON values in one schema: objects, arrays, texts, numbers and words."""
SCHEMA_MAX_WRITTEN_OUT: Final = 16_384
"""Most rules in one schema, each as often as references lead to it."""
SCHEMA_MAX_DEPTH: Final = 100
"""How deep a schema may nest, references followed."""
SCHEMA_MAX_PATTERNS: Final = 100
"""Most regular expressions in one schema."""
_MAX_OTHER_REFERENCES: Final = 100
"""References that are followed by the library alone: to anchors, to `$id`, dynamic ones."""
_TEXT_MAX_CHARS: Final = 300
_DRAFTS: Final = frozenset(
    {
        "https://json-schema.org/draft/2020-12/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/draft-06/schema",
        "http://json-schema.org/draft-04/schema",
    }
)
_POINTER = re.compile(r"#(/|$)")
_INDEX = re.compile(r"[0-9]{1,6}")
_OTHER: Final = frozenset(
    {"$id", "id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef"}
)
_MAPS: Final = frozenset({"properties"})
_LISTS: Final = frozenset({"prefixItems", "allOf", "anyOf", "oneOf"})
_ONES: Final = frozenset(
    {"items", "additionalProperties", "additionalItems", "contains", "propertyNames"}
    | {"not", "if", "then", "else"}
)
_OTHER_MAPS: Final = frozenset({"patternProperties", "dependentSchemas", "dependencies"})
_OTHER_ONES: Final = frozenset({"unevaluatedItems", "unevaluatedProperties"})
_HERE: Final = frozenset(
    {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "dependentSchemas"}
    | {"dependencies"}
)
"""Keywords whose schemas look at the same value, not at a part of it."""
_FLAT: Final = frozenset(
    {"type", "enum", "const", "required", "minimum", "maximum", "exclusiveMinimum"}
    | {"exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties"}
    | {"maxProperties", "minContains", "maxContains", "$schema", "$id", "$defs", "definitions"}
    | {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly"}
    | {"writeOnly", "discriminator", "nullable", "example"}
)
_DEFINING: Final = frozenset({"$defs", "definitions", "default", "examples", "example"})
"""Of these, the ones whose size costs a check nothing."""
_FLAT_FORMATS: Final = frozenset(
    {"date-time", "date", "time", "duration", "email", "uuid", "uri", "ipv4", "ipv6", "hostname"}
)
_CONSTANT: Final = _FLAT | _MAPS | _LISTS | _ONES | {"$ref"}
"""Keywords whose own cost does not grow with the value."""
_APPLYING: Final = _MAPS | _OTHER_MAPS | _LISTS | _ONES | _OTHER_ONES | {"$ref"}
"""Keywords that may apply further schemas."""


class BadSchema(ValueError):
    """A schema cannot be used. The text is one bounded line: where in the schema, and why."""

    def __init__(self, where: Sequence[str | int], why: str) -> None:
        """Name the place as a JSON pointer, and what is wrong there."""
        super().__init__(one_line(f"{pointer(where)}: {why}"))


def one_line(text: str) -> str:
    """Return a text as one printable line of at most 300 characters."""
    begun = text[: _TEXT_MAX_CHARS + 1]
    line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in begun)
    return shortened(line, _TEXT_MAX_CHARS)


def pointer(where: Sequence[str | int]) -> str:
    """Return a place as a JSON pointer of bounded length; `#` is the whole."""
    words = [str(word).replace("~", "~0").replace("/", "~1")[:64] for word in where]
    if len(words) > 12:
        words[6:-5] = ["..."]
    return "#" + "".join(f"/{word}" for word in words)


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def measured(schema: Any) -> tuple[int | None, int]:
    """Return a bound for every check by a schema, and how many regular expressions it holds.

    The bound is the number of its rules, references followed; None if a check may cost more.

    Raises:
        BadSchema: There is too much of something, or its references lead back to themselves.
    """
    patterns, others = _counted(schema)
    weight = _Weighing(schema).weight()
    return None if others else weight, patterns


def _counted(schema: Any) -> tuple[int, int]:
    """Return how many regular expressions and how many other references a schema holds.

    Raises:
        BadSchema: There is too much of something; counted before anything follows its structure.
    """
    patterns = others = values = 0
    level: list[Any] = [schema]
    for _ in range(SCHEMA_MAX_DEPTH):
        values += len(level)
        if values > SCHEMA_MAX_VALUES:
            raise BadSchema((), f"more than {SCHEMA_MAX_VALUES} values")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                rules = cast("dict[str, Any]", value)
                patterns += _patterns(rules)
                others += _other_references(rules, root=value is schema)
                below += rules.values()
            elif isinstance(value, list):
                below += cast("Sequence[Any]", value)
        if not below:
            break
        level = below
    else:
        raise BadSchema((), f"it nests more than {SCHEMA_MAX_DEPTH} deep")
    if patterns > SCHEMA_MAX_PATTERNS:
        raise BadSchema((), f"more than {SCHEMA_MAX_PATTERNS} regular expressions")
    if others > _MAX_OTHER_REFERENCES:
        raise BadSchema((), f"more than {_MAX_OTHER_REFERENCES} references other than `#/...`")
    return patterns, others


def _patterns(rules: dict[str, Any]) -> int:
    named = rules.get("patternProperties")
    others = len(cast("dict[str, Any]", named)) if isinstance(named, dict) else 0
    return isinstance(rules.get("pattern"), str) + others


def _other_references(rules: dict[str, Any], *, root: bool) -> int:
    draft = rules.get("$schema")
    if root and isinstance(draft, str) and draft.rstrip("#") not in _DRAFTS:
        raise BadSchema(("$schema",), "a draft that is not known")
    reference = rules.get("$ref")
    found = isinstance(reference, str) and not _POINTER.match(reference)
    names = _OTHER.intersection(rules) - ({"$id", "id"} if root else set())
    return found + sum(isinstance(rules[word], str) for word in names)


def _own_weight(rules: dict[str, Any]) -> int | None:
    """Return what a schema costs beside its parts; None if that depends on the value."""
    total = 1
    for word, value in rules.items():
        if word == "format" and isinstance(value, str) and value in _FLAT_FORMATS:
            continue
        if word not in _CONSTANT:
            return None
        if isinstance(value, list | dict) and word in _FLAT and word not in _DEFINING:
            total += len(cast("Sequence[Any]", value))
    return total


class _Weighing:
    """Follows a schema and its references, without a library: a sum that bounds every check."""

    def __init__(self, schema: Any) -> None:
        """Prepare."""
        self._root = schema
        self._parts: dict[int, list[tuple[str, Any]]] = {}
        """By identity of a schema: those that it applies, each with its keyword."""
        self._weights: dict[int, tuple[int | None, int, int]] = {}
        """By identity: (weight, how deep it nests, schemas in it with references written out); in
        the making: None, 0 and 1."""

    def weight(self) -> int | None:
        """As `measured` returns it."""
        waiting = [self._root]
        while waiting:
            schema = waiting.pop()
            if isinstance(schema, dict) and id(cast("Any", schema)) not in self._parts:
                parts = [*self._parts_of(cast("dict[str, Any]", schema))]
                self._parts[id(cast("Any", schema))] = parts
                waiting += [part for _, part in parts]
        self._refuse_circles()
        return self._of(self._root, 0)[0]

    def _refuse_circles(self) -> None:
        """Refuse a schema that applies itself to the same value: nothing would ever fit or not."""
        here = TopologicalSorter[int]()
        for schema, parts in self._parts.items():
            # Of schemas with parts: one that applies none is in no circle.
            if within := [
                id(part) for word, part in parts if word in _HERE and self._parts.get(id(part))
            ]:
                here.add(schema, *within)
        try:
            here.prepare()
        except CycleError:
            raise BadSchema((), "a `$ref` that leads back to itself") from None

    def _of(self, schema: Any, depth: int) -> tuple[int | None, int, int]:
        if not isinstance(schema, dict):
            return 1, 1, 1
        known = self._weights.get(id(cast("Any", schema)))
        if known is not None:
            return known
        if depth > SCHEMA_MAX_DEPTH:
            raise BadSchema((), f"its references nest more than {SCHEMA_MAX_DEPTH} deep")
        rules = cast("dict[str, Any]", schema)
        self._weights[id(rules)] = (None, 0, 1)  # met again below: a recursion
        total = _own_weight(rules)
        deepest, written_out = 0, 1
        for _, part in self._parts[id(rules)]:
            weight, below, size = self._of(part, depth + 1)
            deepest, written_out = max(deepest, below), written_out + size
            total = None if total is None or weight is None else total + 1 + weight
        if deepest >= SCHEMA_MAX_DEPTH:
            raise BadSchema((), f"its references nest more than {SCHEMA_MAX_DEPTH} deep")
        if written_out > SCHEMA_MAX_WRITTEN_OUT:  # compiling would write them out
            raise BadSchema(
                (), f"its references repeat its rules more than {SCHEMA_MAX_WRITTEN_OUT} times"
            )
        self._weights[id(rules)] = found = (total, deepest + 1, written_out)
        return found

    def _parts_of(self, rules: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the schemas that a schema applies, each with its keyword."""
        if _APPLYING.isdisjoint(rules):
            return
        for word, value in rules.items():
            if isinstance(value, dict) and (word in _MAPS or word in _OTHER_MAPS):
                for part in cast("dict[str, Any]", value).values():
                    yield word, part
            elif isinstance(value, list) and (word in _LISTS or word == "items"):
                for part in cast("Sequence[Any]", value):
                    yield word, part
            elif isinstance(value, dict) and (word in _ONES or word in _OTHER_ONES):
                yield word, cast("Any", value)
            elif word == "$ref" and isinstance(value, str) and _POINTER.match(value):
                yield word, self._target(value)

    def _target(self, reference: str) -> Any:
        found: Any = self._root
        for word in reference.removeprefix("#").split("/")[1:]:
            name = unquote(word).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = cast("dict[str, Any]", found).get(name)
            elif (
                isinstance(found, list)
                and _INDEX.fullmatch(name)
                and int(name) < len(cast("Sequence[Any]", found))
            ):
                found = cast("Sequence[Any]", found)[int(name)]
            else:
                return None
        return found
