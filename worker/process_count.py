"""How many worker processes a host is to have: a number, or as many as there are usable cores."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

AUTO: Final = "auto"
MOST: Final = 1_024
_CGROUPS: Final = Path("/sys/fs/cgroup")


def read_count(value: str) -> int:
    """Return the number that a setting means.

    Raises:
        ValueError: It is none; the text says what belongs there.
    """
    if value == AUTO:
        return usable_cores()
    if value.isascii() and value.isdigit() and len(value) <= len(str(MOST)):
        count = int(value)
        if 1 <= count <= MOST:
            return count
    raise ValueError(f"`{AUTO}` (one for each usable core) or a number from 1 to {MOST}")


def usable_cores(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process may use: by its affinity, and by limits of containers.

    Args:
        root: Where control groups are mounted.
        own: Says in which of them this process is.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min(cores, int(_quota(root, own))))


def _quota(root: Path, own: Path) -> float:
    """Return the least number of cores that a control group, or one around it, is held to."""
    quotas = [float(MOST)]
    for folder in [root, *_groups(root, own)]:
        with suppress(OSError, ValueError):
            most, period = (folder / "cpu.max").read_text().split()
            quotas.append(_ratio(most, period))
    with suppress(OSError, ValueError):  # control groups of the first version
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quotas.append(_ratio(*((root / "cpu" / name).read_text() for name in names)))
    return min(quotas)


def _groups(root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, the outermost first."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    path = "".join(line.removeprefix("0::") for line in lines if line.startswith("0::"))
    folder = root
    for name in filter(None, path.split("/")):
        folder /= name
        yield folder


def _ratio(most: str, period: str) -> float:
    """Return a quota in cores.

    Raises:
        ValueError: It is none, such as `max`.
    """
    if int(most) <= 0 or int(period) <= 0:
        raise ValueError(most)
    return int(most) / int(period)
