"""Schemas in messages are refused where they are sent, by field, place and reason."""

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from tests.support.recordings import REPOSITORY
from turnline.contracts import Configure, InvalidMessage, UserMessage
from turnline.contracts.conversation import FunctionDefinition, SettingsChange, ToolDefinition
from turnline.contracts.json_schemas import Schemas
from turnline.contracts.protocol import Requests
from turnline.contracts.schema_bounds import BadSchema, one_line

BAD: dict[str, Any] = {"properties": {"a": {"required": 5}}}


def tool(parameters: dict[str, Any]) -> ToolDefinition:
    return ToolDefinition(function=FunctionDefinition(name="f", parameters=parameters))


def configure(**settings: Any) -> Configure:
    return Configure(conversation_id="c", settings=SettingsChange(**settings))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (UserMessage(conversation_id="c", text="x", response_format=BAD), "response_format"),
        (configure(response_format=BAD), "settings.response_format"),
        (configure(tools=(tool({}), tool(BAD))), "settings.tools[1].function.parameters"),
    ],
)
def test_submit_refuses_a_schema_by_name(message: Any, field: str) -> None:
    """The field of the message, the place in the schema, the reason."""
    with pytest.raises(InvalidMessage) as raised:
        Requests().submission(message)
    assert raised.value.field == field
    assert raised.value.expected == "#/properties/a/required: expected array"


def test_arguments_have_names() -> None:
    """Parameters that take no object are refused; none at all are fine."""
    Requests().submission(configure(tools=(tool({}),)))
    with pytest.raises(InvalidMessage, match="expected `object`"):
        Requests().submission(configure(tools=(tool({"type": "string"}),)))


def test_every_name_of_a_property_is_allowed() -> None:
    """Also words of Python, of JSON Schema, and none."""
    names = ["from", "class", "a-b", "a b", "$", "$ref", "\u00e9", "", "a/b~c", "\u202e"]
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}
    compiled = Schemas().compiled(schema)
    for name in names:
        assert compiled.fault({name: 1}) is None
        assert compiled.fault({name: "x"}) is not None


def test_a_client_without_the_library_leaves_it_to_the_worker() -> None:
    """The schema passes, within its bounds and of a known wrapper."""
    program = (
        "import sys; sys.modules['jsonschema_rs'] = None\n"
        "from turnline.contracts import InvalidMessage, UserMessage\n"
        "from turnline.contracts.protocol import Requests\n"
        "def say(asked):\n"
        "    message = UserMessage(conversation_id='c', text='x', response_format=asked)\n"
        "    try:\n"
        "        Requests().submission(message)\n"
        "    except InvalidMessage as error:\n"
        "        return error.field\n"
        "print(say({'required': 5}), say({'type': 'json_schema'}), say({'enum': [1] * 20_000}))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["None", "response_format", "response_format"]


def test_what_is_kept_is_bounded() -> None:
    """In number and in bytes; a refusal is kept as well and reads the same."""
    schemas = Schemas(most=3, most_bytes=100_000)
    first = schemas.compiled({"const": 0})
    assert schemas.compiled({"const": 0}) is first
    for n in range(1, 5):
        schemas.compiled({"const": n})
    assert len(schemas._kept) == 3
    assert schemas.compiled({"const": 0}) is not first
    schemas.compiled({"const": "x" * 6_230})
    assert len(schemas._kept) == 1
    told: list[str] = []
    for _ in range(2):
        with pytest.raises(BadSchema) as raised:
            schemas.compiled({"required": 5})
        told.append(str(raised.value))
    assert told == ["#/required: expected array"] * 2
    assert schemas._bytes <= 100_000


@pytest.mark.parametrize("text", ["a", "x" * 300, "x" * 301, "\x7f" * 43, "\x7f" * 300, "\n" * 49])
def test_a_line_is_bounded_also_where_characters_are_written_out(text: str) -> None:
    """A character that cannot be shown takes six."""
    line = one_line(text)

    assert len(line) <= 300
    assert line.isprintable()
    assert line == text or len(text) > 300 or not text.isprintable()


@pytest.mark.parametrize("word", ["allOf", "anyOf", "oneOf"])
def test_references_that_double_at_each_step_are_refused_at_once(word: str) -> None:
    """Written out they would be 2 to the power of 46 rules, which no library ends with."""
    defs = {
        f"d{n}": {word: [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(46)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": {**defs, "d46": {"required": ["a"]}}}

    with pytest.raises(BadSchema, match="repeat its rules"):
        Schemas().read(msgspec.json.encode(schema))
