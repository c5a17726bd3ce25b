"""What is used of the inside of redis-py, asyncio and msgspec is there; without it all goes on."""

import asyncio
from typing import Any, cast, get_args

import msgspec
import pytest
import redis.asyncio as redis_async
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnection

from turnline.contracts import InvalidMessage, messages
from turnline.contracts.messages import Inbound, WhenBusy, decode
from turnline.contracts.msgspec_sentences import TYPES, UNKNOWN, explain
from turnline.contracts.redis_internals import hear, quick


@pytest.mark.parametrize("kind", [redis_async.Connection, redis_async.UnixDomainSocketConnection])
async def test_redis_py_has_the_names_that_are_overridden_and_used(kind: Any) -> None:
    """A renamed one would make every command slower, and nobody would see it."""
    connection = quick(kind)()

    assert hasattr(kind, "pack_command")
    assert hasattr(kind, "can_read_destructive") or hasattr(kind, "can_read")
    assert hasattr(connection, "_reader")
    assert hasattr(connection, "_writer")
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


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (ResponseError("MASTERDOWN Link with MASTER is down"), ["demoted"]),
        (MasterDownError("Link with MASTER is down"), ["demoted"]),
        (ReadOnlyError("You can't write"), ["demoted"]),
        (BusyLoadingError("it loads"), ["demoted"]),
        (ResponseError("UNBLOCKED force unblock from blocking operation"), ["demoted"]),
        (ResponseError("UNBLOCKED the stream key no longer exists"), []),
        (ResponseError("MOVED 12182 127.0.0.1:7001"), ["doubtful"]),
        (MovedError("12182 127.0.0.1:7001"), ["doubtful"]),
        (ResponseError("ASK 12182 127.0.0.1:7001"), ["doubtful"]),
        (AskError("12182 127.0.0.1:7001"), ["doubtful"]),
        (TryAgainError("Multiple keys"), ["doubtful"]),
        (ClusterDownError("Hash slot not served"), ["doubtful"]),
        (LostConnection("Connection closed by server."), ["doubtful"]),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), []),
    ],
)
def test_a_server_in_the_wrong_place_is_heard_of(error: Exception, heard: list[str]) -> None:
    """redis-py 6 has classes for what is a word before, and drops the word."""
    told: list[str] = []

    hear(error, lambda: told.append("demoted"), lambda: told.append("doubtful"))

    assert told == heard
