"""Refusals that no server here can be brought to, and what none of them may repeat."""

import socket
import ssl
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import DataError, NoPermissionError, NoScriptError, RedisError, ResponseError

from turnline.contracts import (
    ConversationBusy,
    StoreFull,
    StoreIncompatible,
    StoreUnavailable,
    TurnlineError,
)
from turnline.contracts.refusals import NoPrimary, is_passing, reason, told, word

SECRET = "s3cret"
WORDS = (
    *("ASK", "AUTH", "BUSY", "BUSYGROUP", "CLUSTERDOWN", "CROSSSLOT", "DENIED", "ERR", "LOADING"),
    *("MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOGROUP", "NOPERM", "NOREPLICAS", "NOSCRIPT"),
    *("OOM", "READONLY", "TRYAGAIN", "UNBLOCKED", "WRONGPASS", "WRONGTYPE", "unknown command"),
    *("User u has no permissions to run the", "ACL failure in script:", "Error 1 connecting to"),
)
KINDS = [
    kind
    for kind in vars(exceptions).values()
    if isinstance(kind, type)
    and issubclass(kind, RedisError)
    and not issubclass(kind, (exceptions.AskError, exceptions.LockError))
]


def test_a_protected_server_is_not_asked_again() -> None:
    """It would have to be reached from another machine."""
    error = ResponseError(f"DENIED Redis is running in protected mode because {SECRET}")

    assert not is_passing(error)
    assert str(told(error)) == (
        "Redis cannot be used: DENIED (it takes connections from its own machine only (protected "
        "mode))"
    )


def test_a_word_is_found_behind_what_redis_py_says_of_a_pipeline() -> None:
    """That is the command, with all that was sent."""
    error = ResponseError(f"Command # 1 (SET k {SECRET}) of pipeline caused error: NOREPLICAS Not")

    assert word(error) == "NOREPLICAS"
    assert word(ResponseError(f"Command # 1 (SET NOREPLICAS {SECRET})")) == ""


def test_words_are_found_only_where_they_stand_first() -> None:
    """Texts of users may have them, too."""
    assert word(ResponseError("unknown command 'X', with args beginning with: 'LOADING '")) == ""
    assert word(ResponseError("LOADINGX it")) == ""
    assert word(ResponseError("LOADING")) == "LOADING"
    assert word(LostConnection("READONLY it")) == ""


def _lost(while_handling: Exception, error: Exception) -> Exception:
    try:
        try:
            raise while_handling
        except type(while_handling):
            raise error  # noqa: B904  as redis-py does it
    except type(error) as lost:
        return lost


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(-2, "Name or service not known"), "no host has its name"),
        (TimeoutError(), "it does not answer"),
        (PermissionError(13, "no"), "the system does not let this process connect"),
        (ConnectionResetError(), "it closes connections"),
        (ssl.SSLEOFError(8, "EOF"), "a connection with TLS fails"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed"), "it cannot be reached"),
    ],
)
def test_errors_of_the_system_tell_why_a_connection_is_none(error: OSError, said: str) -> None:
    """As they are, and as redis-py wraps them; the connection may be had later."""
    wrapped = _lost(error, LostConnection(f"Error connecting to {SECRET}:6379. {error}."))

    assert reason(wrapped) == said
    assert is_passing(wrapped)
    assert is_passing(error)


def test_an_error_that_was_raised_from_itself_is_read_like_any_other() -> None:
    """Python lets it be its own cause."""
    error = LostConnection("Connection closed by server.")
    error.__cause__ = error

    assert reason(error) == "it closes connections"
    assert is_passing(error)


def test_where_no_primary_is_known_the_text_is_our_own() -> None:
    """It is shown as it is."""
    error = NoPrimary("a failover is under way")

    assert is_passing(error)
    assert str(told(error)) == ("Redis is not available: a failover is under way; try again in 2 s")


def test_a_connection_that_is_lost_while_a_script_is_sent_again_is_a_lost_one() -> None:
    """The answer that led there is not what was said last."""
    lost = _lost(NoScriptError("No matching script."), LostConnection("Connection closed"))

    assert word(lost) == ""
    assert is_passing(lost)
    assert isinstance(told(lost), StoreUnavailable)


@pytest.mark.parametrize(
    ("error", "kind", "retry_after_s"),
    [
        (ResponseError("NOREPLICAS Not enough"), StoreUnavailable, 2),
        (exceptions.BusyLoadingError("it loads"), StoreUnavailable, 5),
        (ResponseError("MISCONF it"), StoreUnavailable, 30),
        (exceptions.OutOfMemoryError("it"), StoreFull, 10),
        (LostConnection("Connection closed by server."), StoreUnavailable, 2),
    ],
)
def test_a_producer_is_told_when_to_come_back(
    error: Exception, kind: type[Any], retry_after_s: float
) -> None:
    """After a time that suits what is the matter."""
    result: Any = told(error)

    assert type(result) is kind
    assert result.retry_after_s == retry_after_s
    assert f"try again in {retry_after_s} s" in str(result)


@pytest.mark.parametrize(
    "error",
    [
        ConversationBusy("busy", retry_after_s=1),
        StoreIncompatible("as it is"),
        DataError("no such type"),
        ValueError("mine"),
    ],
)
def test_what_redis_did_not_say_stays_as_it_is(error: Exception) -> None:
    """It is the caller's, or has been told already."""
    assert told(error) is error
    assert not is_passing(error)


@given(
    st.sampled_from(KINDS),
    st.lists(st.sampled_from(WORDS) | st.text("abzNOERM '()|,_-12", max_size=9), max_size=4),
    st.booleans(),
)
def test_nothing_of_what_was_sent_is_repeated(
    kind: type[RedisError], words: list[str], is_hidden: bool
) -> None:
    """Whatever a server says, and wherever in it a text of a user stands."""
    error: Exception = kind(" ".join((*words, f"'{SECRET}'", *words, "command")))
    if is_hidden:
        error = LostConnection(error)
        error.__cause__ = error.args[0]

    result: Any = told(error)

    assert SECRET.lower() not in f"{reason(error)} {word(error)}".lower()
    assert "\n" not in reason(error)
    if isinstance(error, DataError) or word(error) in {"BUSYGROUP", "NOGROUP", "NOSCRIPT"}:
        assert result is error
    elif not isinstance(error, LostConnection) or word(error) or is_passing(error):
        assert isinstance(result, TurnlineError)
        assert SECRET not in str(result)
        assert is_passing(error) <= isinstance(result, StoreUnavailable)


def test_a_right_to_a_command_of_any_name_is_named() -> None:
    """With its subcommand."""
    error = NoPermissionError("User x has no permissions to run the 'client|no-evict' command")

    assert reason(error) == "NOPERM (its user may not run the command CLIENT|NO-EVICT)"
