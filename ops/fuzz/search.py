"""Searches the inputs of one target: an input that reaches something new is mutated further."""

import hashlib
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from turnline import ops
from turnline.ops.fuzz.coverage import Edges
from turnline.ops.fuzz.mutation import INPUT_MAX_BYTES
from turnline.ops.fuzz.targets import Check, Target
from turnline.ops.fuzz.verdicts import Verdict, Violation

_ROOTS: Final = tuple(
    str(it.parents[1]) for it in (Path(ops.__file__), Path(ops.__file__).resolve())
)
"""Where our own code is: the import path, and the folder in the repository."""
_KEPT_INPUT_BYTES: Final = 8 * 1024
"""Longest input that is kept and mutated: longer ones are slow and reach little."""
_KEPT_INPUTS: Final = 4_096
_NAMED: Final = 20
"""So many different violations are kept; further ones are counted."""
_STEPS: Final = 4_000
_STEPS_PER_BYTE: Final = 60
"""Lines that a target may execute for an input: these, and so many per byte of the input."""
_SLOW_S: Final = 1.0
"""CPU time that no input may take."""
_GROWTH_BYTES: Final = 128 * 1024 * 1024
"""Most that a process may grow; an input of a megabyte exists in several forms at once."""
_TRIES: Final = 400
"""Checks spent on making a violating input smaller."""
_RECENT: Final = 24


class Found(msgspec.Struct, frozen=True):
    """An input that breaks something."""

    target: str
    rule: str
    """What is broken: a rule, or the name of an exception and where it came from."""
    data: bytes

    @property
    def name(self) -> str:
        """Name for a file that holds the input."""
        digest = hashlib.blake2b(self.data, digest_size=4).hexdigest()
        return f"fuzz-{self.target}-{digest}.input"


class Tally(msgspec.Struct):
    """How far a search has come."""

    target: str
    runs: int = 0
    seconds: float = 0
    edges: set[int] = msgspec.field(default_factory=set[int])
    outcomes: set[str] = msgspec.field(default_factory=set[str])
    corpus: set[str] = msgspec.field(default_factory=set[str])
    """Fingerprints of the inputs kept."""
    seeds: int = 0
    """How many of these it started from."""
    refused: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    violations: int = 0
    found: list[Found] = msgspec.field(default_factory=list[Found])
    slowest_ms: float = 0
    """CPU time of the slowest input, without tracing."""
    slowest_bytes: int = 0
    growth_bytes: int = 0
    """Growth of the process's peak memory after the first inputs."""


def broken_rule(target: Target, data: bytes) -> str | None:
    """Return what an input breaks; None if all is well."""
    return _judge(target.check, data)[1]


def _judge(check: Check, data: bytes) -> tuple[Verdict, str | None]:
    try:
        return check(data), None
    except Violation as error:
        return Verdict(), str(error)
    except Exception as error:  # noqa: BLE001  whatever escapes is what is looked for
        return Verdict(), f"{type(error).__name__} {_place(error)}"


def _place(error: Exception) -> str:
    """Return the innermost line of ours that an exception came through."""
    ours = [
        it for it in traceback.extract_tb(error.__traceback__) if it.filename.startswith(_ROOTS)
    ]
    ours = ours or traceback.extract_tb(error.__traceback__)
    return f"in {Path(ours[-1].filename).name}, {ours[-1].name}" if ours else ""


