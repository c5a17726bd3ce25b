"""What a worker process has of Redis: connections to each server, shared by all of its shards.

One connection for scripts and commands, one for what is published, one for the heartbeat; and a
pool for ARQ's own jobs, which opens connections only for those.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from turnline.contracts.opening import open_servers
from turnline.contracts.servers import AsyncServers
from turnline.contracts.subscriber import Subscriber
from turnline.worker.batching import Pipelines
from turnline.worker.lease import LeaseSettings
from turnline.worker.outage_log import Lateness, Outage
from turnline.worker.queue.heartbeat import Heartbeat

log = logging.getLogger("turnline.queue")


class Links:
    """Connections of one event loop, and of the heartbeat's thread."""

    def __init__(self, url: str, times: LeaseSettings, *, wait_replicas: int = 0) -> None:
        """Send nothing yet.

        Args:
            url: Of Redis.
            times: Of the heartbeat.
            wait_replicas: How many replicas are waited for behind a commit.

        Raises:
            InvalidAddress: See `turnline.contracts.addresses`.
        """
        self.servers = open_servers(url)
        self.pipelines = Pipelines(self.servers)
        # Whoever waits for replicas holds up what comes behind it on its connection.
        self.confirmations = Pipelines(self.servers) if wait_replicas else None
        self.subscriber = Subscriber(self.servers.place)
        self.servers.on_moved.append(self.subscriber.relocate)
        self.heartbeat = Heartbeat(times, lambda: _opened(url))
        self.refusals = Outage(log, "queue.refused", "queue.accepted", "")
        """Whether some shard's server refuses to have its queue looked at."""
        self.lateness = Lateness(log)
        self.looked_at_s: dict[str, float] = {}
        """When a shard had an answer about work, or no room for any, by the monotonic clock."""
        self.tenants: Callable[[], Awaitable[tuple[str, str, str]]] = _no_tenants
        """Weights that are not 1, conversations that may run at once, and that may wait to begin:
        JSON, '' for none."""

    async def aclose(self) -> None:
        """Stop the heartbeat, wait for what is under way, and close the connections."""
        await self.heartbeat.stop()
        await self.subscriber.aclose()
        for pipelines in filter(None, (self.confirmations, self.pipelines)):
            await pipelines.close()
        await self.servers.aclose()


async def _no_tenants() -> tuple[str, str, str]:
    return "", "", ""


@contextlib.asynccontextmanager
async def _opened(url: str) -> AsyncGenerator[AsyncServers, None]:
    servers = open_servers(url)
    try:
        yield servers
    finally:
        await servers.aclose()
