"""Items of a reply that stand beside its text and calls: kept byte for byte, refused by name."""

import json
import re
import traceback
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from tests.unit.contracts.examples import CALL, REPLY_ENTRIES, THOUGHT
from turnline.contracts import InvalidMessage, conversation, messages, replies, server_tools
from turnline.contracts.conversation import ContextEntry, decode_context_entry
from turnline.contracts.protocol import Requests

REASONING = {"type": "reasoning", "summary": [], "encrypted_content": "blob-1"}
CALLS = [msgspec.to_builtins(CALL)]


OBJECT = "an object with a `type`, and numbers within range"
LEVELS = "at most 100 levels"


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def submitted(kind: str, entry: dict[str, Any]) -> bytes:
    shown = [{"role": "user", "content": "hi"}, {"role": "assistant", **entry}]
    message = json.dumps({"type": kind, "conversation_id": "c", "messages": shown})
    message = message.replace("7.25e+300", "7.25e+309")  # which Python cannot write
    return Requests().submission(message.encode()).call.args[2]


def with_items(*items: Any, **entry: Any) -> dict[str, Any]:
    return {"content": "Hello", **entry, "reply_items": {"model": "grok-4.7", "items": items}}


@pytest.mark.parametrize("entry", REPLY_ENTRIES)
def test_items_keep_their_bytes(entry: ContextEntry) -> None:
    """The provider compares what it gets back, byte for byte."""
    data = msgspec.json.encode(entry)

    assert msgspec.json.encode(decode_context_entry(data)) == data
    assert THOUGHT in data


def test_an_item_is_kept_as_it_is_written() -> None:
    """Also where another program would write it in another way: nobody looks into it."""
    written = b'{"type": "reasoning",  "n": 1.50, "u": "\\u00e9"}'
    data = b'{"role":"assistant","content":"a","reply_items":{"model":"m","items":[{"item":%b}]}}'

    assert written in msgspec.json.encode(decode_context_entry(data % written))


@pytest.mark.parametrize("kind", ["context_append", "context_replace"])
@pytest.mark.parametrize(
    "entry",
    [
        with_items(),
        with_items({"item": REASONING}),
        with_items({"item": REASONING}, {"item": REASONING}, {"chars": 5, "item": REASONING}),
        with_items({"calls": 1, "item": REASONING}, tool_calls=CALLS, content=None),
        with_items({"chars": 3, "item": REASONING}, content=[{"type": "text", "text": "a👀b"}]),
        with_items({"item": {"type": "web_search_call", "action": {}}}),
        with_items({"item": {"type": "a_later_kind", "more": [1, None]}}),
    ],
)
def test_a_producer_may_bring_items_along(kind: str, entry: dict[str, Any]) -> None:
    """A conversation that began elsewhere goes on with the model's thoughts."""
    submitted(kind, entry)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("kind", ["context_append", "context_replace"])
@pytest.mark.parametrize(
    ("entry", "field", "expected"),
    [
        (with_items({"item": [1]}), ".items[0].item", OBJECT),
        (with_items({"item": "blob-1"}), ".items[0].item", OBJECT),
        (with_items({"item": {"summary": []}}), ".items[0].item", OBJECT),
        (with_items({"item": {"type": 7}}), ".items[0].item", OBJECT),
        (with_items({"item": {"type": "x", "n": 7.25e300}}), ".items[0].item", OBJECT),
        (with_items({"item": {"type": "x", "n": deep(99)}}), ".items[0].item", LEVELS),
        (with_items({"item": {"type": "x", "n": deep(900)}}), ".items[0].item", LEVELS),
        (
            with_items({"item": REASONING}, {"item": {"type": "message", "content": "blob-1"}}),
            ".items[1].item.type",
            "none of function_call, message",
        ),
        (
            with_items({"item": {"type": "function_call", "call_id": "blob-1"}}),
            ".items[0].item.type",
            "none of function_call, message",
        ),
        (
            with_items({"chars": 6, "item": REASONING}),
            ".items[0].chars",
            "0 to 5: in the order of the items, within the entry",
        ),
        (
            with_items({"chars": 3, "item": REASONING}, {"chars": 2, "item": REASONING}),
            ".items[1].chars",
            "3 to 5: in the order of the items, within the entry",
        ),
        (
            with_items({"calls": 1, "item": REASONING}),
            ".items[0].calls",
            "0 to 0: in the order of the items, within the entry",
        ),
        (with_items({"chars": -1, "item": REASONING}), ".items[0].chars", "Expected `int` >= 0"),
        (with_items({}), ".items[0].item", "this field is required"),
        ({"content": "a", "reply_items": {"items": []}}, ".model", "this field is required"),
        ({"content": "a", "reply_items": {"model": "m"}}, ".items", "this field is required"),
        ({"content": "a", "reply_items": [1]}, "", "Expected `object | null`, got `array`"),
    ],
)
def test_items_that_do_not_fit_their_entry_are_refused(
    kind: str, entry: dict[str, Any], field: str, expected: str
) -> None:
    """By place; of what they say nothing is repeated."""
    with pytest.raises(InvalidMessage) as caught:
        submitted(kind, entry)

    assert caught.value.field == "messages[1].reply_items" + field
    assert caught.value.expected == expected
    assert "blob" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.promise("P9")
def test_an_entry_of_items_alone_is_refused() -> None:
    """There would be nothing to read in it."""
    with pytest.raises(InvalidMessage) as caught:
        submitted("context_append", with_items({"item": REASONING}, content=None))

    assert caught.value.field == "messages[1].content"


@pytest.mark.promise("P9")
def test_items_count_for_the_size_of_a_message() -> None:
    """They have no limit of their own beside it."""
    thought = {**REASONING, "encrypted_content": "A" * 1024 * 1024}
    with pytest.raises(InvalidMessage, match="at most 1048576 bytes"):
        submitted("context_append", with_items({"item": thought}))


def test_what_was_stored_is_read_whatever_place_it_names() -> None:
    """An entry whose text was cut afterwards stays readable; only who submits is held to it."""
    entry = {"role": "assistant", **with_items({"chars": 9, "item": REASONING}, content="Hi")}

    assert decode_context_entry(json.dumps(entry).encode())


@pytest.mark.parametrize("module", [conversation, messages, replies, server_tools])
def test_a_later_version_may_add_fields(module: Any) -> None:
    """Readers of this version pass over them, as earlier ones pass over what is new here."""
    structs = [it for it in vars(module).values() if isinstance(it, type(msgspec.Struct))]

    assert len(structs) > 4
    assert not [it for it in structs if it.__struct_config__.forbid_unknown_fields]


def test_every_role_is_covered() -> None:
    """Replies are the only entries with items."""
    assert [
        role.__struct_config__.tag
        for role in get_args(ContextEntry)
        if "reply_items" in role.__struct_fields__
    ] == ["assistant"]


def test_the_example_of_the_page_is_accepted() -> None:
    """Items and places, as a producer in any language writes them."""
    page = (Path(__file__).parents[3] / "docs/responses.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)

    assert submitted("context_append", json.loads(example))
