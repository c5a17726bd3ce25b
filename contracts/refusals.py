"""What a failure of Redis means: whether it may pass, and what a producer is told.

A server begins its refusals with a word. redis-py drops the word where it has a class for it, and
newer versions have more of these. Of all other words that a server says nothing is repeated but the
name of a command: they may quote what was sent.
"""

import re
import socket
import ssl
from collections.abc import Mapping
from typing import Final, cast

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    DataError,
    InvalidResponse,
    MasterDownError,
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as ConnectionTimeout

from turnline.contracts.errors import StoreFull, StoreIncompatible, StoreUnavailable

_PASSING: Final[Mapping[str, str]] = {
    "ASK": "a slot is being moved to another node",
    "BUSY": "a script has been running for long",
    "CLUSTERDOWN": "no primary serves a part of the cluster",
    "LOADING": "it loads its data",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "MOVED": "another node has the slot; the address of a cluster begins with redis+cluster://",
    "NOREPLICAS": "it reaches fewer replicas than min-replicas-to-write",
    "READONLY": "it is a replica, which takes no writes",
    "TRYAGAIN": "a slot is being moved to another node",
    "UNBLOCKED": "it has become a replica",
}
"""Refusals that may pass within seconds, so that the same command is sent again."""
_STAYING: Final[Mapping[str, str]] = {
    "AUTH": "it has no password for the user of this address",
    "CROSSSLOT": "a command has keys of more than one slot",
    "DENIED": "it takes connections from its own machine only (protected mode)",
    "MISCONF": "it cannot save its data, and takes no writes",
    "NOAUTH": "it wants a user and a password",
    "OOM": "it has no memory left",
    "WRONGPASS": "it does not know this user with this password",
    "WRONGTYPE": "a key is of another type: another program writes it too",
}
"""Refusals that stay until somebody has changed something.

MISCONF is one: a disk that is full or not writable stays so for minutes, no failover ends it, and a
producer that waits holds up its own callers in vain.
"""
_FOR_SENDERS: Final[Mapping[str, str]] = {
    "BUSYGROUP": "the group exists",
    "NOGROUP": "the stream or its group is gone",
    "NOSCRIPT": "it does not have the script",
}
"""Answers by which the code that sent a command finds its way; no refusals."""
_MEANS: Final = {**_PASSING, **_STAYING, **_FOR_SENDERS}
_RETRY_S: Final[Mapping[str, float]] = {"LOADING": 5, "OOM": 10, "MISCONF": 30}
_RETRY_OTHERS_S: Final = 2

_CLASSES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (BusyLoadingError, "LOADING"),
    (ClusterCrossSlotError, "CROSSSLOT"),
    (MasterDownError, "MASTERDOWN"),  # is a ClusterDownError too
    (ClusterDownError, "CLUSTERDOWN"),
    (MovedError, "MOVED"),  # is an AskError too
    (AskError, "ASK"),
    (NoPermissionError, "NOPERM"),
    (NoScriptError, "NOSCRIPT"),
    (OutOfMemoryError, "OOM"),
    (ReadOnlyError, "READONLY"),
    (TryAgainError, "TRYAGAIN"),
)
_LOGIN: Final = (("Authentication required", "NOAUTH"), ("invalid ", "WRONGPASS"), ("", "AUTH"))
_BEGINNINGS: Final = (
    ("The user executing the script can't ", "NOPERM"),  # Redis 7.0 has no word for it
    ("ACL failure in script: ", "NOPERM"),
    ("Protocol error: unauthenticated ", "NOAUTH"),
    ("UNBLOCKED force unblock", "UNBLOCKED"),
    ("UNBLOCKED ", "NOGROUP"),  # Redis 7.0, where others say NOGROUP
    *((f"{it} ", it) for it in _MEANS),
)
_COMMAND: Final = r"'([A-Za-z][A-Za-z|_-]{0,39})'"
_FORBIDDEN: Final = re.compile(rf"\bto run the {_COMMAND} command")
_UNKNOWN: Final = re.compile(rf"unknown (?:sub)?command {_COMMAND}")
_LOST: Final = (LostConnection, ConnectionTimeout, OSError)
_MOST_CAUSES: Final = 8
_SYSTEM: Final[tuple[tuple[type[OSError], str], ...]] = (
    (ssl.SSLCertVerificationError, "its certificate is not accepted"),
    (ssl.SSLError, "a connection with TLS fails"),
    (socket.gaierror, "no host has its name"),
    (TimeoutError, "it does not answer"),
    (ConnectionRefusedError, "it refuses connections"),
    (FileNotFoundError, "there is no socket at its path"),
    (PermissionError, "the system does not let this process connect"),
    (ConnectionError, "it closes connections"),
)


class NoPrimary(LostConnection):
    """There is no server to send a command to; the text is Turnline's own and says why."""


