"""How much a worker process runs at once: one number for all shards that it serves."""

from collections.abc import Callable


class Slots:
    """Places for conversations and jobs, which the shards of a process share."""

    def __init__(self, total: int, *, shards: int = 1) -> None:
        """Begin with all of them free.

        Args:
            total: How many there are.
            shards: How many take of them.
        """
        self.total = total
        self.free = total
        self._shards = shards
        self._waiting: dict[Callable[[], object], None] = {}

    def take(self) -> int:
        """Return how many a shard may fill now, which are its own from then on.

        Of several shards none takes all: others look for work at the same time.
        """
        count = self.free if self._shards == 1 else -(-self.free // 4)
        self.free -= count
        return count

    def give_back(self, count: int) -> None:
        """Free some again, and tell the shard that has waited for longest."""
        self.free += count
        if count > 0 and self._waiting:
            tell = next(iter(self._waiting))
            del self._waiting[tell]
            tell()

    def wait(self, tell: Callable[[], object]) -> None:
        """Have this called once when there is one again."""
        self._waiting[tell] = None

    def wait_no_more(self, tell: Callable[[], object]) -> None:
        """End that: it would be told in place of one that waits."""
        self._waiting.pop(tell, None)
