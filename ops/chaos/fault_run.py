"""Carries out a plan on a fleet of real processes and records what happened."""

import os
import sched
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import msgspec

from turnline.contracts.keys import shard_keys
from turnline.contracts.opening import open_sync
from turnline.ops.chaos.disturbances import (
    EVENT_FAULTS,
    FAULTS,
    HITS_REDIS,
    MALFORMED,
    Disturbance,
    Kind,
    Planned,
)
from turnline.ops.chaos.journal import Journal, decode_journal
from turnline.ops.chaos.reshards import Resharded, Reshards
from turnline.ops.chaos.simulated import SimAdmin
from turnline.ops.chaos.stores import Store, Strike
from turnline.ops.chaos.traffic import TrafficPlan
from turnline.ops.fleet.child import ROOT
from turnline.ops.fleet.stack import Stack

_TICK_S: Final = 0.05
_REST_S: Final = 60.0
"""Longest time for everything to be undone at the end."""
_LATE_S: Final = 60.0
"""For which a run goes on for strikes that could not be made in its time."""
_FEWEST: Final = 2
"""At least so many workers are left alone at any time."""


class Worker:
    """One worker of the fleet, and what the driver knows of it."""

    def __init__(self, stack: Stack, number: int, name: str) -> None:
        """Take the running worker with this number within its stack; `name` is in its events."""
        self.name = name
        self._stack = stack
        self._number = number
        self.stopped = False
        self.down = False
        """Whether it was killed, or told to end, and not started again yet."""
        self.started_ms = now_ms()
        self._was_ready = True

    @property
    def is_up(self) -> bool:
        """Whether it takes turns, as far as the driver is concerned.

        One that starts does not: killed again and again it would never have taken any.
        """
        return self._was_ready and not (self.stopped or self.down)

    def look(self) -> None:
        """See whether it takes turns by now; asks Redis."""
        if not (self._was_ready or self.stopped or self.down):
            self._was_ready = self._stack.is_ready(self._number)

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self._stack.is_running(self._number)

    def end(self, *, at_once: bool) -> None:
        """Kill it, or ask it to end."""
        (self._stack.kill if at_once else self._stack.terminate)(self._number)
        self.down = True

    def freeze(self) -> None:
        """Stop it."""
        self._stack.stop(self._number)
        self.stopped = True

    def resume(self) -> None:
        """Let it go on."""
        self._stack.resume(self._number)
        self.stopped = False

    def start(self) -> None:
        """Start it again."""
        self._stack.start(self._number)
        self.started_ms = now_ms()
        self.down = self._was_ready = False

    def last_words(self) -> tuple[int, str]:
        """Return how it ended, and what it said last."""
        return self._stack.wait(self._number), self._stack.log_of(self._number)


class Outcome(msgspec.Struct, kw_only=True):
    """What happened in a run."""

    journal: Journal
    disturbances: list[Disturbance]
    faults: int
    """Scenarios that met model calls."""
    deaths: list[str]
    """Workers that ended without having been told to, with their last words."""
    refused_starts: int
    """Starts that failed because Redis was away; the worker was started again."""
    on_queue: int
    """Conversations that were still on the queue when everything should have ended."""
    is_done: bool
    """Whether producers and readers came to an end."""
    seconds: float
    resharded: Resharded | None = None
    """None where the fleet kept its number of shards."""


def now_ms() -> float:
    """Return the wall clock, ms since the Unix epoch."""
    return time.time() * 1000


