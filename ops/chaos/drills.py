"""Drills that each measure one promise: a kill, a stall, a hand-over, a cancellation."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final

from turnline.contracts import Receipt, TextDelta, TurnClient, TurnStarted, UserMessage
from turnline.contracts.replies import TERMINAL, AnyEvent, TurnInterrupted
from turnline.ops.chaos import endless, ends, malformed, sabotage, stalling
from turnline.ops.chaos.figures import Drilled, Figure, Name, Tell, fleet, percentile
from turnline.ops.chaos.simulated import SimAdmin
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet.stack import Stack

_DRAIN_S: Final = 10.0
"""The workers' default grace period."""
_STALL_S: Final = 2.0
_PATIENCE_S: Final = 60.0


def run(name: Name, *, rounds: int, tell: Tell, seed: int = 0) -> Drilled:
    """Carry out one drill. From the main thread only.

    Args:
        name: Which one.
        rounds: How often; what a round is differs.
        tell: Called with how it is going.
        seed: Of the moments at which workers are told to end.

    Raises:
        Failed: A turn did not come as far as the drill needs it to.
    """
    drills: Mapping[Name, Callable[[int, Tell], Coroutine[Any, Any, Drilled]]]
    drills = {
        "kill": _kill,
        "child": _child,
        "stall": _stall,
        "term": _term,
        "cancel": _cancel,
        "malformed": malformed.drill,
        "end": partial(ends.drill, seed=seed),
        "endless": endless.drill,
    }
    return asyncio.run(drills[name](rounds, tell))


class _Watch:
    """Reads one turn from its beginning and notes when it saw what."""

    def __init__(self, client: TurnClient, receipt: Receipt) -> None:
        self.receipt = receipt
        self.events: list[tuple[float, AnyEvent]] = []
        """(seconds on the wall clock, event)."""
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._read(client))

    async def _read(self, client: TurnClient) -> None:
        events: Any = client.events(self.receipt)
        async with aclosing(events):
            async for event in events:
                async with self._news:
                    self.events.append((time.time(), event))
                    self._news.notify_all()

    async def until(self, holds: Callable[[AnyEvent], bool]) -> tuple[float, AnyEvent]:
        """Return the first event for which this holds, and when it came.

        Raises:
            Failed: It did not come in time.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S), self._news:
                while True:
                    for at_s, event in self.events:
                        if holds(event):
                            return at_s, event
                    await self._news.wait()
        except TimeoutError:
            kinds = [type(event).__name__ for _, event in self.events]
            raise Failed(f"turn {self.receipt.turn_id} stands still behind {kinds}") from None

    @property
    def worker(self) -> str:
        """Who makes the latest attempt."""
        started = [event.worker for _, event in self.events if isinstance(event, TurnStarted)]
        return started[-1] if started else ""

    @property
    def attempts(self) -> int:
        """How many attempts were seen."""
        return max((event.attempt for _, event in self.events), default=0)

    def misled(self) -> bool:
        """Whether a reader saw a text twice, missed some, or was left with another one."""
        attempt, text = 0, ""
        for _, event in self.events:
            if isinstance(event, TERMINAL):
                return not getattr(event, "text", "").startswith(text.strip())
            if event.attempt < attempt:
                return True
            if event.attempt > attempt:
                attempt, text = event.attempt, ""
            if isinstance(event, TextDelta):
                if event.offset != len(text):
                    return True
                text += event.text
        return False

    async def close(self) -> None:
        """Read no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def _watches(
    client: TurnClient, conversations: Iterable[str]
) -> AsyncGenerator[list[_Watch]]:
    """Put one message into each conversation and watch the turns, once all of them speak."""
    watches: list[_Watch] = []
    try:
        for name in conversations:
            message = UserMessage(conversation_id=name, text="tell me everything")
            watches.append(_Watch(client, await client.submit(message)))
        for watch in watches:
            await watch.until(_spoke)
        yield watches
    finally:
        for watch in watches:
            await watch.close()


@asynccontextmanager
async def _stage(
    workers: int, words: Mapping[str, int], processes: int = 0, /, **environ: str
) -> AsyncGenerator[tuple[Stack, SimAdmin, TurnClient]]:
    """Start a fleet whose model says so many words in conversations of such names."""
    with fleet(workers, processes, **environ) as stack:
        sim = SimAdmin(stack.base_url)
        for conversation, chunks in words.items():
            sim.add_rule(f"chunks={chunks}", times=None, conversation=conversation)
        async with TurnClient.connect(stack.redis_url) as client:
            yield stack, sim, client


