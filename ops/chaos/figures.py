"""What instruments share: figures with bounds, percentiles, progress, and the fleet of a drill."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Literal

import msgspec

from turnline.ops.cli.output import console
from turnline.ops.fleet.stack import Stack

Name = Literal["kill", "child", "stall", "term", "cancel", "malformed", "end", "endless"]
Tell = Callable[[str], None]
"""Called with a few words about the progress."""


class Figure(msgspec.Struct, frozen=True):
    """One figure of a drill."""

    what: str
    value: float
    unit: str = ""
    most: float | None = None
    """The bound that it must keep, if it has one."""
    least: float | None = None
    """The same from below."""

    @property
    def is_kept(self) -> bool:
        """Whether the bounds are kept."""
        above = self.most is not None and self.value > self.most
        return not above and (self.least is None or self.value >= self.least)

    @property
    def kept(self) -> str:
        """The same in a word."""
        return "yes" if self.is_kept else "NO"

    @property
    def measured(self) -> str:
        """The value with its unit."""
        digits = 0 if float(self.value).is_integer() else 2 if self.unit == "s" else 1
        return f"{self.value:,.{digits}f} {self.unit}".strip()

    @property
    def bound(self) -> str:
        """The bound with its unit; empty if there is none."""
        if self.least is not None:
            return f"at least {self.least:,g} {self.unit}".strip()
        return "" if self.most is None else f"{self.most:g} {self.unit}".strip()


class Drilled(msgspec.Struct, frozen=True):
    """The figures of one drill."""

    name: Name
    title: str
    rows: list[Figure]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share (0 to 1) lies, by the nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def fleet(workers: int, processes: int = 0, /, **env: str) -> Stack:
    """Return workers at default settings before a model that says a word every 20 ms.

    With `processes`, each has so many under a supervisor.
    """
    return Stack(
        workers,
        processes=processes,
        sim_options=("--ttft-ms", "50", "--itl-ms", "20", "--ledger-entries", "0"),
        worker_env={"TURNLINE_LOG_LEVEL": "error", "TURNLINE_WIRE": "chat", **env},
    )


@contextmanager
def progress(*, in_files: bool = False) -> Generator[Tell]:
    """Show progress on a terminal, in one line of standard error.

    Args:
        in_files: Print a line each time where there is no terminal; else there is silence.
    """
    to = console(stderr=True)
    if to.is_terminal:
        with to.status("starting") as status:
            yield status.update
    else:
        yield lambda text: to.print(text, soft_wrap=True) if in_files else None
