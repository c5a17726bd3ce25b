"""Runs each share of the search in a process of its own, so that a crash ends only that one."""

import mmap
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Final, NamedTuple

from turnline.ops.fleet import bound
from turnline.ops.fuzz.mutation import INPUT_MAX_BYTES
from turnline.ops.fuzz.search import Found, Search, Tally, merged
from turnline.ops.fuzz.targets import targets

_HANG_S: Final = 120.0
"""A process that says nothing for so long hangs in its input."""
_SAY_S: Final = 0.5
_BATCH: Final = 16
_HEAD_BYTES: Final = 8
_MEMORY_BYTES: Final = 4 * 1024**3
"""Address space of a process: an input that wants more breaks something."""
NOTE_BYTES: Final = _HEAD_BYTES + INPUT_MAX_BYTES
_context: Final = get_context("spawn")

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


class Share(NamedTuple):
    """What one process does."""

    target: str
    seed: str
    runs: int
    seconds: float
    """When to stop in any case."""
    note: str
    """File of `NOTE_BYTES` bytes that always holds the input being run."""


class _Running:
    """One share in its process."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.tally = Tally(share.target)
        self.hears, says = _context.Pipe(duplex=False)
        self.heard_s = time.monotonic()
        self.process = _context.Process(target=_search, args=(share, says, os.getpid()))
        with _deaf():
            self.process.start()
        says.close()

    def hear(self) -> bool:
        """Read the process's progress, if there is news; return whether it goes on."""
        if self.hears.poll():
            try:
                self.tally = self.hears.recv()
            except EOFError:
                self.process.join()
                code = self.process.exitcode
                self._is_broken(f"the process ended with {code}" if code else "")
                return False
            self.heard_s = time.monotonic()
        elif time.monotonic() - self.heard_s > _HANG_S:
            self._is_broken(f"no end within {_HANG_S:g} s")
            return False
        return True

    def _is_broken(self, rule: str) -> None:
        self.close()
        if rule:
            data = noted(Path(self.share.note))
            self.tally.violations += 1
            self.tally.found.append(Found(self.share.target, rule, data))

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.hears.close()


def run(plan: Plan, tell: Tell) -> list[Tally]:
    """Run everything; returns one tally per target, in the plan's order."""
    began_s = time.monotonic()
    every: list[_Running] = []
    running: list[_Running] = []
    with tempfile.TemporaryDirectory(prefix="turnline-fuzz-") as folder:
        waiting = _shares(plan, Path(folder))
        try:
            while waiting or running:
                while waiting and len(running) < plan.jobs:
                    running.append(_Running(waiting.pop(0)))
                    every.append(running[-1])
                connection.wait([it.hears for it in running], _SAY_S)
                running = [it for it in running if it.hear()]
                tell(_progress(plan, every, time.monotonic() - began_s))
        finally:
            for it in running:
                it.close()
    return [
        merged([it.tally for it in every if it.share.target == target]) for target in plan.targets
    ]


def _progress(plan: Plan, every: Sequence[_Running], took_s: float) -> str:
    runs = sum(it.tally.runs for it in every)
    violations = sum(it.tally.violations for it in every)
    last = every[-1].tally
    return (
        f"{last.target}: {runs:,} of {plan.runs:,} runs, {runs / took_s:,.0f} a second, "
        f"{len(last.corpus):,} inputs kept, {violations:,} violations"
    )


def _shares(plan: Plan, folder: Path) -> list[Share]:
    """Return the shares, each with its part of the runs and of the time."""
    shares: list[Share] = []
    number = len(plan.targets) * plan.jobs
    for n, (target, job) in enumerate((it, job) for it in plan.targets for job in range(plan.jobs)):
        note = folder / f"{target}-{job}"
        note.write_bytes(bytes(NOTE_BYTES))
        runs = plan.runs // number + (n < plan.runs % number)
        seconds = plan.seconds / len(plan.targets)
        shares.append(Share(target, f"{plan.seed}/{target}/{job}", runs, seconds, str(note)))
    return shares


def noted(path: Path) -> bytes:
    """Return the input that a process was running."""
    data = path.read_bytes()
    return data[_HEAD_BYTES : _HEAD_BYTES + int.from_bytes(data[:_HEAD_BYTES], "little")]


def noting(path: str) -> Callable[[bytes], None]:
    """Return a function that writes an input where it survives the death of this process."""
    with Path(path).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), NOTE_BYTES)

    def note(data: bytes) -> None:
        memory[:_HEAD_BYTES] = len(data).to_bytes(_HEAD_BYTES, "little")
        memory[_HEAD_BYTES : _HEAD_BYTES + len(data)] = data

    return note


@contextmanager
def _deaf() -> Generator[None]:
    """Have processes that are started meanwhile ignore Ctrl-C: it is for the command."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _search(share: Share, says: "connection.Connection[Tally, Tally]", starter: int) -> None:
    """Do a share, in a process of its own; say twice a second how far it has come."""
    bound.bind(starter)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    search = Search(targets()[share.target], seed=share.seed, note=noting(share.note))
    until_s = time.monotonic() + share.seconds
    said_s = 0.0
    search.begin()
    while search.tally.runs < share.runs and (now_s := time.monotonic()) < until_s:
        if now_s - said_s > _SAY_S:
            says.send(search.tally)
            said_s = now_s
        search.go_on(min(_BATCH, share.runs - search.tally.runs))
    search.end()
    says.send(search.tally)