def _spoke(event: AnyEvent) -> bool:
    return isinstance(event, TextDelta)


def _spoke_again(event: AnyEvent) -> bool:
    return isinstance(event, TextDelta) and event.attempt > 1


def _begun_again(event: AnyEvent) -> bool:
    return isinstance(event, TurnStarted) and event.attempt > 1


def _ended(event: AnyEvent) -> bool:
    return isinstance(event, TERMINAL)


def _is_long(watch: _Watch) -> bool:
    return watch.receipt.conversation_id.startswith("long-")


async def _kill(rounds: int, tell: Tell) -> Drilled:
    """SIGKILL a worker mid-stream and wait for another one's first delta."""
    waits: list[float] = []
    rng = random.Random(rounds)
    async with _stage(4, {"*": 300}) as (stack, _, client):
        for n in range(rounds):
            tell(f"kill {n + 1} of {rounds}")
            async with _watches(client, [f"kill-{n}-{m}" for m in range(3)]) as watches:
                # Anywhere between two heartbeats: just after a claim the lease is longest.
                await asyncio.sleep(rng.uniform(0.5, 1.5))
                victim = watches[0].worker
                index = stack.worker_names.index(victim)
                cut_off = [watch for watch in watches if watch.worker == victim]
                at_s = time.time()
                stack.kill(index)
                for watch in cut_off:
                    seen_s, _ = await watch.until(_spoke_again)
                    waits.append(seen_s - at_s)
                for watch in watches:
                    await client.interrupt(watch.receipt.conversation_id)
                stack.start(index)
                for watch in watches:
                    await watch.until(_ended)
                stack.wait_ready()
    return Drilled(
        "kill",
        "SIGKILL mid-stream, until another worker's first new delta",
        [
            Figure("kills", rounds),
            Figure("turns cut off", len(waits)),
            Figure("p50", percentile(waits, 0.5), "s", 2.0),
            Figure("p99", percentile(waits, 0.99), "s", 3.0),
            Figure("slowest", max(waits), "s"),
        ],
    )


async def _child(rounds: int, tell: Tell) -> Drilled:
    """SIGKILL one of the processes of a supervisor mid-stream, and wait for another's delta."""
    waits: list[float] = []
    again = misled = 0
    rng = random.Random(rounds)
    async with _stage(1, {"*": 300}, 4) as (stack, _, client):
        for n in range(rounds):
            tell(f"kill {n + 1} of {rounds}")
            async with _watches(client, [f"child-{n}-{m}" for m in range(4)]) as watches:
                await asyncio.sleep(rng.uniform(0.0, 0.5))
                victim = watches[0].worker
                cut_off = [watch for watch in watches if watch.worker == victim]
                pid = stack.pid_of(victim)
                at_s = time.time()
                os.kill(pid, signal.SIGKILL)
                for watch in cut_off:
                    seen_s, _ = await watch.until(_spoke_again)
                    waits.append(seen_s - at_s)
                for watch in watches:
                    await client.interrupt(watch.receipt.conversation_id)
                    await watch.until(_ended)
                    again += watch.attempts > 1 + (watch in cut_off)
                    misled += watch.misled()
                await _replaced(stack, victim, pid)
    return Drilled(
        "child",
        "SIGKILL of one of four processes under a supervisor, until another's first new delta",
        [
            Figure("kills", rounds),
            Figure("turns cut off", len(waits)),
            Figure("p50", percentile(waits, 0.5), "s", 0.2),
            Figure("p99", percentile(waits, 0.99), "s", 0.4),
            Figure("slowest", max(waits), "s"),
            Figure("turns run again without need", again, most=0),
            Figure("shown anything twice", misled, most=0),
        ],
    )


async def _replaced(stack: Stack, name: str, pid: int) -> None:
    """Wait until a supervisor has another process in the place of one that was killed.

    Raises:
        Failed: It has none.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while stack.pid_of(name) in {0, pid}:
        if time.monotonic() > deadline:
            raise Failed(f"{name} was killed and is not back")
        await asyncio.sleep(0.05)


async def _stall(rounds: int, tell: Tell) -> Drilled:
    """Hold up a worker's event loop under load; its heartbeat goes on."""
    kept = moved = misled = 0
    environ = {**sabotage.environment(""), stalling.VARIABLE: str(_STALL_S)}
    async with _stage(2, {"*": 200}, **environ) as (stack, _, client):
        for n in range(rounds):
            tell(f"stall {n + 1} of {rounds}")
            async with _watches(client, [f"stall-{n}-{m}" for m in range(20)]) as watches:
                victim = watches[0].worker
                held = [watch for watch in watches if watch.worker == victim]
                os.kill(stack.pid(stack.worker_names.index(victim)), stalling.SIGNAL)
                for watch in watches:
                    await watch.until(_ended)
                kept += sum(watch.attempts == 1 for watch in held)
                moved += sum(watch.attempts > 1 for watch in held)
                misled += sum(watch.misled() for watch in watches)
    return Drilled(
        "stall",
        f"an event loop held up for {_STALL_S:g} s under load",
        [
            Figure("stalls", rounds),
            Figure("turns held up", kept + moved),
            Figure("kept", kept),
            Figure("gone on elsewhere", moved),
            Figure("shown anything twice", misled, most=0),
        ],
    )


