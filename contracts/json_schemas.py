"""JSON Schemas that others wrote: bounded, compiled once, and refused by name.

Compiling takes the library jsonschema-rs. Where it is not installed, only the bounds and the shape
of `response_format` are checked; workers have it and compile every schema before they use it
(docs/adr/0018-json-schema-by-a-library.md).
"""

import functools
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Final, cast

import msgspec

from turnline.contracts.errors import InvalidMessage
from turnline.contracts.messages import Configure, Inbound
from turnline.contracts.numbers import number
from turnline.contracts.schema_bounds import BadSchema, measured, one_line, pointer, shortened

SCHEMA_MAX_BYTES: Final = 256 * 1024
"""Largest schema, bytes of JSON."""
PATTERN_MAX_BYTES: Final = 256 * 1024
"""Memory that one compiled regular expression may take."""
_CACHE_BYTES: Final = 32 * 1024 * 1024
_CACHE_SCHEMAS: Final = 256

WRAPPERS: Final = frozenset({"json_schema", "json_object", "text"})
"""Values of `type` that mark OpenAI's `response_format` objects; no schema has them."""
_decode = msgspec.json.Decoder(float_hook=number).decode
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


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
    weight, patterns = measured(schema)
    found = library()
    if found is None:
        return Schema(source, None, weight), patterns
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
    return Schema(source, validator, weight), patterns


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
    detail = f" ({kind.name})" if kind.name else ""
    return BadSchema(where, f"not as JSON Schema has it{detail}")


def _misfit(error: Any) -> str:
    """Say where a value does not fit; of the value's own names only those that the schema has."""
    known = {word for word in error.evaluation_path if isinstance(word, str)}
    where = [
        word if isinstance(word, int) or word in known else "*" for word in error.instance_path
    ]
    name = error.kind.name
    why = _UNQUOTED.get(name) or error.message
    rule = shortened(pointer(error.schema_path), 120)
    return one_line(f"{shortened(pointer(where), 80)}: {shortened(why, 90)} (rule {rule})")


_UNQUOTED: Final[Mapping[str, str]] = {
    "additionalProperties": "a property that is not allowed",
    "unevaluatedProperties": "a property that is not allowed",
    "propertyNames": "a property whose name is not allowed",
    "additionalItems": "an item that is not allowed",
    "unevaluatedItems": "an item that is not allowed",
}
"""Sentences in place of the library's, which quote names out of the value."""
