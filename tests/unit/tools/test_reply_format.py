"""Whether a reply fits a JSON Schema."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from turnline.contracts.schema_bounds import BadSchema
from turnline.worker.schema_checking import Checker
from turnline.worker.turn.reply_format import InvalidReply, parsed_reply, request_format

NODE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture
async def checker() -> AsyncIterator[Checker]:
    """What replies are checked by."""
    checker = Checker()
    yield checker
    await checker.close()


async def parsed(text: str, asked: dict[str, Any], checker: Checker) -> Any:
    """Return a reply's value, as a turn does."""
    schema = checker.schemas.of_reply(asked)
    assert schema is not None
    return await parsed_reply(text, schema, checker)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, "1", "1.5"),
        ({"type": "number"}, "1.5", "true"),
        ({"type": ["string", "null"]}, "null", "1"),
        ({"type": "string", "minLength": 2, "maxLength": 3}, '"ab"', '"a"'),
        ({"type": "string", "pattern": "^a"}, '"ab"', '"ba"'),
        ({"enum": ["a", 1]}, "1", "true"),
        ({"const": {"a": 1}}, '{"a":1}', "{}"),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 3}, "2", "3"),
        ({"type": "number", "multipleOf": 0.5}, "1.5", "1.3"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, "[1]", '["a"]'),
        ({"type": "array", "uniqueItems": True, "maxItems": 2}, "[1,2]", "[1,1]"),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "items": False},
            "[null]",
            "[null,1]",
        ),
        ({"type": "object", "required": ["a"]}, '{"a":1}', "{}"),
        ({"type": "object", "additionalProperties": False}, "{}", '{"a":1}'),
        ({"additionalProperties": {"type": "integer"}}, '{"a":1}', '{"a":"b"}'),
        ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "1", "4"),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, "2", "3"),
        ({"not": {"type": "null"}}, "1", "null"),
        (NODE, '{"next":{"next":null}}', '{"next":{"next":1}}'),
        ({"type": "json_object"}, "{}", "[]"),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}},
            "null",
            "1",
        ),
        ({"type": "integer"}, "1.0", "1.1"),
        ({"patternProperties": {"^a": {"type": "integer"}}}, '{"a":1,"b":"x"}', '{"ab":"x"}'),
        (
            {
                "patternProperties": {"^a": {}},
                "properties": {"b": {}},
                "additionalProperties": False,
            },
            '{"a":1,"b":2}',
            '{"c":1}',
        ),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, '{"a":1,"b":1}', '{"a":1}'),
        ({"if": {"required": ["a"]}, "else": {"required": ["b"]}}, '{"a":1}', "{}"),
        ({"contains": {"type": "integer"}, "minContains": 2}, "[1,2]", '[1,"a"]'),
        ({"format": "date-time"}, '"2026-11-28T10:00:00Z"', '"yesterday"'),
        ({"format": "uuid"}, '"8c3e1a86-4a05-4c6c-9f0c-3f9f6c1f9a10"', '"8c3e"'),
        ({"format": "words-of-ours"}, '"anything"', '{"'),
        ({"dependentRequired": {"a": ["b"]}}, '{"b":1}', '{"a":1}'),
        ({"dependentSchemas": {"a": {"required": ["b"]}}}, "{}", '{"a":1}'),
        ({"propertyNames": {"maxLength": 1}}, '{"a":1}', '{"ab":1}'),
        ({"properties": {"a": {}}, "unevaluatedProperties": False}, '{"a":1}', '{"b":1}'),
        ({"properties": {"": {"type": "integer"}, "a b": {}}}, '{"":1}', '{"":"x"}'),
        ({"properties": {"$ref": {"type": "null"}}}, '{"$ref":null}', '{"$ref":1}'),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}]},
            "[null,1]",
            "[1]",
        ),
        ({"$anchor": "here", "items": {"$ref": "#here"}, "type": "array"}, "[[]]", "[1]"),
        (
            {"$id": "https://example.com/a", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": False}},
            "[]",
            "[1]",
        ),
        ({"pattern": "^(a+)+$"}, '"aaa"', '"' + "a" * 5_000 + 'b"'),
    ],
)
async def test_values(schema: dict[str, Any], good: str, bad: str, checker: Checker) -> None:
    """Each keyword takes what it should, and nothing else."""
    await parsed(good, schema, checker)
    with pytest.raises(InvalidReply):
        await parsed(bad, schema, checker)


