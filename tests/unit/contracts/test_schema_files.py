"""The schema files say what the structs and the scripts say, and name what other languages need."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.support.recordings import REPOSITORY
from tests.unit.contracts.examples import EVENTS, INBOUND
from turnline.contracts.keys import shard_keys
from turnline.contracts.messages import Inbound
from turnline.contracts.protocol import Requests
from turnline.contracts.replies import TERMINAL, AnyEvent
from turnline.contracts.schema import (
    asyncapi,
    committed,
    documents,
    events_schema,
    inbound_schema,
)
from turnline.contracts.scripts import load_script, read_header

GOLDEN = Path(__file__).with_name("golden")


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON value."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            yield from walk(child)


def at(document: Any, pointer: str) -> Any:
    for step in pointer.removeprefix("#/").split("/"):
        document = document[step]
    return document


def faults(value: Any, schema: Any, root: Any) -> list[str]:
    """What keeps a value from fitting; knows the keywords that occur in our schemas."""
    if "$ref" in schema:
        return faults(value, at(root, schema["$ref"]), root)
    if "anyOf" in schema:
        tried = [faults(value, branch, root) for branch in schema["anyOf"]]
        return [] if [] in tried else [f"fits no branch: {min(tried, key=len)}"]
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
        "null": type(None),
    }
    found = []
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return [f"{value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} is none of {schema['enum']}")
    if isinstance(value, dict):
        found += [f"no {name}" for name in schema.get("required", ()) if name not in value]
        for name, child in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            found += faults(child, inner, root)
    elif isinstance(value, list):
        found += [f for child in value for f in faults(child, schema.get("items", {}), root)]
    elif isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            found.append(f"{value!r} does not match")
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 2**31):
            found.append(f"{value!r} is too long or short")
    return found


def test_the_committed_files_are_up_to_date() -> None:
    """After a change of structs or submit.lua: `python -m turnline.contracts.schema --write`."""
    assert {name: committed(name) for name in documents()} == documents()


def test_the_command_checks_and_prints() -> None:
    """`--check` is for continuous integration."""
    run = subprocess.run(
        [sys.executable, "-m", "turnline.contracts.schema", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout == ""


@pytest.mark.parametrize(
    ("schema", "kind", "name"),
    [
        *((inbound_schema(), "inbound", name) for name in INBOUND),
        *((events_schema(), "events", name) for name in EVENTS),
    ],
)
def test_golden_bytes_fit_the_schema(schema: Any, kind: str, name: str) -> None:
    """What we write is what we promise."""
    value = json.loads((GOLDEN / kind / f"{name}.json").read_bytes())

    assert faults(value, schema, schema) == []
    wrong = {**value, "type": "nope"}
    assert faults(wrong, schema, schema) != []
    assert faults({k: v for k, v in value.items() if k != "conversation_id"}, schema, schema) != []


@pytest.mark.parametrize("document", [inbound_schema(), events_schema(), asyncapi()])
def test_references_lead_somewhere(document: Any) -> None:
    """Each `$ref` is in the same file; no keyword of OpenAPI is left."""
    for found in walk(document):
        if "$ref" in found:
            assert at(document, found["$ref"])
        assert not isinstance(found.get("discriminator"), dict)


def test_every_message_and_event_is_announced() -> None:
    """In its channel, by its tag, with its payload."""
    document = asyncapi()
    tags = {
        "inbox": {cls.__struct_config__.tag for cls in get_args(Inbound)},
        "events": {cls.__struct_config__.tag for cls in get_args(AnyEvent)},
        "replies": {cls.__struct_config__.tag for cls in TERMINAL},
        "toolCalls": {"tool_request"},
    }
    assert document["channels"].keys() == tags.keys()

    for channel, expected in tags.items():
        assert document["channels"][channel]["messages"].keys() == expected
        parameters = re.findall(r"\{(\w+)\}", document["channels"][channel]["address"])
        assert list(document["channels"][channel]["parameters"]) == parameters
    for tag, message in document["components"]["messages"].items():
        schema = at(document, message["payload"]["$ref"])
        if tag != "tool_request":  # the one kind in its channel
            assert schema["properties"]["type"]["enum"] == [tag]


def test_a_tool_request_fits_what_is_announced() -> None:
    """The channel is the stream that workers write to, and the payload what they write."""
    document = asyncapi()
    channel = document["channels"]["toolCalls"]
    payload = {"$ref": document["components"]["messages"]["tool_request"]["payload"]["$ref"]}
    written = json.loads((GOLDEN / "records" / "tool_request.json").read_bytes())

    assert channel["address"].replace("{tag}", "{s0}") == shard_keys(0).tool_calls
    assert faults(written, payload, document) == []
    assert faults({**written, "deadline_at_ms": "soon"}, payload, document) != []
    for operation in document["operations"].values():
        for reference in (operation["channel"], *operation["messages"]):
            assert at(document, reference["$ref"])


def test_submitting_needs_nothing_that_is_not_written_there() -> None:
    """Keys and arguments as documented are, filled in, those that our own client sends."""
    document = asyncapi()["x-turnline-submit"]
    call = Requests().submission(INBOUND["interrupt"]).call

    def fill(template: str) -> str:
        return template.replace("{tag}", "{s0}").replace("{conversation_id}", "Gespräch-42")

    assert document["sha1"] == call.script.sha
    assert [fill(row["key"]) for row in document["keys"]] == list(call.keys)
    sent = {row["name"]: value for row, value in zip(document["args"], call.args, strict=True)}
    said = {row["name"]: fill(row["value"]) for row in document["args"]}
    assert str(sent["inbox_limit"]) in said["inbox_limit"]
    told = {"turn_id", "message", "digest", "act", "job_data", "trace_id", "inbox_limit"}
    spelled_out = said.keys() - told - {"shards", "told_from", "deliver_at_ms", "lane"}
    assert {name: said[name] for name in spelled_out} == {
        name: str(sent[name]) for name in spelled_out
    }
    job = re.sub(r'"et":\d+', '"et":<now, epoch ms>', sent["job_data"].decode())
    assert said["job_data"] == job
    assert [row["answer"] for row in document["returns"]] == [
        *("accepted", "duplicate", "elsewhere", "moving"),
        *("busy", "budget_exceeded", "tenant_full", "inbox_full", "queue_full", "queue_late"),
    ]
    description = asyncapi()["info"]["description"]
    for row in (*document["keys"], *document["args"]):
        assert row.get("key", row["name"]) in description


def test_a_header_is_read_whole() -> None:
    """Every key and argument of the script has its row."""
    script = load_script("submit")
    header = read_header(script)

    for rows, table in ((header.keys, "KEYS"), (header.args, "ARGV")):
        (names,) = re.findall(rf"local ([\w,\s]+) =\s+unpack\({table}\)", script.text)
        assert [row.name for row in rows] == re.findall(r"\w+", names)
