"""Whether a reply fits a JSON Schema."""

from typing import Any

import pytest

from worker.reply_format import InvalidReply, parsed_reply, request_format

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
        ({"type": "json_schema", "json_schema": {"schema": {"type": "null"}}}, "null", "1"),
    ],
)
def test_values(schema: dict[str, Any], good: str, bad: str) -> None:
    """Each keyword takes what it should, and nothing else."""
    parsed_reply(good, schema)
    with pytest.raises(InvalidReply):
        parsed_reply(bad, schema)


@pytest.mark.parametrize("text", ["", "{", "sorry", "[" * 100_000])
def test_what_is_no_json(text: str) -> None:
    """It is named, not repeated."""
    with pytest.raises(InvalidReply, match="not JSON"):
        parsed_reply(text, {"type": "object"})


def test_what_is_asked_for() -> None:
    """A bare schema is wrapped; OpenAI's object stays; text is not parsed."""
    assert request_format({"type": "object"})["json_schema"]["schema"] == {"type": "object"}
    assert request_format({"type": "json_object"}) == {"type": "json_object"}
    assert parsed_reply("anything", {"type": "text"}) is None
