"""Carries out what was planned against a fleet of real processes, and notes what happened."""

import heapq
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from redis.exceptions import RedisError

from turnline.contracts.connection import SyncRedis, open_sync
from turnline.contracts.keys import shard_keys
from turnline.ops.chaos.disturbances import FAULTS, MALFORMED, Disturbance, Kind, Planned
from turnline.ops.chaos.journal import Journal, decode_journal
from turnline.ops.chaos.simulated import SimAdmin
from turnline.ops.chaos.traffic import TrafficPlan
from turnline.ops.fleet.stack import Stack

_TICK_S: Final = 0.05
_FEWEST: Final = 2
"""Workers that are left in peace at any time."""
_QUIET_S: Final = 90.0


class Member(NamedTuple):
    """One worker of the fleet: a place in one of its stacks."""

    stack: Stack
    number: int
    """Of the worker within the stack."""
    name: str


class Worker:
    """What the driver knows of one worker."""

    def __init__(self, member: Member) -> None:
        """Take a running worker."""
        self.member = member
        self.stopped = False
        self.down = False
        """Whether it was killed, or told to end, and not started again yet."""
        self.started_ms = now_ms()

    @property
    def name(self) -> str:
        """As in its events."""
        return self.member.name

    @property
    def is_up(self) -> bool:
        """Whether it takes turns, as far as the driver is concerned."""
        return not (self.stopped or self.down)


class Outcome(msgspec.Struct, kw_only=True):
    """What happened in a run."""

    journal: Journal
    disturbances: list[Disturbance]
    faults: int
    """Scenarios that met model calls."""
    deaths: list[str]
    """Workers that ended without having been told to, with their last words."""
    refused_starts: int
    """Workers that did not start since Redis was away just then, and were started again."""
    on_queue: int
    """Conversations that were still on the queue when everything should have ended."""
    is_done: bool
    """Whether producers and readers came to an end."""
    seconds: float


def now_ms() -> float:
    """Return the wall clock, ms since the Unix epoch."""
    return time.time() * 1000


