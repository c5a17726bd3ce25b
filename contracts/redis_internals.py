"""All that depends on the inside of redis-py and asyncio; a test says when a name is gone.

Without these names everything works, more slowly: what redis-py would do by itself is done.
"""

import functools
from typing import Any

from redis.exceptions import ConnectionError as LostConnection

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