class Search:
    """One search: a corpus that grows with each input that reaches something new."""

    def __init__(
        self, target: Target, *, seed: int | str, note: Callable[[bytes], None] | None = None
    ) -> None:
        """Prepare a search.

        Args:
            target: What to search.
            seed: The same seed makes the same inputs.
            note: Told each input before it is run, so that it is known if the process dies of it.
        """
        self._target = target
        self._random = Random(seed)  # a text as seed is the same everywhere
        self._note = note
        self._edges = Edges(target.files)
        self._corpus: list[bytes] = []
        self._accepted: list[bytes] = []
        """Inputs of the corpus that were accepted. Mutations of refused ones are mostly refused."""
        self._refused = Counter[str]()
        self._base = 0
        self.tally = Tally(target.name, edges=self._edges.seen)

    def begin(self) -> None:
        """Run the start corpus, all of which is kept."""
        for data in self._target.seeds:
            self._run(data, keep=True)
        self.tally.seeds = len(self.tally.corpus)
        self._base = _peak_bytes()

    def go_on(self, runs: int) -> None:
        """Make and run so many inputs."""
        began = time.perf_counter()
        random, mutate = self._random, self._target.mutate
        for _ in range(runs):
            corpus = self._corpus
            among = (self._accepted or corpus) if random.random() < 0.6 else corpus
            if random.random() < 0.3:
                among = among[-_RECENT:]
            self._run(mutate(random.choice(among), corpus, random)[:INPUT_MAX_BYTES])
        self.tally.seconds += time.perf_counter() - began
        self.tally.refused = dict(self._refused)

    def end(self) -> None:
        """See how much memory was taken."""
        tally = self.tally
        tally.growth_bytes = max(0, _peak_bytes() - self._base)
        if tally.growth_bytes > _GROWTH_BYTES:
            self._found("the process grows", b"")

    def _run(self, data: bytes, *, keep: bool = False) -> None:
        if self._note is not None:
            self._note(data)
        tally, edges = self.tally, self._edges
        known = len(edges.seen) + len(tally.outcomes)
        began = time.thread_time()
        verdict, rule = edges.watch(lambda it: _judge(self._target.check, it), data)
        took_ms = (time.thread_time() - began) * 1000
        tally.runs += 1
        tally.outcomes.update(verdict.outcomes)
        if verdict.refused:
            self._refused[verdict.refused] += 1
        if took_ms > 2 * tally.slowest_ms:  # being watched takes several times as long
            self._time(data)
        if rule is None and edges.steps > _STEPS + _STEPS_PER_BYTE * len(data):
            rule = "more work than its length explains"
        if rule is None and took_ms > _SLOW_S * 1000 < _took_ms(self._target, data):
            rule = "slow"
        if rule is not None:
            self._found(rule, data)
        elif keep or len(edges.seen) + len(tally.outcomes) > known:
            self._keep(data, accepted=not verdict.refused)

    def _keep(self, data: bytes, *, accepted: bool) -> None:
        if len(data) > _KEPT_INPUT_BYTES or len(self._corpus) >= _KEPT_INPUTS:
            return
        self._corpus.append(data)
        if accepted:
            self._accepted.append(data)
        self.tally.corpus.add(hashlib.blake2b(data, digest_size=8).hexdigest())

    def _time(self, data: bytes) -> None:
        took_ms = min(_took_ms(self._target, data) for _ in range(2))
        if took_ms > self.tally.slowest_ms:
            self.tally.slowest_ms, self.tally.slowest_bytes = took_ms, len(data)

    def _found(self, rule: str, data: bytes) -> None:
        self.tally.violations += 1
        found = self.tally.found
        if len(found) < _NAMED and all(it.rule != rule for it in found):
            found.append(Found(self._target.name, rule, shrunk(self._target, data, rule)))


def shrunk(target: Target, data: bytes, rule: str) -> bytes:
    """Return a smaller input that breaks the same rule, if one is found by leaving parts out."""
    tries, size = _TRIES, len(data) // 2
    while size and tries:
        at = 0
        while at < len(data) and tries:
            less = data[:at] + data[at + size :]
            tries -= 1
            if broken_rule(target, less) == rule:
                data = less
            else:
                at += size
        size //= 2
    return data


def _took_ms(target: Target, data: bytes) -> float:
    """Return the CPU time that an input takes, ms: other work on the machine does not count."""
    began = time.thread_time()
    _judge(target.check, data)
    return (time.thread_time() - began) * 1000


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def merged(tallies: Sequence[Tally]) -> Tally:
    """Return the sum of searches of one target that ran beside one another."""
    total = Tally(tallies[0].target)
    refused = Counter[str]()
    for tally in tallies:
        total.runs += tally.runs
        total.seconds += tally.seconds
        total.edges |= tally.edges
        total.outcomes |= tally.outcomes
        total.corpus |= tally.corpus
        total.seeds = max(total.seeds, tally.seeds)
        refused.update(tally.refused)
        total.violations += tally.violations
        rules = {found.rule for found in total.found}
        total.found += [found for found in tally.found if found.rule not in rules]
        if tally.slowest_ms > total.slowest_ms:
            total.slowest_ms, total.slowest_bytes = tally.slowest_ms, tally.slowest_bytes
        total.growth_bytes = max(total.growth_bytes, tally.growth_bytes)
    total.refused = dict(refused.most_common())
    return total
