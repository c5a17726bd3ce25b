"""Opens connections by an address, for producers, workers and tools."""

from typing import Any, Final, cast

from turnline.contracts.addresses import read_address
from turnline.contracts.blocking_servers import BLOCKING, BlockingServers, run
from turnline.contracts.connection import AsyncRedis, SyncRedis
from turnline.contracts.patience import LOOP, PatientRedis
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.servers import AsyncServers

MAX_CONNECTIONS: Final = 10_000


def open_servers(url: str, *, max_connections: int = MAX_CONNECTIONS) -> AsyncServers:
    """Return the connections to all servers behind an address; nothing is sent yet.

    Raises:
        InvalidAddress: It is none; see `turnline.contracts.addresses`.
    """
    return AsyncServers(read_address(url), max_connections=max_connections)


def open_async(url: str, *, patience_s: float = 0.0) -> AsyncRedis:
    """Return a client for all shards behind an address; nothing is sent yet.

    Args:
        url: Of a server, of sentinels, or of a cluster.
        patience_s: How long commands are sent again that failed for a reason that may pass; 0:
            each is sent once, since not every one bears repetition.

    Raises:
        InvalidAddress: It is none; see `turnline.contracts.addresses`.
    """
    redis = RoutedRedis(open_servers(url))
    return cast("AsyncRedis", PatientRedis(redis, patience_s, LOOP) if patience_s else redis)


def open_sync(url: str, *, patience_s: float = 0.0, timeout_s: float | None = None) -> SyncRedis:
    """As `open_async`, for code that calls and does not await.

    Args:
        url: As in `open_async`.
        patience_s: As in `open_async`.
        timeout_s: Seconds for which a command waits for its reply; None: for as long as the
            connection lives, or as patience lasts. More than any command blocks.
    """
    address = read_address(url)
    servers = BlockingServers(address, max_connections=MAX_CONNECTIONS, timeout_s=timeout_s)
    redis = RoutedRedis(servers)
    return Blocking(PatientRedis(redis, patience_s, BLOCKING) if patience_s else redis)


class Blocking:
    """Calls a client whose coroutines never pause."""

    def __init__(self, redis: Any) -> None:
        """Call `redis`."""
        self._redis = redis

    def execute_command(self, *args: Any) -> Any:
        """Send one command and return its reply."""
        return run(self._redis.execute_command(*args))

    def pipeline(self, transaction: bool = False) -> "_BlockingPipeline":  # noqa: FBT001, FBT002
        """Begin a pipeline."""
        return _BlockingPipeline(self._redis.pipeline(transaction))

    def close(self) -> None:
        """Close all connections."""
        run(self._redis.aclose())


class _BlockingPipeline:
    def __init__(self, pipeline: Any) -> None:
        self.execute_command = pipeline.execute_command
        self._execute = pipeline.execute

    def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
        return cast("list[Any]", run(self._execute(raise_on_error)))
