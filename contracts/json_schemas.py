"""JSON Schemas that others wrote: bounded, compiled once, and refused by name.

Compiling takes the library jsonschema-rs. Where it is not installed, only the bounds and the shape
of `response_format` are checked; workers have it and compile every schema before they use it
(docs/adr/0018-json-schema-by-a-library.md).
"""

import functools
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, cast
from urllib.parse import unquote

import msgspec

from turnline.contracts.errors import InvalidMessage
from turnline.contracts.messages import Configure, Inbound
from turnline.contracts.numbers import number

SCHEMA_MAX_BYTES: Final = 256 * 1024
"""Largest schema, bytes of JSON."""
SCHEMA_MAX_VALUES: Final = 8_192
"""Most JSON values in one schema: objects, arrays, texts, numbers and words."""
SCHEMA_MAX_WRITTEN_OUT: Final = 16_384
"""Most rules in one schema, each as often as references lead to it."""
SCHEMA_MAX_DEPTH: Final = 100
"""How deep a schema may nest, references followed."""
SCHEMA_MAX_PATTERNS: Final = 100
"""Most regular expressions in one schema."""
PATTERN_MAX_BYTES: Final = 256 * 1024
"""Memory that one compiled regular expression may take."""
_MAX_OTHER_REFERENCES: Final = 100
"""References that are followed by the library alone: to anchors, to `$id`, dynamic ones."""
_TEXT_MAX_CHARS: Final = 300
_CACHE_BYTES: Final = 32 * 1024 * 1024
_CACHE_SCHEMAS: Final = 256

