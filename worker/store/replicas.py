"""Waits until replicas have what was committed, and logs once that they do not keep up."""

import asyncio
import logging
from collections.abc import Hashable

from turnline.contracts.keys import written_key
from turnline.contracts.replication import confirmation
from turnline.worker.batching import Pipelines

log = logging.getLogger("turnline.queue")


class Replicas:
    """The replicas of all servers of a worker.

    A server answers one WAIT of a connection after the other. So all who wait at a time share one:
    those who come meanwhile share the next.
    """

    def __init__(self, pipelines: Pipelines, wanted: int) -> None:
        """Use pipelines of their own: what comes behind a wait is held up by it."""
        self._pipelines = pipelines
        self._wanted = wanted
        self._now: dict[Hashable, asyncio.Task[None]] = {}
        """By server: the question under way."""
        self._next: dict[Hashable, asyncio.Task[None]] = {}
        """By server: the one that follows it."""
        self._behind: set[Hashable] = set()

    async def have_it(self, tag: str) -> None:
        """Return once enough replicas have what was written so far, or it takes too long.

        A server that does not answer is waited for by whoever writes next.

        Args:
            tag: Of the shard that it was written to.
        """
        slot = self._pipelines.of(tag).slot
        server: Hashable = self._pipelines.servers.known(slot) or slot
        asking = self._next.get(server)
        if asking is None:
            asking = self._next[server] = asyncio.create_task(self._ask(server, tag))
        await asyncio.shield(asking)

    async def _ask(self, server: Hashable, tag: str) -> None:
        if (before := self._now.get(server)) is not None:
            await asyncio.wait({before})
        me = self._now[server] = self._next.pop(server)
        try:
            batcher = self._pipelines.of(tag)
            commands = confirmation(written_key(tag), self._wanted)
            asked = [batcher.send(*words) for words in commands]
            replies = await asyncio.gather(*asked, return_exceptions=True)
            failed = [type(it).__name__ for it in replies if isinstance(it, BaseException)]
            found = replies[-1]
            if failed or not isinstance(found, int):
                self._note(server, tag, is_behind=True, error=failed[0])
            else:
                self._note(server, tag, is_behind=found < self._wanted, found=found)
        finally:
            if self._now.get(server) is me:
                del self._now[server]

    def _note(self, server: Hashable, tag: str, *, is_behind: bool, **about: object) -> None:
        if is_behind == (server in self._behind):
            return
        about = {"shard": tag, "wanted": self._wanted, **about}
        if is_behind:
            self._behind.add(server)
            log.warning("replicas.behind", extra=about)
        else:
            self._behind.discard(server)
            log.info("replicas.back", extra=about)