async def _term(rounds: int, tell: Tell) -> Drilled:
    """SIGTERM a worker whose turns outlast the grace period, and some that do not."""
    waits: list[float] = []
    again = short = 0
    async with _stage(3, {"long-*": 700, "short-*": 200}) as (stack, _, client):
        for n in range(rounds):
            tell(f"hand-over {n + 1} of {rounds}")
            names = [f"{kind}-{n}-{m}" for m in range(4) for kind in ("long", "short")]
            async with _watches(client, names) as watches:
                victim = next(watch.worker for watch in watches if _is_long(watch))
                index = stack.worker_names.index(victim)
                held = [watch for watch in watches if watch.worker == victim]
                at_s = time.time()
                stack.terminate(index)
                for watch in filter(_is_long, held):
                    seen_s, _ = await watch.until(_begun_again)
                    waits.append(seen_s - at_s - _DRAIN_S)
                for watch in watches:
                    if _is_long(watch):
                        await client.interrupt(watch.receipt.conversation_id)
                    await watch.until(_ended)
                short += sum(not _is_long(watch) for watch in held)
                for watch in watches:
                    once = watch not in held or not _is_long(watch)
                    again += (once and watch.attempts > 1) + (watch.attempts > 2)
                stack.wait(index, _PATIENCE_S)
                stack.start(index)
                stack.wait_ready()
    return Drilled(
        "term",
        f"SIGTERM, from the end of the grace period ({_DRAIN_S:g} s) until the turn goes on",
        [
            Figure("terminations", rounds),
            Figure("turns handed over", len(waits)),
            Figure("p50", percentile(waits, 0.5), "s", 0.5),
            Figure("slowest", max(waits), "s", 0.5),
            Figure("turns that finished in time", short),
            Figure("of these, and of others, run twice", again, most=0),
        ],
    )


async def _cancel(rounds: int, tell: Tell) -> Drilled:
    """Interrupt a stream, and look when the model saw its connection closed."""
    closed: list[float] = []
    ended: list[float] = []
    lost = uncounted = 0
    async with _stage(2, {"*": 300}) as (_, sim, client):
        for n in range(rounds):
            tell(f"cancellation {n + 1} of {rounds}")
            name = f"cancel-{n}"
            async with _watches(client, [name]) as (watch,):
                at_s = time.time()
                await client.interrupt(name)
                seen_s, end = await watch.until(_ended)
            ended.append((seen_s - at_s) * 1000)
            kept = isinstance(end, TurnInterrupted) and bool(end.text)
            context = (await client.history(name)).messages
            lost += not (kept and context[-1].content == getattr(end, "text", ""))
            uncounted += (await client.usage(name)).usage.completion_tokens == 0
            closed.append(await _closed_after_ms(sim, name, at_s * 1000))
    return Drilled(
        "cancel",
        "interrupt mid-stream, until the model's connection is closed",
        [
            Figure("cancellations", rounds),
            Figure("closed, p50", percentile(closed, 0.5), "ms"),
            Figure("closed, p99", percentile(closed, 0.99), "ms", 50),
            Figure("reader sees the end, p50", percentile(ended, 0.5), "ms"),
            Figure("reader sees the end, p99", percentile(ended, 0.99), "ms"),
            Figure("partial replies lost", lost, most=0),
            Figure("without a count of tokens", uncounted, most=0),
        ],
    )


async def _closed_after_ms(sim: SimAdmin, conversation: str, from_ms: float) -> float:
    """Return how long after a moment the model saw the connection of the only call closed."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        (entry,) = await asyncio.to_thread(lambda: [*sim.entries(conversation=conversation)])
        if entry.disconnected_at_ms is not None:
            return entry.disconnected_at_ms - from_ms
        await asyncio.sleep(0.01)
    raise Failed(f"the model's connection for {conversation} was not closed")
