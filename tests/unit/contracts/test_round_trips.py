"""Whatever the structs can say survives the wire."""

import re
import sys
import unicodedata
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from tests.unit.contracts.generated import IDS, NOT_IN_IDS, structs
from turnline.contracts.conversation import (
    ID_PATTERN,
    CallEntry,
    ContextEntry,
    ConversationSettings,
    SettingsChange,
    Totals,
    Usage,
    decode_context_entry,
)
from turnline.contracts.job_format import conversation_job, deserialize_job, serialize_job
from turnline.contracts.messages import Inbound, decode, encode, validated
from turnline.contracts.readers import is_group_lost
from turnline.contracts.replies import AnyEvent, Receipt, TurnRecord, decode_event, encode_event


def test_ids_are_tried_with_every_character_that_they_may_have() -> None:
    """Of letters, numbers, punctuation and symbols: the tests below make ids of these."""
    shown = (c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c)[0] in "LNPS")

    assert "".join(c for c in shown if not re.match(ID_PATTERN, c)) == NOT_IN_IDS


@pytest.mark.parametrize("message", get_args(Inbound), ids=lambda cls: cls.__name__)
def test_messages_survive(message: type[msgspec.Struct]) -> None:
    """What a producer built is what a worker reads."""

    @given(structs(message))
    def holds(value: Inbound) -> None:
        assert validated(value) == value
        assert decode(encode(value).decode()) == value

    holds()


@pytest.mark.parametrize("event", get_args(AnyEvent), ids=lambda cls: cls.__name__)
def test_events_survive(event: type[msgspec.Struct]) -> None:
    """What a worker published is what a reader gets, with its position."""

    @given(structs(event))
    def holds(value: AnyEvent) -> None:
        assert decode_event(encode_event(value)) == value
        placed = decode_event(encode_event(value), "7-1")
        assert placed == msgspec.structs.replace(value, event_id="7-1")

    holds()


@pytest.mark.parametrize(
    "record",
    [Receipt, TurnRecord, ConversationSettings, SettingsChange, CallEntry, Totals],
    ids=lambda cls: cls.__name__,
)
def test_records_survive(record: type[msgspec.Struct]) -> None:
    """What is stored is what is read later."""
    decoder = msgspec.json.Decoder(record)

    @given(structs(record))
    def holds(value: msgspec.Struct) -> None:
        data = msgspec.json.encode(value)
        assert msgspec.json.encode(decoder.decode(data)) == data

    holds()


@given(st.one_of(*map(structs, get_args(ContextEntry))))
def test_context_messages_survive(entry: ContextEntry) -> None:
    """The context is stored as the provider is asked with it."""
    assert decode_context_entry(msgspec.json.encode(entry)) == entry


@given(structs(ConversationSettings), structs(SettingsChange))
def test_a_change_sets_what_it_names_and_nothing_else(
    settings: ConversationSettings, change: SettingsChange
) -> None:
    """Null clears a setting, an absent one stays, also after a trip over the wire."""
    data = msgspec.json.encode(change)
    named = msgspec.json.decode(data)

    changed = msgspec.json.decode(data, type=SettingsChange).applied_to(settings)

    for field in ConversationSettings.__struct_fields__:
        source = change if field in named else settings
        assert getattr(changed, field) == getattr(source, field)


@pytest.mark.promise("P7")
@given(structs(Usage), structs(Usage))
def test_usage_is_added_field_by_field(one: Usage, other: Usage) -> None:
    """No field is forgotten in a sum, and none is derived from others."""
    both = one + other

    for field in Usage.__struct_fields__:
        assert getattr(both, field) == getattr(one, field) + getattr(other, field)


def test_the_cost_is_counted_in_ticks_of_a_ten_billionth_dollar() -> None:
    """As xAI reports it."""
    assert Usage(cost_usd_ticks=25_000_000_000).cost_usd == 2.5


@given(IDS, st.integers(0, 2**53))
def test_a_job_is_arqs_in_json(conversation_id: str, now_ms: int) -> None:
    """The five fields that ARQ stores, through the serializer hooks it is given."""
    job = deserialize_job(conversation_job(conversation_id, now_ms))

    assert job == {"t": 1, "f": "run_conversation", "a": [conversation_id], "k": {}, "et": now_ms}
    assert deserialize_job(serialize_job(job)) == job


def test_a_failed_job_can_be_stored() -> None:
    """ARQ keeps exceptions as results; JSON takes their `repr`."""
    assert deserialize_job(serialize_job({"r": KeyError("x")})) == {"r": "KeyError('x')"}


@pytest.mark.parametrize("name", ["turn_started", "text_delta", "turn_completed"])
def test_fields_of_later_versions_are_ignored(name: str) -> None:
    """An old reader reads a new worker's events."""
    data = {"type": name, "conversation_id": "c", "turn_id": "t", "text": "x", "later": [1]}

    assert decode_event(msgspec.json.encode(data)).turn_id == "t"


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("NOGROUP No such key 'x' or consumer group 'g' in XREADGROUP with GROUP option", True),
        ("UNBLOCKED the stream key no longer exists", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_servers_have_two_words_for_a_lost_group(text: str, is_lost: bool) -> None:
    """A reader makes it anew on either; another error is not hidden."""
    assert is_group_lost(ResponseError(text)) == is_lost
