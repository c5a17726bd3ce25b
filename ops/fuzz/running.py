"""Runs the shares of all targets in processes of their own, so that none takes the rest along."""

import asyncio
import os
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from turnline import ops
from turnline.ops.fleet import bound
from turnline.ops.fuzz.search import Found, Tally, merged
from turnline.ops.fuzz.shift import NOTE_BYTES, Share, noted

_ROOT: Final = Path(ops.__file__).resolve().parents[1]
_HANG_S: Final = 120.0
"""A process that says nothing for so long hangs in its input."""
_LINE_BYTES: Final = 256 * 1024 * 1024
_decode = msgspec.json.Decoder(Tally).decode

Tell = Callable[[str], None]


class Plan(NamedTuple):
    """What is to be run."""

    targets: Sequence[str]
    runs: int
    """Over all targets."""
    seconds: float
    """For all of it together."""
    seed: int
    jobs: int
    """Processes at a time; each target is searched by so many, which do not know each other."""


class Progress:
    """How far all shares have come."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        """Begin with nothing."""
        self.tallies: dict[Share, Tally] = {}
        self._plan = plan
        self._tell = tell
        self._began = time.monotonic()

    def note(self, share: Share, tally: Tally) -> None:
        """Take what a share has come to, and tell."""
        self.tallies[share] = tally
        runs = sum(each.runs for each in self.tallies.values())
        violations = sum(each.violations for each in self.tallies.values())
        took_s = time.monotonic() - self._began
        self._tell(
            f"{share.target}: {runs:,} of {self._plan.runs:,} runs, {runs / took_s:,.0f} a second, "
            f"{len(tally.corpus):,} inputs kept, {violations:,} violations"
        )


def run(plan: Plan, tell: Tell) -> list[Tally]:
    """Run everything; returns one tally per target, in the plan's order."""
    return asyncio.run(_run(plan, tell))


async def _run(plan: Plan, tell: Tell) -> list[Tally]:
    progress = Progress(plan, tell)
    places = asyncio.Semaphore(plan.jobs)
    with tempfile.TemporaryDirectory(prefix="turnline-fuzz-") as folder:
        async with asyncio.TaskGroup() as group:
            for share in _shares(plan, Path(folder)):
                group.create_task(_carry_out(share, places, progress))
    return [
        merged([tally for share, tally in progress.tallies.items() if share.target == target])
        for target in plan.targets
    ]


def _shares(plan: Plan, folder: Path) -> list[Share]:
    """Return the shares, each with its part of the runs and of the time."""
    number = len(plan.targets) * plan.jobs
    runs = [plan.runs // number + (n < plan.runs % number) for n in range(number)]
    names = [(target, job) for target in plan.targets for job in range(plan.jobs)]
    shares: list[Share] = []
    for (target, job), part in zip(names, runs, strict=True):
        note = folder / f"{target}-{job}"
        note.write_bytes(bytes(NOTE_BYTES))
        seed = f"{plan.seed}/{target}/{job}"
        seconds = plan.seconds / len(plan.targets)
        shares.append(Share(target, seed, part, seconds, str(note)))
    return shares


async def _carry_out(share: Share, places: asyncio.Semaphore, progress: Progress) -> None:
    async with places:
        starter = [sys.executable, "-I", "-S", bound.__file__, str(os.getpid())]
        process = await asyncio.create_subprocess_exec(
            *(*starter, sys.executable, "-m", "turnline.ops.fuzz.shift", *share.words()),
            cwd=_ROOT,
            stdin=DEVNULL,
            stdout=PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C in the terminal is for the command
        )
        try:
            tally, rule = await _listen(process, share, progress)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if rule is not None:
            tally.violations += 1
            tally.found.append(Found(share.target, rule, noted(Path(share.note))))
            progress.note(share, tally)


async def _listen(process: Process, share: Share, progress: Progress) -> tuple[Tally, str | None]:
    """Follow a process to its end; returns its last words, and what its input did to it."""
    assert process.stdout is not None
    tally = Tally(share.target)
    while True:
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _HANG_S)
        except TimeoutError:
            return tally, f"no end within {_HANG_S:g} s"
        if not line:
            code = await process.wait()
            return tally, None if code == 0 else f"the process ended with {code}"
        tally = _decode(line)
        progress.note(share, tally)
