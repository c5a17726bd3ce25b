"""All that depends on the inside of redis-py and asyncio; a test says when a name is gone.

Without these names everything works, more slowly: what redis-py would do by itself is done.
"""

import functools
import inspect
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as ConnectionTimeout

from turnline.contracts.refusals import word

try:
    import hiredis
except ImportError:  # redis-py works without it
    _pack: Any = None
else:
    _pack = getattr(hiredis, "pack_command", None)  # not in old ones


@functools.cache
def quick(connection_class: Any) -> Any:
    """Return a connection class of redis-py with two of its methods made quicker.

    Where hiredis is there it packs the commands, as blocking clients have it: in Python that takes
    eight times as long. And a connection that comes out of the pool is looked at without reading
    from it, which costs redis-py before 8 a timer and a turn of the event loop: a quarter of a
    command.
    """

    def pack_command(_: object, *args: Any) -> list[bytes]:
        first, *rest = args
        words = first.split() if isinstance(first, (str, bytes)) else (first,)
        return [_pack((*words, *rest))]

    async def can_read_destructive(it: Any) -> bool:
        """Tell whether something came that nobody asked for.

        Raises:
            redis.exceptions.ConnectionError: The server has closed the connection.
        """
        try:
            stream = it._reader  # noqa: SLF001  redis-py has no other way
            if stream is None or stream.at_eof() or stream.exception() is not None:
                raise LostConnection("closed by the server")
            return bool(stream._buffer) or it._parser._reader.has_data()  # noqa: SLF001
        except AttributeError:  # this redis-py, or its parser, keeps them elsewhere
            return bool(await connection_class.can_read_destructive(it))

    quicker: dict[str, Any] = {} if _pack is None else {"pack_command": pack_command}
    if not hasattr(connection_class, "can_read"):  # redis-py 8 looks without reading
        quicker["can_read_destructive"] = can_read_destructive
    return type(connection_class.__name__, (connection_class,), quicker)


_ELSEWHERE = frozenset({"ASK", "CLUSTERDOWN", "MOVED", "TRYAGAIN"})
"""The server is well, but the slot is, or will soon be, at another one."""
_DEMOTED = frozenset({"LOADING", "MASTERDOWN", "READONLY", "UNBLOCKED"})
"""The server is a replica, is becoming one, or has only just started."""


def watched(
    connection_class: Any, demoted: Callable[[], object], doubtful: Callable[[], object]
) -> Any:
    """Return a connection class of redis-py (asyncio) that tells of answers from the wrong place.

    Args:
        connection_class: Whose `read_response` is watched.
        demoted: Called where the server takes no writes: it is a replica, or loads its data.
        doubtful: Called where another server has the slot, and where the connection was lost.
    """

    async def read_response(it: Any, *args: Any, **options: Any) -> Any:
        try:
            return await connection_class.read_response(it, *args, **options)
        except Exception as error:  # whatever it is, it is passed on
            hear(error, demoted, doubtful)
            raise

    return type(connection_class.__name__, (connection_class,), {"read_response": read_response})


_LOST = (LostConnection, ConnectionTimeout, OSError)


def hear(error: Exception, demoted: Callable[[], object], doubtful: Callable[[], object]) -> None:
    """Tell what an error says about where the server stands; see `watched`."""
    said = word(error)
    if said in _DEMOTED:
        demoted()
    elif said in _ELSEWHERE or isinstance(error, _LOST):
        doubtful()


def may_have_come(connection: Any) -> bool:
    """Whether something may have come on a connection (asyncio) that was not read; any thread."""
    try:
        if connection._reader._buffer or connection._parser._reader.has_data():  # noqa: SLF001  no other way
            return True
        looking = select.poll()
        looking.register(connection._writer.get_extra_info("socket"), select.POLLIN)  # noqa: SLF001
        return bool(looking.poll(0))
    except (AttributeError, OSError, TypeError, ValueError):  # kept elsewhere, or just closed
        return True


def set_timeout(connection: Any, timeout_s: float | None) -> None:
    """Let the next reads and writes of a blocking connection take so long; None: for ever."""
    if (sock := getattr(connection, "_sock", None)) is not None:
        sock.settimeout(timeout_s)


def connect_socket(connection: Any) -> socket.socket:
    """Connect to a unix socket; redis-py 5.0 leaves one open that nobody listens to."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(connection.socket_connect_timeout)
        sock.connect(connection.path)
    except OSError:
        sock.close()
        raise
    sock.settimeout(connection.socket_timeout)
    return sock


def hang_up(connection: Any) -> None:
    """End a blocking connection that another thread uses, which is to close it.

    Closed here, its number could be another connection's by the time the other thread reads.
    """
    if (sock := getattr(connection, "_sock", None)) is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def for_a_command(pool_class: Any) -> tuple[str, ...]:
    """Return what `get_connection` has to be given: a word before redis-py 5.3, then nothing."""
    command = inspect.signature(pool_class.get_connection).parameters.get("command_name")
    return ("_",) if command is not None and command.default is inspect.Parameter.empty else ()