@pytest.mark.parametrize("text", ["", "{", "sorry", "[" * 100_000, '"\\ud800"', "NaN", "1e999"])
async def test_what_is_no_json(text: str, checker: Checker) -> None:
    """It is named, not repeated."""
    with pytest.raises(InvalidReply, match=r"not JSON|does not fit"):
        await parsed(text, {"type": "object"}, checker)


async def test_a_reply_that_nests_too_deep_is_refused_by_name(checker: Checker) -> None:
    """Some hundred levels; an error of the library's own is no error of the worker."""
    for schema in ({"enum": [{"a": 1}]}, {"items": {"$ref": "#"}, "type": "array"}):
        with pytest.raises(InvalidReply, match="does not fit"):
            await parsed("[" * 900 + "1" + "]" * 900, schema, checker)


async def test_an_error_quotes_only_the_schema(checker: Checker) -> None:
    """What the reply says, and names that it made up, do not appear; the line is bounded."""
    schema: dict[str, Any] = {
        "properties": {
            "number": {"type": "integer"},
            "few": {"enum": ["x" * 10_000, "y"]},
            "more": {"additionalProperties": {"type": "null"}},
        },
        "additionalProperties": False,
    }
    for text in (
        '{"number":"secret"}',
        '{"few":"secret"}',
        '{"secret":1}',
        '{"more":{"secret":1}}',
        '["secret"]',
    ):
        with pytest.raises(InvalidReply) as raised:
            await parsed(text, schema | {"type": "object"}, checker)
        assert "secret" not in str(raised.value)
        assert len(str(raised.value)) < 400
        assert "#" in str(raised.value)
    with pytest.raises(InvalidReply, match=r"#/number: .*integer.*rule #/properties/number/type"):
        await parsed('{"number":"seven"}', schema, checker)


def test_what_is_asked_for() -> None:
    """A bare schema is wrapped; OpenAI's object stays; text is not parsed."""
    assert request_format({"type": "object"})["json_schema"]["schema"] == {"type": "object"}
    assert request_format({"type": "json_object"}) == {"type": "json_object"}
    assert request_format({"type": ["object", "null"]})["type"] == "json_schema"
    assert Checker().schemas.of_reply({"type": "text"}) is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"type": "json_schema"}, "#/json_schema: expected an object"),
        ({"type": "json_schema", "schema": {}}, "#/schema: unknown here"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "#/json_schema/name"),
        ({"type": "json_schema", "json_schema": {"name": "a b"}}, "#/json_schema/name"),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
            "#/json_schema/schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"required": 5}}},
            "#/required: expected array",
        ),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": 1.5}}, "strict"),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": []}}, "strict"),
        ({"type": "json_object", "schema": {}}, "#/schema: unknown here"),
        ({"type": "text", "max": 1}, "#/max: unknown here"),
        ({"type": "jsonschema"}, "#/type: no type that JSON Schema knows"),
        ({"required": 5}, "#/required: expected array"),
        ({"properties": []}, "#/properties: expected object"),
        ({"items": {"minLength": -1}}, "#/items/minLength"),
        ({"$ref": "https://example.com/schema"}, "none is fetched"),
        ({"$ref": "file:///etc/passwd"}, "none is fetched"),
        ({"$ref": "#/nowhere"}, "a reference to nothing"),
        ({"$schema": "https://example.com/mine"}, "a draft that is not known"),
        ({"pattern": "(?=a)"}, "#/pattern: no regular expression that takes linear time"),
        ({"pattern": "(a)\\1"}, "#/pattern: no regular expression that takes linear time"),
        ({"patternProperties": {"(": {}}}, "#/patternProperties/(: no regular expression"),
        ({"type": "object", "oneOf": [{"$ref": "#"}, {"$ref": "#"}]}, "leads back to itself"),
    ],
)
def test_what_cannot_be_asked_for_is_named(asked: dict[str, Any], words: str) -> None:
    """Where it is wrong and why, in one line."""
    with pytest.raises(BadSchema) as raised:
        Checker().schemas.of_reply(asked)
    assert words in str(raised.value)
    assert len(str(raised.value)) <= 300
