"""How the verbs of a client wait for what comes in streams: all that they know of it.

One way is for asyncio (`turnline.contracts.noticed_streams`), one blocks
(`turnline.contracts.blocking_client`); the verbs are written once.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

from turnline.contracts.connection import Arg, Command

Entry: TypeAlias = tuple[bytes, dict[bytes, bytes] | None]
"""Id and fields; None for an entry that was deleted under a consumer of a group."""
Found: TypeAlias = list[tuple[str, list[Entry]]]
"""What was read: for each stream that had something, its entries in order."""


class OpenStreams(Protocol):
    """Streams that one reader waits for, from its first read until it closes them."""

    async def read(self, after: Sequence[str], wait_s: float) -> Found:
        """Return what is behind these ids, one for each stream, once there is any.

        It may be cancelled and called again: nothing that was read for it is lost.

        Args:
            after: Entry ids, or what the command takes in their place.
            wait_s: How long to wait if there is nothing; then, the result is empty.

        Raises:
            redis.exceptions.RedisError: The server refused, or could not be reached.
        """
        ...

    def close(self) -> None:
        """Wait for them no longer."""
        ...

    def forget(self) -> None:
        """Close them soon; in whatever thread."""
        ...


class Streams(Protocol):
    """All streams of a client's server, or servers."""

    @property
    def look_s(self) -> float:
        """Longest time in seconds for which a reader trusts an event stream that stays silent."""
        ...

    def open(self, names: Sequence[str], words: Command) -> OpenStreams:
        """Begin to read streams.

        Args:
            names: Keys.
            words: XREAD or XREADGROUP up to its COUNT, which stands last.
        """
        ...

    async def execute(self, key: str, *command: Arg) -> Any:
        """Send a reader's command to the server that has a key; return its reply.

        It travels on the connection that readers share.

        Raises:
            redis.exceptions.RedisError: The server refused, or could not be reached.
        """
        ...

    def within(self, timeout_s: float) -> AbstractAsyncContextManager[Any]:
        """End what is awaited inside after so many seconds, by a `TimeoutError`."""
        ...

    async def aclose(self) -> None:
        """End all waiting and close what it has opened."""
        ...
