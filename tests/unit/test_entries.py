"""Entries of an inbox, as a worker reads them."""

import pytest

from turnline.contracts import UserMessage
from turnline.contracts.messages import encode
from turnline.worker import effects
from turnline.worker.effects import Entry


def test_a_message_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often, and by whomever, it is asked for; and only if it is."""
    decoded: list[bytes] = []

    def decode(data: bytes) -> UserMessage:
        decoded.append(data)
        return UserMessage(conversation_id="c", text="hi")

    monkeypatch.setattr(effects, "decode", decode)
    entries = [Entry(f"{n}-0", {b"m": b"%d" % n}) for n in range(2)]

    assert entries[1].message is entries[1].message
    assert entries[1].fault == ""
    assert decoded == [b"1"]


@pytest.mark.promise("P9")
@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"type":"user_message"}'])
def test_a_broken_message_keeps_its_bytes(data: bytes) -> None:
    """They are what a dead letter shows, with the reason."""
    entry = Entry("1-0", {b"m": data})

    assert entry.message is None
    assert entry.fault
    assert entry.data == data


def test_a_whole_message_has_no_fault() -> None:
    """It is what was sent."""
    message = UserMessage(conversation_id="c", text="hi")

    entry = Entry("1-0", {b"m": encode(message)})

    assert (entry.message, entry.fault) == (message, "")
