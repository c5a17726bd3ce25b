"""Waits until replicas have what was committed, and logs once that they do not keep up."""

import logging

from redis.exceptions import RedisError

from turnline.contracts.keys import ShardKeys
from turnline.contracts.replication import confirmation
from turnline.worker.batching import ScriptBatcher

log = logging.getLogger("turnline.queue")


class Replicas:
    """The replicas of the server of one shard."""

    def __init__(self, batcher: ScriptBatcher, shard: ShardKeys, wanted: int) -> None:
        """Use a batcher on connections of its own: what comes behind a wait is held up by it."""
        self._batcher = batcher
        self._shard = shard
        self._wanted = wanted
        self._is_behind = False

    async def have_it(self) -> None:
        """Return once as many replicas as wanted have all that was written, or it takes too long.

        A server that does not answer is waited for by whoever writes next.
        """
        *writes, wait = [
            self._batcher.send(*words)
            for words in confirmation([self._shard.written], self._wanted)
        ]
        try:
            for write in writes:
                await write
            found = int(await wait)
        except (RedisError, OSError) as error:
            self._note(is_behind=True, error=type(error).__name__)
        else:
            self._note(is_behind=found < self._wanted, found=found)

    def _note(self, *, is_behind: bool, **about: object) -> None:
        if is_behind == self._is_behind:
            return
        self._is_behind = is_behind
        about = {"shard": self._shard.tag, "wanted": self._wanted, **about}
        if is_behind:
            log.warning("replicas.behind", extra=about)
        else:
            log.info("replicas.back", extra=about)