class Driver:
    """Disturbs a fleet under load, then lets it come to rest.

    Must be used from the main thread, which is the one whose end ends the workers.
    """

    def __init__(
        self,
        home: Stack,
        members: Sequence[Member],
        traffic: TrafficPlan,
        *,
        tell: Callable[[str], None],
        traffic_env: Mapping[str, str] | None = None,
        malformed: Mapping[str, float] = MALFORMED,
    ) -> None:
        """Prepare; nothing is disturbed yet.

        Args:
            home: Has the private Redis and the simulator.
            members: All workers, running.
            traffic: What producers and readers do.
            tell: Called with a line about what is happening.
            traffic_env: Further variables for the traffic process.
            malformed: Scenarios for the few conversations whose replies are malformed.
        """
        assert home.redis is not None
        self._redis = home.redis
        self._url = home.redis_url
        self._sim = SimAdmin(home.base_url)
        self._workers = [Worker(member) for member in members]
        self._traffic = traffic
        self._tell = tell
        self._malformed = malformed
        self._environ = {**os.environ, **(traffic_env or {})}
        self._done: list[Disturbance] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._redis_away: list[tuple[float, float]] = []
        self._redis_down = False
        self._full = False
        self.deaths: list[str] = []
        self.refused_starts = 0

    def run(self, plan: Iterable[Planned], seconds: float, seed: int) -> Outcome:
        """Let the traffic flow for a time and disturb it as planned; then wait for rest."""
        began_s = time.monotonic()
        self._make_durable()
        self._sim.add_faults(FAULTS, seed)
        # One digit: the first ten that are talked in at a time.
        self._sim.add_faults(self._malformed, seed + 1, conversation=f"{self._traffic.prefix}-?-*")
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "turnline.ops.chaos.traffic",
                msgspec.json.encode(self._traffic).decode(),
            ],
            stdin=subprocess.PIPE,
            env=self._environ,
            cwd=Path(__file__).parents[2],
        )
        try:
            for each in plan:
                heapq.heappush(
                    self._later, (began_s + each.at_s, next(self._numbers), self._striking(each))
                )
            while (left_s := began_s + seconds - time.monotonic()) > 0:
                self._work_off()
                self._look_after()
                self._tell(f"{left_s:.0f} s to go, {len(self._done)} disturbances")
                time.sleep(_TICK_S)
            faults = self._calm()
            is_done = self._finish(process)
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        return Outcome(
            journal=decode_journal(Path(self._traffic.journal).read_bytes())
            if is_done
            else Journal(),
            disturbances=sorted(self._done, key=lambda it: it.from_ms),
            faults=faults,
            deaths=self.deaths,
            refused_starts=self.refused_starts,
            on_queue=self._wait_for_an_empty_queue(),
            is_done=is_done,
            seconds=time.monotonic() - began_s,
        )

    # -- striking -------------------------------------------------------------------------------

    def _striking(self, planned: Planned) -> Callable[[], None]:
        return lambda: self._strike(planned)

    def _strike(self, planned: Planned) -> None:
        strikes: Mapping[Kind, Callable[[Planned], bool]] = {
            "kill": self._end,
            "stop": self._stop,
            "term": self._end,
            "redis-kill": self._restart_redis,
            "redis-clean": self._restart_redis,
            "redis-full": self._fill_redis,
            "flush": self._flush,
            "cut": self._cut,
            "outage": self._outage,
        }
        if not strikes[planned.kind](planned):
            self._after(0.2, self._striking(planned))  # not now, but soon

    def _end(self, planned: Planned) -> bool:
        worker = self._victim(planned)
        if worker is None:
            return False
        at_ms, stack = now_ms(), worker.member.stack
        end = stack.kill if planned.kind == "kill" else stack.terminate
        end(worker.member.number)
        worker.down = True
        self._after(planned.lasts_s, lambda: self._start(worker, planned.kind, at_ms))
        return True

    def _stop(self, planned: Planned) -> bool:
        worker = self._victim(planned)
        if worker is None:
            return False
        at_ms = now_ms()
        worker.member.stack.stop(worker.member.number)
        worker.stopped = True
        self._after(planned.lasts_s, lambda: self._resume(worker, at_ms))
        return True

    def _restart_redis(self, planned: Planned) -> bool:
        if self._redis_down or self._full:
            return False
        at_ms = now_ms()
        if planned.kind == "redis-kill":
            self._redis.kill()
        else:
            os.kill(self._redis.pid, signal.SIGTERM)
            self._redis.wait()
        self._redis_down = True
        self._after(planned.lasts_s, lambda: self._start_redis(planned.kind, at_ms))
        return True

    def _fill_redis(self, planned: Planned) -> bool:
        if self._redis_down or self._full or not self._order("CONFIG", "SET", "maxmemory", 1):
            return False
        at_ms = now_ms()
        self._full = True
        self._after(planned.lasts_s, lambda: self._empty_redis(at_ms))
        return True

    def _flush(self, planned: Planned) -> bool:
        if self._order("SCRIPT", "FLUSH"):
            self._note(planned.kind, "", now_ms())
        return True

    def _cut(self, planned: Planned) -> bool:
        kind = "pubsub" if planned.victim < 0.5 else "normal"
        if self._order("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"):
            self._note(planned.kind, "", now_ms())
            self._redis_away.append((now_ms(), now_ms()))
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
        stack, index, _ = worker.member
        if stack.is_running(index):  # terminated, and still draining
            self._after(0.1, lambda: self._start(worker, kind, at_ms))
            return
        self._note(kind, worker.name, at_ms)
        stack.start(index)
        worker.started_ms = now_ms()
        worker.down = False

    def _resume(self, worker: Worker, at_ms: float) -> None:
        worker.member.stack.resume(worker.member.number)
        worker.stopped = False
        self._note("stop", worker.name, at_ms)

    def _start_redis(self, kind: Kind, at_ms: float) -> None:
        self._redis.restart()
        self._make_durable()
        self._redis_down = False
        self._note(kind, "", at_ms)
        self._redis_away.append((at_ms, now_ms()))

    def _empty_redis(self, at_ms: float) -> None:
        if not self._order("CONFIG", "SET", "maxmemory", 0):
            self._after(0.1, lambda: self._empty_redis(at_ms))
            return
        self._full = False
        self._note("redis-full", "", at_ms)
        self._redis_away.append((at_ms, now_ms()))

    # -- running --------------------------------------------------------------------------------

    def _work_off(self) -> None:
        """Do what is due."""
        while self._later and self._later[0][0] <= time.monotonic():
            _, _, action = heapq.heappop(self._later)
            action()

    def _look_after(self) -> None:
        """Start again what ended by itself; unless Redis was away, that is a finding."""
        for worker in self._workers:
            stack, index, name = worker.member
            if worker.down or stack.is_running(index):
                continue
            code = stack.wait(index)
            if code == 2 and self._was_redis_away(worker.started_ms):
                self.refused_starts += 1
            else:
                after_s = (now_ms() - worker.started_ms) / 1000
                self.deaths.append(
                    f"{name} ended (exit code {code}, {after_s:.1f} s after its start):\n"
                    f"{stack.log_of(index)}"
                )
            stack.start(index)
            worker.started_ms = now_ms()

    def _was_redis_away(self, since_ms: float) -> bool:
        if self._redis_down or self._full:
            return True
        return any(to_ms >= since_ms for _, to_ms in self._redis_away)

    def _calm(self) -> int:
        """Undo everything; return how many model calls met a fault."""
        self._tell("waiting for the last turns")
        self._later = [it for it in self._later if "_striking" not in it[2].__qualname__]
        heapq.heapify(self._later)
        deadline = time.monotonic() + 30
        while self._later and time.monotonic() < deadline:
            self._later = [(0.0, number, action) for _, number, action in self._later]
            self._work_off()
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
        redis = open_sync(self._url, retries=3)
        try:
            while True:
                left = int(redis.execute_command("ZCARD", shard_keys(0).queue))
                if not left or time.monotonic() > deadline:
                    return left
                time.sleep(_TICK_S)
        finally:
            redis.close()

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        due_s = time.monotonic() + seconds
        heapq.heappush(self._later, (due_s, next(self._numbers), action))

    def _note(self, kind: Kind, worker: str, from_ms: float) -> None:
        self._done.append(Disturbance(kind=kind, worker=worker, from_ms=from_ms, to_ms=now_ms()))

    def _make_durable(self) -> None:
        """Have Redis write to disk before it answers, so that a killed one has lost nothing."""
        self._order("CONFIG", "SET", "appendfsync", "always")

    def _order(self, *words: str | int) -> bool:
        """Send Redis one command; return whether it was done."""
        redis: SyncRedis = open_sync(self._url, retries=0)
        try:
            redis.execute_command(*words)
        except (RedisError, OSError):
            return False
        else:
            return True
        finally:
            redis.close()
