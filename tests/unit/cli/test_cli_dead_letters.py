"""Dead letters: how they are read and under which id they are tried again."""

import msgspec
import pytest

from turnline.contracts import InvalidMessage, UserMessage
from turnline.contracts.messages import encode
from turnline.ops.fleet.dead_letters import (
    DeadLetter,
    chosen,
    letter_of,
    message_again,
    next_turn_id,
)


def letter(**fields: object) -> DeadLetter:
    message = UserMessage(conversation_id="c", turn_id="t", text="Hello", deadline_at_ms=1)
    plain = DeadLetter(
        id="0:5-0",
        conversation_id="c",
        turn_id="t",
        code="auth",
        error="no",
        attempts=1,
        trace_id="",
        at_ms=5,
        message=encode(message),
    )
    return msgspec.structs.replace(plain, **fields)


def test_every_field_of_the_stream_is_read() -> None:
    """What the worker wrote comes back, the message as bytes."""
    fields = {
        b"c": b"trip",
        b"t": b"t1",
        b"m": b"\xff{",
        b"code": b"auth",
        b"error": b"no key",
        b"attempts": b"3",
        b"trace": b"abc",
        b"at": b"17",
    }

    read = letter_of(2, b"17-1", fields)

    assert read == DeadLetter(
        id="2:17-1",
        conversation_id="trip",
        turn_id="t1",
        code="auth",
        error="no key",
        attempts=3,
        trace_id="abc",
        at_ms=17,
        message=b"\xff{",
    )
    assert read.shown_message == "\\xff{"


SECRETS = b'"authorization":"Bearer s3cret","headers":{"X-Tenant":"s3cret"}'
CONFIGURE = b'{"type":"configure","settings":{"server_tools":[{"type":"mcp",%b}%b]}}'


@pytest.mark.parametrize(
    "message",
    [
        CONFIGURE % (SECRETS, b""),
        CONFIGURE % (SECRETS, b',7,{"type":"mcp",%b}' % SECRETS),
        (CONFIGURE % (SECRETS, b""))[:-3],
        CONFIGURE % (SECRETS, b"\\xff"),
        b'{"settings":{"server_tools":{"type":"mcp",%b}}}' % SECRETS,
    ],
)
def test_secrets_of_a_letter_are_not_shown(message: bytes) -> None:
    """The letter has them, for trying it again; the terminal does not."""
    read = letter_of(0, b"1-1", {b"m": message})

    assert "s3cret" not in read.shown_message
    assert read.message == message


def test_what_is_no_secret_of_a_letter_is_shown() -> None:
    """Everything else in it, as it came."""
    message = CONFIGURE % (b'"server_url":"https://a.b"', b"")

    assert letter_of(0, b"1-1", {b"m": message}).shown_message == message.decode()


@pytest.mark.parametrize(
    ("turn_id", "following"),
    [("t", "t.r1"), ("t.r1", "t.r2"), ("t.r9", "t.r10"), ("t.rest", "t.rest.r1")],
)
def test_the_next_turn_id_counts_on(turn_id: str, following: str) -> None:
    """It depends on the old id alone, so that trying twice is one turn."""
    assert next_turn_id(turn_id) == following


def test_an_id_without_room_gets_a_fingerprint() -> None:
    """The next id is valid however long the old one was, and differs between old ones."""
    long, other = next_turn_id("x" * 199), next_turn_id("y" * 199)

    assert len(long) < 200
    assert long != other
    assert long == next_turn_id("x" * 199)


def test_the_message_is_the_same_but_for_id_and_deadline() -> None:
    """Trying again asks for the same, under the next id, without the deadline that has passed."""
    again = message_again(letter())

    assert again == UserMessage(conversation_id="c", turn_id="t.r1", text="Hello")


def test_bytes_that_are_no_message_cannot_be_tried_again() -> None:
    """They are refused by name."""
    with pytest.raises(InvalidMessage, match="one JSON object"):
        message_again(letter(message=b"not json"))


def test_filters_are_joined() -> None:
    """A letter must fit all that is asked; ids may leave out the shard."""
    one, two = letter(), letter(id="0:6-0", code="crashed", conversation_id="d")

    assert chosen([one, two]) == [one, two]
    assert chosen([one, two], code="crashed") == [two]
    assert chosen([one, two], conversation_id="c") == [one]
    assert chosen([one, two], code="crashed", conversation_id="c") == []
    assert chosen([one, two], ids=["6-0"]) == [two]
    assert chosen([one, two], ids=["0:5-0"], code="auth") == [one]
