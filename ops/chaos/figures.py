"""What drills come to: figures with their bounds; and the fleet that they are held on."""

from collections.abc import Callable
from typing import Literal

import msgspec

from turnline.ops.fleet.stack import Stack

Name = Literal["kill", "stall", "term", "cancel", "malformed", "end", "endless"]
Tell = Callable[[str], None]


class Row(msgspec.Struct, frozen=True):
    """One figure of a drill."""

    what: str
    value: float
    unit: str
    most: float | None = None
    """The bound that it must keep; None if it only informs."""

    @property
    def is_kept(self) -> bool:
        """Whether the bound is kept."""
        return self.most is None or self.value <= self.most


class Drilled(msgspec.Struct, frozen=True):
    """The figures of one drill."""

    name: Name
    title: str
    rows: list[Row]


def fleet(workers: int, **env: str) -> Stack:
    """Return workers at default settings before a model that says a word every 20 ms."""
    return Stack(
        workers,
        sim_options=("--ttft-ms", "50", "--itl-ms", "20", "--ledger-entries", "0"),
        worker_env={"TURNLINE_LOG_LEVEL": "error", **env},
    )
