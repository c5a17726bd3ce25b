"""Bytes that were once on the wire stay readable, and what is written today looks the same."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from tests.unit.contracts.examples import EVENTS, INBOUND, RECORDS
from turnline.contracts.conversation import (
    CallEntry,
    ConversationSettings,
    Totals,
    decode_context_entry,
)
from turnline.contracts.messages import Inbound, decode, encode
from turnline.contracts.msgspec_sentences import TYPES
from turnline.contracts.replies import (
    AnyEvent,
    Receipt,
    decode_event,
    decode_record,
    decode_tool_request,
    encode_event,
)

GOLDEN = Path(__file__).with_name("golden")
READERS = {
    "receipt": msgspec.json.Decoder(Receipt).decode,
    "turn_record": decode_record,
    "tool_request": decode_tool_request,
    "settings": msgspec.json.Decoder(ConversationSettings).decode,
    "call_entry": msgspec.json.Decoder(CallEntry).decode,
    "totals": msgspec.json.Decoder(Totals).decode,
    "context_entry": decode_context_entry,
}


def golden(kind: str, name: str) -> bytes:
    return (GOLDEN / kind / f"{name}.json").read_bytes()


def names(kind: str) -> set[str]:
    return {path.name.removesuffix(".json") for path in (GOLDEN / kind).iterdir()}


def tags(union: Any) -> set[str]:
    return {member.__struct_config__.tag for member in get_args(union)}


@pytest.mark.parametrize("name", INBOUND)
def test_a_message_is_written_as_its_golden_bytes(name: str) -> None:
    """Another version of the producer would have written the same."""
    assert encode(INBOUND[name]) == golden("inbound", name)


@pytest.mark.parametrize("name", sorted(names("inbound")))
def test_a_golden_message_is_read(name: str) -> None:
    """Messages of earlier versions wait in inboxes while workers are replaced."""
    assert decode(golden("inbound", name)) == INBOUND[name]


@pytest.mark.parametrize("name", sorted(names("events")))
def test_a_golden_event_is_read_and_written(name: str) -> None:
    """Readers and workers of different versions share event streams."""
    assert decode_event(golden("events", name)) == EVENTS[name]
    assert encode_event(EVENTS[name]) == golden("events", name)


@pytest.mark.parametrize("name", sorted(names("records")))
def test_a_golden_record_is_read_and_written(name: str) -> None:
    """What Redis keeps for the retention time outlives the version that wrote it."""
    read = READERS[name.partition(".")[0]](golden("records", name))

    assert msgspec.json.encode(read) == golden("records", name)
    assert msgspec.json.encode(RECORDS[name]) == golden("records", name)


@pytest.mark.parametrize(("kind", "union"), [("inbound", Inbound), ("events", AnyEvent)])
def test_every_type_has_a_golden_file(kind: str, union: Any) -> None:
    """A new message comes with its bytes, one file with every field set."""
    assert {name for name in names(kind) if "." not in name} == tags(union)


@pytest.mark.parametrize(("kind", "union"), [("inbound", Inbound), ("events", AnyEvent)])
def test_golden_files_show_every_field(kind: str, union: Any) -> None:
    """A new field is added to the golden files, or a new file has it."""
    for member in get_args(union):
        tag = member.__struct_config__.tag
        files = [name for name in names(kind) if name.partition(".")[0] == tag]
        shown = set().union(*(msgspec.json.decode(golden(kind, name)) for name in files))
        assert shown == {*member.__struct_encode_fields__, "type"}, tag


def test_each_kind_of_record_has_a_reader() -> None:
    """No golden file lies there unread."""
    assert {name.partition(".")[0] for name in names("records")} == READERS.keys()
    assert names("records") == RECORDS.keys()
    assert names("inbound") == INBOUND.keys()
    assert names("events") == EVENTS.keys()


def test_the_error_for_an_unknown_type_lists_all_types() -> None:
    """The list in the error text does not go stale."""
    assert set(TYPES.split(", ")) == tags(Inbound)