WRAPPERS: Final = frozenset({"json_schema", "json_object", "text"})
"""Values of `type` that mark OpenAI's `response_format` objects; no schema has them."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DRAFTS: Final = frozenset(
    {
        "https://json-schema.org/draft/2020-12/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema",
        "http://json-schema.org/draft-06/schema",
        "http://json-schema.org/draft-04/schema",
    }
)


class BadSchema(ValueError):
    """A schema cannot be used. The text is one bounded line: where in the schema, and why."""

    def __init__(self, where: Sequence[str | int], why: str) -> None:
        """Name the place as a JSON pointer, and what is wrong there."""
        super().__init__(one_line(f"{pointer(where)}: {why}"))


class Schema:
    """A schema that can be used."""

    def __init__(self, source: bytes, validator: Any, weight: int | None) -> None:
        """Hold what was compiled.

        Args:
            source: The schema, JSON.
            validator: Of jsonschema-rs; None where that is not installed.
            weight: How many rules stand in it, references followed, if its rules are all of
                constant cost and lead to no recursion; else None. A check takes at most `weight`
                steps for each value that is checked.
        """
        self.source = source
        self.weight = weight
        self._validator = validator

    def fault(self, value: Any) -> str | None:
        """Return where a JSON value does not fit and why, in one line; None if it fits.

        The line quotes nothing of the value: only names and rules of the schema.
        """
        if self._validator is None:
            return None
        try:
            if not self._validator.is_valid(value):
                self._validator.validate(value)
        except ValueError as error:
            if not hasattr(error, "evaluation_path"):  # not the value's misfit, but the library's
                return "#: it nests too deep to be checked"
            return _misfit(error)
        return None


class Schemas:
    """Compiles schemas and keeps them; what was refused is known as well. Bounded in both."""

    def __init__(self, *, most: int = _CACHE_SCHEMAS, most_bytes: int = _CACHE_BYTES) -> None:
        """Begin empty.

        Args:
            most: Schemas kept.
            most_bytes: Memory that they may take, as estimated.
        """
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[bytes, tuple[Schema | str, int]] = OrderedDict()
        self._bytes = 0

    def compiled(self, schema: Any) -> Schema:
        """Return a schema ready for use.

        Args:
            schema: A JSON Schema, of the draft that its `$schema` names or else 2020-12.

        Raises:
            BadSchema: It cannot be used.
        """
        try:
            source = msgspec.json.encode(schema)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            raise BadSchema((), "no JSON") from None
        return self.read(source)

    def read(self, source: bytes) -> Schema:
        """Return a schema, given as JSON, ready for use.

        Raises:
            BadSchema: It cannot be used.
        """
        if len(source) > SCHEMA_MAX_BYTES:
            raise BadSchema((), f"{len(source)} bytes; at most {SCHEMA_MAX_BYTES}")
        found = self._kept.get(source)
        if found is None:
            result: Schema | str
            try:
                result, patterns = _compile(source)
            except BadSchema as error:
                result, patterns = str(error), 0
            size = 16 * len(source) + patterns * PATTERN_MAX_BYTES // 8
            found = self._kept[source] = (result, size)
            self._bytes += size
            while len(self._kept) > self._most or self._bytes > self._most_bytes:
                self._bytes -= self._kept.popitem(last=False)[1][1]
        else:
            self._kept.move_to_end(source)
        if isinstance(found[0], str):
            again = BadSchema((), "")
            again.args = (found[0],)
            raise again
        return found[0]

    def of_arguments(self, parameters: Mapping[str, Any]) -> Schema:
        """Return the schema of a tool's arguments.

        Raises:
            BadSchema: It cannot be used, or is none for an object.
        """
        kind = parameters.get("type", "object")
        if isinstance(kind, str) and kind != "object":
            raise BadSchema(("type",), "expected `object`: arguments have names")
        return self.compiled(parameters)

    def check(self, message: Inbound) -> None:
        """Compile every schema in a message.

        Raises:
            InvalidMessage: One of them cannot be used; the error names its field.
        """
        found: object = message
        field = ""
        if isinstance(message, Configure):
            found, field = message.settings, "settings."
        asked = getattr(found, "response_format", None)
        if asked:
            try:
                self.of_reply(asked)
            except BadSchema as error:
                raise InvalidMessage(f"{field}response_format", str(error)) from None
        for n, tool in enumerate(getattr(found, "tools", None) or ()):
            try:
                self.of_arguments(tool.function.parameters)
            except BadSchema as error:
                at = f"{field}tools[{n}].function.parameters"
                raise InvalidMessage(at, str(error)) from None

    def of_reply(self, asked: Mapping[str, Any]) -> Schema | None:
        """Return the schema of a `response_format`; None where any text will do.

        Args:
            asked: A JSON Schema, or OpenAI's `response_format` object.

        Raises:
            BadSchema: It is neither.
        """
        schema = schema_of(asked)
        return None if schema is None else self.compiled(schema)


def schema_of(asked: Mapping[str, Any]) -> Any:
    """Return the JSON Schema in a `response_format`; None where any text will do.

    Raises:
        BadSchema: It looks like OpenAI's object and is none.
    """
    kind = asked.get("type")
    if not isinstance(kind, str) or kind not in WRAPPERS:
        return asked
    if kind != "json_schema":
        _only(asked, {"type"}, ())
        return None if kind == "text" else {"type": "object"}
    _only(asked, {"type", "json_schema"}, ())
    inner = asked.get("json_schema")
    if not isinstance(inner, Mapping):
        raise BadSchema(("json_schema",), "expected an object with `name` and `schema`")
    wrapped = cast("Mapping[str, Any]", inner)
    _only(wrapped, {"name", "description", "schema", "strict"}, ("json_schema",))
    name, description = wrapped.get("name"), wrapped.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        expected = "expected 1 to 64 letters, digits, `_` or `-`"
        raise BadSchema(("json_schema", "name"), expected)
    if description is not None and not isinstance(description, str):
        raise BadSchema(("json_schema", "description"), "expected text")
    strict = wrapped.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise BadSchema(("json_schema", "strict"), "expected true or false")
    schema = wrapped.get("schema", {})
    if not isinstance(schema, Mapping):
        raise BadSchema(("json_schema", "schema"), "expected a JSON Schema, an object")
    return cast("Mapping[str, Any]", schema)


def _only(found: Mapping[str, Any], known: set[str], where: Sequence[str]) -> None:
    for name in found:
        if name not in known:
            raise BadSchema((*where, name), "unknown here")


def one_line(text: str) -> str:
    """Return a text as one printable line of at most 300 characters."""
    begun = text[: _TEXT_MAX_CHARS + 1]
    line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in begun)
    return line if len(line) <= _TEXT_MAX_CHARS else line[: _TEXT_MAX_CHARS - 3] + "..."


def pointer(where: Sequence[str | int]) -> str:
    """Return a place as a JSON pointer of bounded length; `#` is the whole."""
    words = [str(word).replace("~", "~0").replace("/", "~1")[:64] for word in where]
    if len(words) > 12:
        words[6:-5] = ["..."]
    return "#" + "".join(f"/{word}" for word in words)


# -- compiling ----------------------------------------------------------------------------------


@functools.cache
def library() -> ModuleType | None:
    """Return jsonschema-rs, loaded at its first use; None where it is not installed."""
    try:
        import jsonschema_rs  # noqa: PLC0415  producers need not have it
    except ImportError:  # or made for another Python
        return None
    return jsonschema_rs


def _compile(source: bytes) -> tuple[Schema, int]:
    """Return a schema ready for use, and how many regular expressions it holds."""
    try:
        schema = _decode(source)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadSchema((), "no JSON") from None
    counts = _Counts(schema)
    weight = _Weighing(schema).weight()
    if counts.others:
        weight = None
    found = library()
    if found is None:
        return Schema(source, None, weight), counts.patterns
    options = found.RegexOptions(size_limit=PATTERN_MAX_BYTES, dfa_size_limit=PATTERN_MAX_BYTES)
    try:
        validator = found.validator_for(
            source.decode(),
            validate_formats=True,
            pattern_options=options,
            mask="the value",
            offline=True,
        )
    except found.ValidationError as error:
        raise _refusal(error) from None
    except (found.ReferencingError, ValueError) as error:
        raise BadSchema((), f"it cannot be read ({type(error).__name__})") from None
    return Schema(source, validator, weight), counts.patterns


class _Counts:
    """What is counted before anything follows the structure of a schema."""

    def __init__(self, schema: Any) -> None:
        """Count.

        Raises:
            BadSchema: There is too much of something.
        """
        self.patterns = 0
        self.others = 0
        values = 0
        level: list[Any] = [schema]
        for _ in range(SCHEMA_MAX_DEPTH):
            values += len(level)
            if values > SCHEMA_MAX_VALUES:
                raise BadSchema((), f"more than {SCHEMA_MAX_VALUES} values")
            below: list[Any] = []
            for value in level:
                if isinstance(value, dict):
                    rules = cast("dict[str, Any]", value)
                    self._look(rules, root=value is schema)
                    below += rules.values()
                elif isinstance(value, list):
                    below += cast("Sequence[Any]", value)
            if not below:
                break
            level = below
        else:
            raise BadSchema((), f"it nests more than {SCHEMA_MAX_DEPTH} deep")
        if self.patterns > SCHEMA_MAX_PATTERNS:
            raise BadSchema((), f"more than {SCHEMA_MAX_PATTERNS} regular expressions")
        if self.others > _MAX_OTHER_REFERENCES:
            raise BadSchema((), f"more than {_MAX_OTHER_REFERENCES} references other than `#/...`")

    def _look(self, rules: dict[str, Any], *, root: bool) -> None:
        draft = rules.get("$schema")
        if root and isinstance(draft, str) and draft.rstrip("#") not in _DRAFTS:
            raise BadSchema(("$schema",), "a draft that is not known")
        if isinstance(rules.get("pattern"), str):
            self.patterns += 1
        named = rules.get("patternProperties")
        if isinstance(named, dict):
            self.patterns += len(cast("dict[str, Any]", named))
        reference = rules.get("$ref")
        if isinstance(reference, str) and not _POINTER.match(reference):
            self.others += 1
        for word in _OTHER:
            if isinstance(rules.get(word), str) and not (root and word in {"$id", "id"}):
                self.others += 1


_decode = msgspec.json.Decoder(float_hook=number).decode
_POINTER = re.compile(r"#(/|$)")
_INDEX = re.compile(r"[0-9]{1,6}")
_OTHER: Final = ("$id", "id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef")


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


class _Weighing:
    """Follows a schema and its references, without a library: a sum that bounds every check."""

    def __init__(self, schema: Any) -> None:
        """Prepare."""
        self._root = schema
        self._weights: dict[int, tuple[int | None, int, int]] = {}
        """By identity: (weight, how deep it nests, schemas in it with references written out); in
        the making: None, 0 and 1."""

    def weight(self) -> int | None:
        """Return the number of rules, references followed; None if a check may cost more.

        Raises:
            BadSchema: References lead back to where they began, or nest too deep.
        """
        self._refuse_circles()
        return self._of(self._root, 0)[0]

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
        total: int | None = 1
        deepest, written_out = 0, 1
        for word, value in rules.items():
            if not self._is_flat(word, value):
                total = None
            elif total is not None and isinstance(value, list | dict) and word in _FLAT:
                total += 0 if word in _DEFINING else len(cast("Sequence[Any]", value))
        for _, part in self._parts(rules):
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

    def _is_flat(self, word: str, value: Any) -> bool:
        if word == "$ref":
            return True
        if word == "format":
            return isinstance(value, str) and value in _FLAT_FORMATS
        return word in _FLAT or word in _MAPS or word in _LISTS or word in _ONES

    def _parts(self, rules: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the schemas that a schema applies, each with its keyword."""
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
            name = _unquoted(word).replace("~1", "/").replace("~0", "~")
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

    def _refuse_circles(self) -> None:
        """Refuse a schema that applies itself to the same value: nothing would ever fit or not."""
        done: set[int] = set()
        for start in self._reached():
            path: list[tuple[int, Iterator[tuple[str, Any]]]] = []
            open_: set[int] = set()
            self._enter(start, path, open_, done)
            while path:
                here, parts = path[-1]
                for word, part in parts:
                    if word not in _HERE or not isinstance(part, dict):
                        continue
                    if id(cast("Any", part)) in open_:
                        raise BadSchema((), "a `$ref` that leads back to itself")
                    self._enter(cast("dict[str, Any]", part), path, open_, done)
                    break
                else:
                    path.pop()
                    open_.discard(here)

    def _enter(
        self,
        rules: dict[str, Any],
        path: list[tuple[int, Iterator[tuple[str, Any]]]],
        open_: set[int],
        done: set[int],
    ) -> None:
        if id(rules) not in done:
            done.add(id(rules))
            open_.add(id(rules))
            path.append((id(rules), self._parts(rules)))

    def _reached(self) -> list[dict[str, Any]]:
        """Return every schema that the root applies to anything."""
        found: dict[int, dict[str, Any]] = {}
        waiting = [self._root]
        while waiting:
            schema = waiting.pop()
            if isinstance(schema, dict) and id(cast("Any", schema)) not in found:
                rules = found[id(cast("Any", schema))] = cast("dict[str, Any]", schema)
                waiting += [part for _, part in self._parts(rules)]
        return [*found.values()]


