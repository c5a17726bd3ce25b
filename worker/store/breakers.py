"""Circuit breakers shared by a shard's workers: an outage is noticed once, not by each of them.

A breaker is about the provider: it opens only if calls of several conversations fail in a row.
While nothing fails, asking costs nothing: the fleet's view is fetched at most once a second, beside
the turns. Source: https://martinfowler.com/bliki/CircuitBreaker.html
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence

from redis.exceptions import RedisError

from turnline.contracts.keys import ShardKeys
from turnline.contracts.scripts import Call, text
from turnline.worker.batching import ScriptBatcher
from turnline.worker.store import lua

log = logging.getLogger("turnline.turns")
_VIEW_S = 1.0
_EXPIRY_MS = 3_600_000


class Breakers:
    """Breakers by name (base URL and model). Redis being away counts as closed."""

    def __init__(
        self,
        batcher: ScriptBatcher,
        shard: ShardKeys,
        *,
        threshold: int = 10,
        conversations: int = 5,
        pause_s: float = 2.0,
        cap_s: float = 30.0,
        failing: set[str] | None = None,
    ) -> None:
        """Use the shard's batcher.

        Args:
            batcher: Sends what is asked.
            shard: Whose breakers.
            threshold: Failures in a row, over all workers, that open a breaker.
            conversations: How many conversations have to share them.
            pause_s: How long it stays open before one call may try.
            cap_s: The pause doubles with each failed try, up to this.
            failing: Names that this process has said to be failing; shared by its shards.
        """
        self._batcher = batcher
        self._shard = shard
        self._pause_ms = int(pause_s * 1000)
        self._success = lua.ReportArgs(
            name="",
            outcome="ok",
            who="",
            threshold=threshold,
            others=conversations,
            pause_ms=self._pause_ms,
            cap_ms=int(cap_s * 1000),
            expiry_ms=_EXPIRY_MS,
        )
        self._suspects: set[str] = set()
        self._failing: set[str] = set() if failing is None else failing
        self._seen_at = -_VIEW_S
        self._looking: asyncio.Task[None] | None = None

    async def wait_s(self, name: str, conversation_id: str) -> float:
        """Return how long a call for this conversation has to wait; 0 lets it through."""
        if time.monotonic() - self._seen_at > _VIEW_S and self._looking is None:
            self._looking = asyncio.create_task(self._look())
        if name not in self._suspects:
            return 0.0
        args = lua.AdmitArgs(name, _mark(conversation_id), self._pause_ms)
        word, wait_ms = await self._run(lua.admit(self._shard, args))
        if word == "closed":
            self._suspects.discard(name)
            self._works(name)
        elif name not in self._failing:
            self._failing.add(name)
            log.warning("provider.failing", extra={"provider": name})
        return wait_ms / 1000

    async def succeeded(self, name: str) -> None:
        """A call went well: what was held against the name is forgotten."""
        if name in self._suspects:
            self._suspects.discard(name)
            await self._run(lua.report(self._shard, self._success._replace(name=name)))
            self._works(name)

    async def failed(self, name: str, conversation_id: str) -> None:
        """A call failed in a way that speaks against the provider, not the request or the reply."""
        self._suspects.add(name)
        args = self._success._replace(name=name, outcome="failed", who=_mark(conversation_id))
        await self._run(lua.report(self._shard, args))

    def _works(self, name: str) -> None:
        if name in self._failing:
            self._failing.discard(name)
            log.info("provider.back", extra={"provider": name})

    async def _run(self, call: Call) -> tuple[str, int]:
        try:
            word, number = await self._batcher.run(call)
        except (RedisError, OSError):
            return "closed", 0
        return text(word), int(number) if text(word) == "open" else 0

    async def _look(self) -> None:
        """Fetch which names have failed lately anywhere."""
        try:
            view: Sequence[bytes] = await self._batcher.send("HGETALL", self._shard.breakers)
            self._suspects = {text(field).rpartition("|")[0] for field in view[::2]}
            self._seen_at = time.monotonic()
        except (RedisError, OSError):
            pass  # the next turn looks again
        finally:
            self._looking = None


def _mark(conversation_id: str) -> str:
    """Return what tells conversations apart, without naming them."""
    return hashlib.blake2b(conversation_id.encode(), digest_size=4).hexdigest()
