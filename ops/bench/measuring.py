"""What a process and a Redis server used: CPU time, memory, commands, bytes."""

import operator
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

from turnline.contracts.connection import AsyncRedis
from turnline.ops.cli.failures import Failed

_OWN: frozenset[str] = frozenset(
    # Streams that nobody reads any more are unsubscribed from seconds later, in another's time.
    {"info", "config|resetstat", "ping", "hello", "client|setinfo", "sunsubscribe"}
)
"""Commands of the measurement itself."""


def check_platform() -> None:
    """Make sure that what is measured can be measured here.

    Raises:
        Failed: This is not Linux.
    """
    if sys.platform != "linux":
        raise Failed("CPU and memory of other processes are measured on Linux only")


def cpu_s(pid: int) -> float:
    """Return the CPU time (user and system, all threads) of a process so far, seconds.

    Raises:
        OSError: There is no such process.

    Source: clock_getcpuclockid(3); this is how Linux encodes the id of another process' clock.
    """
    return time.clock_gettime((~pid << 3) | 2)


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process, MiB."""
    return _status_mb(pid, "VmRSS:")


def peak_rss_mb(pid: int) -> float:
    """Return the largest resident memory since `forget_peak`, MiB."""
    return _status_mb(pid, "VmHWM:")


def forget_peak(pid: int) -> None:
    """Reset the peak of a process' memory.

    Source: proc(5), /proc/pid/clear_refs, value 5
    """
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_mb(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


class RedisWork(NamedTuple):
    """What a Redis server did, as sums since it started or as a difference of two such sums."""

    cpu_s: float
    commands: int
    """Commands executed, those inside scripts included."""
    requests: int
    """Reads from sockets: about one per request or pipeline of requests."""
    bytes: int
    """Received and sent."""

    def plus(self, other: "RedisWork") -> "RedisWork":
        """Return the sum."""
        return RedisWork._make(map(operator.add, self, other))

    def since(self, earlier: "RedisWork") -> "RedisWork":
        """Return what was done since."""
        return RedisWork._make(map(operator.sub, self, earlier))


async def redis_work(redis: AsyncRedis) -> RedisWork:
    """Ask a server what it did so far."""
    info = cast("dict[str, Any]", await redis.execute_command("INFO", "everything"))
    return RedisWork(
        cpu_s=float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
        commands=sum(
            int(value["calls"])
            for name, value in info.items()
            if name.startswith("cmdstat_") and name.removeprefix("cmdstat_") not in _OWN
        ),
        requests=int(info["total_reads_processed"]),
        bytes=int(info["total_net_input_bytes"]) + int(info["total_net_output_bytes"]),
    )