class Driver:
    """Disturbs a fleet under load, then lets it come to rest.

    Use it from the main thread: workers die when the thread that started them ends.
    """

    def __init__(
        self,
        home: Stack,
        store: Store,
        workers: Sequence[Worker],
        traffic: TrafficPlan,
        *,
        tell: Callable[[str], None],
        traffic_env: Mapping[str, str],
        malformed: Mapping[str, float] = MALFORMED,
        reshards: Reshards | None = None,
    ) -> None:
        """Prepare; nothing is disturbed yet.

        Args:
            home: Has the simulator.
            store: The Redis of the fleet.
            workers: All of them, running.
            traffic: What producers and readers do.
            tell: Called with a line about what is happening.
            traffic_env: Further variables for the traffic process.
            malformed: Scenarios for the few conversations whose replies are malformed.
            reshards: Changes the number of shards all the time.
        """
        self._store = store
        self._sim = SimAdmin(home.base_url)
        self._workers = workers
        self._traffic = traffic
        self._tell = tell
        self._malformed = malformed
        self._reshards = reshards
        self._environ = {**os.environ, **traffic_env}
        self._done: list[Disturbance] = []
        self._strikes = sched.scheduler(time.monotonic)
        """What is still to be done to the fleet."""
        self._repairs = sched.scheduler(time.monotonic)
        """What is still to be undone."""
        self._last_return_ms = 0.0
        """When Redis was last back after it was away."""
        self._deaths: list[str] = []
        self._refused_starts = 0

    def run(self, plan: Iterable[Planned], seconds: float, seed: int) -> Outcome:
        """Let the traffic flow for a time and disturb it as planned; then wait for rest."""
        self._sim.add_faults(FAULTS, seed)
        self._sim.add_faults(EVENT_FAULTS, seed + 2, path="*/responses")
        # A name with one digit: the first ten conversations.
        self._sim.add_faults(self._malformed, seed + 1, conversation=f"{self._traffic.prefix}-?-*")
        process = self._start_traffic()
        began_s = time.monotonic()
        try:
            for each in plan:
                self._strikes.enterabs(began_s + each.at_s, 0, self._strike, (each,))
            while (left_s := began_s + seconds - time.monotonic()) > 0 or (
                not self._strikes.empty() and left_s > -_LATE_S
            ):
                self._strikes.run(blocking=False)
                self._repairs.run(blocking=False)
                self._look_after()
                self._tell(f"{max(0, left_s):.0f} s to go, {len(self._done)} disturbances")
                time.sleep(_TICK_S)
            faults = self._calm()
            is_done = self._finish(process)
            if self._reshards is not None:
                self._reshards.finish(_REST_S, self._was_away)
        finally:
            if self._reshards is not None:
                self._reshards.close()
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        written = Path(self._traffic.journal)
        return Outcome(
            journal=decode_journal(written.read_bytes()) if is_done else Journal(),
            disturbances=sorted(self._done, key=lambda it: it.from_ms),
            faults=faults,
            deaths=self._deaths,
            refused_starts=self._refused_starts,
            on_queue=self._wait_for_an_empty_queue(),
            is_done=is_done,
            seconds=time.monotonic() - began_s,
            resharded=self._reshards.found if self._reshards is not None else None,
        )

    def _start_traffic(self) -> "subprocess.Popen[bytes]":
        """Start producers and readers; they talk, or have ended."""
        words = msgspec.json.encode(self._traffic).decode()
        process = subprocess.Popen(
            [sys.executable, "-m", "turnline.ops.chaos.traffic", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environ,
            cwd=ROOT,
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    # -- striking -------------------------------------------------------------------------------

    def _strike(self, planned: Planned) -> None:
        strikes: Mapping[Kind, Callable[[Planned], bool]] = {
            "kill": self._end,
            "stop": self._stop,
            "term": self._end,
            "outage": self._outage,
        }
        if not strikes.get(planned.kind, self._strike_store)(planned):
            self._strikes.enter(0.2, 0, self._strike, (planned,))  # not now, but soon

    def _undo(self, after_s: float, action: Callable[..., None], *args: object) -> None:
        self._repairs.enter(after_s, 0, action, args)

    def _end(self, planned: Planned) -> bool:
        if (worker := self._victim(planned)) is None:
            return False
        at_ms = now_ms()
        worker.end(at_once=planned.kind == "kill")
        self._undo(planned.lasts_s, self._start, worker, planned.kind, at_ms)
        return True

    def _stop(self, planned: Planned) -> bool:
        if (worker := self._victim(planned)) is None:
            return False
        at_ms = now_ms()
        worker.freeze()
        self._undo(planned.lasts_s, self._resume, worker, at_ms)
        return True

    def _strike_store(self, planned: Planned) -> bool:
        at_ms = now_ms()
        struck = self._store.strike(planned)
        if struck is None:
            return False
        self._undo(planned.lasts_s, self._restore, planned.kind, struck, at_ms)
        return True

    def _outage(self, planned: Planned) -> bool:
        scenario = "capacity" if planned.victim < 0.5 else "unavailable"
        self._sim.add_rule(scenario, times=12)
        self._note(planned.kind, "", now_ms())
        return True

    def _victim(self, planned: Planned) -> Worker | None:
        up = [worker for worker in self._workers if worker.is_up]
        if len(up) <= _FEWEST:
            return None
        return up[int(planned.victim * len(up))]

    # -- undoing --------------------------------------------------------------------------------

    def _start(self, worker: Worker, kind: Kind, at_ms: float) -> None:
        if worker.is_running:  # terminated, and still draining
            self._undo(0.1, self._start, worker, kind, at_ms)
            return
        self._note(kind, worker.name, at_ms)
        worker.start()

    def _resume(self, worker: Worker, at_ms: float) -> None:
        worker.resume()
        self._note("stop", worker.name, at_ms)

    def _restore(self, kind: Kind, struck: Strike, at_ms: float) -> None:
        if not struck.undo():
            self._undo(0.1, self._restore, kind, struck, at_ms)
            return
        done = Disturbance(
            kind=kind,
            from_ms=at_ms,
            to_ms=now_ms(),
            node=struck.node,
            shards=struck.shards,
            failed_over=struck.failed_over,
        )
        self._done.append(done)
        if kind in HITS_REDIS:
            self._last_return_ms = now_ms()

    # -- running --------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Restart workers that ended by themselves. Each is a finding, unless Redis was away.

        See to it that the fleet is resharded, too.
        """
        if self._reshards is not None:
            self._reshards.look_after(self._was_away)
        for worker in self._workers:
            if not self._store.is_away:
                worker.look()
            if worker.down or worker.is_running:
                continue
            code, words = worker.last_words()
            if code == 2 and self._was_away(worker.started_ms):
                self._refused_starts += 1
            else:
                after_s = (now_ms() - worker.started_ms) / 1000
                self._deaths.append(
                    f"{worker.name} ended (exit code {code}, {after_s:.1f} s after its start):\n"
                    f"{words}"
                )
            worker.start()

    def _was_away(self, since_ms: float) -> bool:
        """Whether Redis was away at any time since then, or is."""
        return self._store.is_away or self._last_return_ms >= since_ms

    def _calm(self) -> int:
        """Undo everything; return how many model calls met a fault."""
        self._tell("waiting for the last turns")
        deadline = time.monotonic() + _REST_S
        if self._reshards is not None:
            self._reshards.is_last()
        for each in self._repairs.queue:  # at once
            self._repairs.cancel(each)
            self._repairs.enter(0, 0, each.action, each.argument)
        while not self._repairs.empty() and time.monotonic() < deadline:
            self._repairs.run(blocking=False)
            time.sleep(_TICK_S)
        return self._sim.remove_faults()

    def _finish(self, process: "subprocess.Popen[bytes]") -> bool:
        """Tell the traffic to come to an end; return whether it did."""
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(b"quiet\n")
            process.stdin.flush()
        deadline = time.monotonic() + self._traffic.patience_s + 30
        while process.poll() is None and time.monotonic() < deadline:
            self._look_after()
            time.sleep(_TICK_S)
        return process.poll() == 0

    def _wait_for_an_empty_queue(self) -> int:
        deadline = time.monotonic() + 10
        queues = [shard_keys(n).queue for n in range(self._store.shards)]
        with closing(open_sync(self._store.url, patience_s=3)) as redis:
            while True:
                left = sum(int(redis.execute_command("ZCARD", queue)) for queue in queues)
                if not left or time.monotonic() > deadline:
                    return left
                time.sleep(_TICK_S)

    def _note(self, kind: Kind, worker: str, from_ms: float) -> None:
        self._done.append(Disturbance(kind=kind, worker=worker, from_ms=from_ms, to_ms=now_ms()))