def _unquoted(word: str) -> str:
    return unquote(word) if "%" in word else word


# -- explaining ---------------------------------------------------------------------------------


def _refusal(error: Any) -> BadSchema:
    """Say what is wrong with a schema, of which the library found it."""
    where: list[str | int] = list(error.instance_path)
    last = where[-1] if where else ""
    before = where[-2] if len(where) > 1 else ""
    kind = error.kind
    if kind.name == "$ref":
        return BadSchema(where, "a reference to nothing in this schema; none is fetched")
    if kind.name == "format" and (last == "pattern" or before == "patternProperties"):
        why = "no regular expression that takes linear time: no look-around, no back-reference, "
        return BadSchema(where, f"{why}{PATTERN_MAX_BYTES} bytes of memory at most")
    if kind.name == "type":
        return BadSchema(where, f"expected {' or '.join(kind.types)}")
    if last == "type":
        return BadSchema(where, "no type that JSON Schema knows")
    if kind.name:
        return BadSchema(where, f"not as JSON Schema has it ({kind.name})")
    return BadSchema(where, "not as JSON Schema has it")


def _misfit(error: Any) -> str:
    """Say where a value does not fit; of the value's own names only those that the schema has."""
    known = {word for word in error.evaluation_path if isinstance(word, str)}
    where = [
        word if isinstance(word, int) or word in known else "*" for word in error.instance_path
    ]
    name = error.kind.name
    why = _UNQUOTED.get(name) or error.message
    rule = _cut(pointer(error.schema_path), 120)
    return one_line(f"{_cut(pointer(where), 80)}: {_cut(why, 90)} (rule {rule})")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


_UNQUOTED: Final[Mapping[str, str]] = {
    "additionalProperties": "a property that is not allowed",
    "unevaluatedProperties": "a property that is not allowed",
    "propertyNames": "a property whose name is not allowed",
    "additionalItems": "an item that is not allowed",
    "unevaluatedItems": "an item that is not allowed",
}
"""Sentences in place of the library's, which quote names out of the value."""