def word(error: Exception) -> str:
    """Return the word of a server's refusal, such as `NOREPLICAS`; "" where none is known.

    It is the same with all versions of redis-py, and for what was said while it connected.
    """
    error = _unwrapped(error)
    for kind, found in _CLASSES:
        if isinstance(error, kind):
            return found
    beginnings = _BEGINNINGS if isinstance(error, ResponseError) else ()
    if isinstance(error, AuthenticationError):
        beginnings = _LOGIN
    words = f"{_words(error)} "
    return next((found for beginning, found in beginnings if words.startswith(beginning)), "")


def is_passing(error: Exception) -> bool:
    """Whether the same command, if it bears repetition, may be carried out within seconds.

    So it is where a connection was lost, could not be had or says nothing, and where a failover, a
    restart or a moved slot is the reason; not where somebody has to change something.
    """
    error = _unwrapped(error)
    if found := word(error):
        return found in _PASSING
    return isinstance(error, _LOST) and not _has_cause(error, ssl.SSLCertVerificationError)


def is_moving(error: Exception) -> bool:
    """Whether the server is well, and only the slot is on its way to another one."""
    return word(error) in {"ASK", "TRYAGAIN"}


def reason(error: Exception) -> str:
    """Return in a few words what Redis says or does, and none of a user's."""
    error = _unwrapped(error)
    if found := word(error):
        means = _forbidden(_words(error)) if found == "NOPERM" else _MEANS[found]
        return f"{found} ({means})"
    if isinstance(error, _LOST):
        return _lost(error)
    if isinstance(error, InvalidResponse):
        return "what answers is not Redis"
    words = _words(error)
    if (unknown := _UNKNOWN.match(words)) is not None:
        return f"it does not know the command {unknown[1].upper()}"
    if words.startswith("DB index is out of range"):
        return "it has fewer databases than the address asks for"
    return f"it refuses a command ({type(error).__name__})"


def told(error: Exception) -> Exception:
    """Return what a producer is told of an error of redis-py, once there is no patience left.

    Returns:
        StoreUnavailable: It may pass by itself, or Redis cannot save its data.
        StoreFull: Redis has no memory left.
        StoreIncompatible: Somebody has to change something: rights, password, address, server.
        The error itself: It is none of Redis, or an answer that concerns the code that sent the
            command, such as NOSCRIPT.
    """
    found = word(error)
    is_redis = isinstance(error, (RedisError, OSError)) and not isinstance(error, DataError)
    if not is_redis or found in _FOR_SENDERS:
        return error
    retry_after_s = _RETRY_S.get(found, _RETRY_OTHERS_S)
    if found == "OOM":
        return StoreFull("Redis has no memory left for new turns", retry_after_s=retry_after_s)
    if found == "MISCONF" or is_passing(error):
        return StoreUnavailable(reason(error), retry_after_s=retry_after_s)
    return StoreIncompatible(f"Redis cannot be used: {reason(error)}")


def _unwrapped(error: Exception) -> Exception:
    """Return what was said while redis-py connected; with asyncio it raises a lost connection."""
    is_wrapped = type(error) is LostConnection and isinstance(error.__cause__, RedisError)
    return cast("Exception", error.__cause__) if is_wrapped else error


def _words(error: Exception) -> str:
    """Return what the server said, without what redis-py puts before it in a pipeline."""
    return str(error).rpartition(" of pipeline caused error: ")[2]


def _forbidden(words: str) -> str:
    """Return what a user has no right to, as far as the server says it."""
    what = "run a command of a script"
    if (command := _FORBIDDEN.search(words)) is not None:
        what = f"run the command {command[1].upper()}"
    elif "channel" in words:
        what = "use a channel"
    elif re.search(r"\bkeys?\b", words) is not None:
        what = "use a key"
    return f"its user may not {what}"


def _lost(error: Exception) -> str:
    """Return how a connection was lost, or why there is none."""
    words = str(error)
    if isinstance(error, NoPrimary):
        return words
    is_ours = words in {"Too many connections", "No connection available."}
    if is_ours or isinstance(error, MaxConnectionsError):
        return "all connections of this client are in use"
    if words.startswith("max number of clients reached"):
        return "it takes no more connections (maxclients)"
    if isinstance(error, ConnectionTimeout):
        return "it does not answer"
    closed = "it cannot be reached" if "connecting to" in words else "it closes connections"
    return next((means for kind, means in _SYSTEM if _has_cause(error, kind)), closed)


def _has_cause(error: Exception, kind: type[OSError]) -> bool:
    """Whether an error of the system is behind a lost connection."""
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):  # one raised from itself has no end
        if isinstance(cause, kind):
            return True
        if not isinstance(cause, (RedisError, OSError)):
            return False
        cause = cause.__cause__ or cause.__context__
    return False
