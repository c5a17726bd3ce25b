"""What is used of the inside of redis-py, asyncio and msgspec is there; without it all goes on."""

import asyncio
from typing import Any, cast, get_args

import msgspec
import pytest
import redis.asyncio as redis_async

from turnline.contracts import InvalidMessage, messages
from turnline.contracts.messages import Inbound, WhenBusy, decode
from turnline.contracts.msgspec_sentences import TYPES, UNKNOWN, explain
from turnline.contracts.redis_internals import quick


@pytest.mark.parametrize("kind", [redis_async.Connection, redis_async.UnixDomainSocketConnection])
async def test_redis_py_has_the_names_that_are_overridden_and_used(kind: Any) -> None:
    """A renamed one would make every command slower, and nobody would see it."""
    connection = quick(kind)()

    assert hasattr(kind, "pack_command")
    assert hasattr(kind, "can_read_destructive") or hasattr(kind, "can_read")
    assert hasattr(connection, "_reader")
    assert hasattr(connection._parser, "_reader")
    assert isinstance(cast("Any", asyncio.StreamReader())._buffer, bytearray)


async def test_with_other_names_redis_py_looks_in_its_own_way() -> None:
    """Nothing is raised: a command is slower."""

    class Renamed:
        async def can_read_destructive(self) -> bool:
            return True

    assert await quick(Renamed)().can_read_destructive() is True


def test_the_types_in_a_sentence_are_those_of_the_messages() -> None:
    """And so are the choices."""
    tags = [cast("Any", kind).__struct_config__.tag for kind in get_args(Inbound)]

    assert ", ".join(tags) == TYPES
    assert explain("Invalid enum value 'x' - at `$.when_busy`")[1] == "one of " + ", ".join(
        get_args(WhenBusy)
    )


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "secret",
        "Something new about 'secret'",
        "Invalid value 'secret' - at `$.metadata`",
        "Invalid enum value 'secret'",
        "Found `secret`, wanted another",
        "Expected `str` matching regex 'secret' - at `$.turn_id`",
        "Value 'secret' is of no use - at `$.settings.tools[3]`",
    ],
)
def test_a_sentence_of_a_later_version_is_answered_with_less(
    sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `InvalidMessage` all the same, which repeats nothing."""

    class Decoder:
        def decode(self, _: bytes) -> None:
            raise msgspec.ValidationError(sentence)

    monkeypatch.setattr(messages, "_decoder", Decoder())

    with pytest.raises(InvalidMessage) as refused:
        decode(b"{}")

    assert refused.value.expected == UNKNOWN
    assert "secret" not in str(refused.value)
