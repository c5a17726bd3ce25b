"""How costs grow: with a waiting inbox, with idle conversations, with the number of workers."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, Literal, NamedTuple

from turnline.contracts import TurnClient, TurnCompleted, UserMessage
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.keys import conversation_keys, shard_keys
from turnline.contracts.opening import open_async
from turnline.ops.bench import systems
from turnline.ops.bench.lab import Lab, new_id
from turnline.ops.bench.measuring import cpu_s, redis_work
from turnline.ops.bench.results import Curve, Point, Row, point_of
from turnline.ops.bench.running import sample
from turnline.ops.bench.scenarios import CONTEXT, FLOOR, INSTANT, REPLY, TEXT, TURNLINE, Scenario
from turnline.ops.bench.systems import Timing, Turnline
from turnline.ops.cli.failures import Failed
from turnline.ops.fleet.child import Child

_SHARD: Final = shard_keys(0)
_INBOXES: Final = (1, 10, 100, 900)
_INBOX_CONVERSATIONS: Final = 4
_INBOX_WARM: Final = 40
_INBOX_TURNS: Final = 200
_KEYS: Final = (0, 10_000, 100_000, 1_000_000)
_WORKERS: Final = (1, 4, 16, 64)
_BUSY: Final = 4
"""Conversations that keep one worker busy."""
_ROUND_S: Final = 1.5
_IDLE_TURNS: Final = 20
_RESTORE_AT_ONCE: Final = 500
_RESTORE: Final = """
for n = ARGV[1], ARGV[2] do
  for i = 3, #ARGV, 3 do
    redis.call('RESTORE', ARGV[i] .. 'idle-' .. n .. ARGV[i + 1], 2592000000, ARGV[i + 2])
  end
end
return 0
"""
"""Copies one conversation to many. ARGV: the first and the last number, then for each key the part
of its name before the conversation's id, the part after it, and its value. They last 30 days."""
_WIRE: Final = 1_000
"""From so many messages of context on, sending them costs more than all else."""
_TURNS_CPU: Final = "CPU of worker and Redis per turn, ms"


class _Spent(NamedTuple):
    """What a fleet and Redis spent."""

    cpu_ms: float
    redis_ms: float
    commands: float

    def per(self, count: float) -> "_Spent":
        """Return the same per turn, or per second."""
        return _Spent(self.cpu_ms / count, self.redis_ms / count, self.commands / count)


class _OfFleet(NamedTuple):
    """One round of a fleet, in the order of its curves."""

    idle_redis_ms: float
    first_ms: float
    busy_cpu_ms: float
    busy_commands: float


def of_rows(rows: Sequence[Row]) -> list[Curve]:
    """Return the curves that scenarios give: cost by context and by length of the reply."""
    context = Curve(
        name="context",
        title="a turn by messages of context",
        x="messages of context",
        y=_TURNS_CPU,
        expected="flat",
        points=_points(rows, CONTEXT, TURNLINE),
        judged_to=_WIRE,
        floor=_points(rows, CONTEXT, FLOOR),
    )
    reply = Curve(
        name="reply",
        title="a turn by chunks of the reply",
        x="chunks of the reply",
        y=_TURNS_CPU,
        expected="linear",
        points=_points(rows, REPLY, TURNLINE),
        floor=_points(rows, REPLY, FLOOR),
    )
    return [curve for curve in (context, reply) if len(curve.points) > 2]


def _points(rows: Sequence[Row], prefix: str, system: str) -> list[Point]:
    return [
        Point(
            x=int(row.scenario.removeprefix(prefix)), y=row.own_cpu_ms, y_range=row.own_cpu_ms_range
        )
        for row in rows
        if row.system == system and row.scenario.startswith(prefix)
    ]


# Inbox


async def by_inbox(lab: Lab, *, rounds: int) -> Curve:
    """Measure turns of conversations whose inboxes stay at a given length."""
    lab.model.answer_as(INSTANT)
    costs: dict[int, list[float]] = {length: [] for length in _INBOXES}
    async with TurnClient.connect(lab.redis_url(TURNLINE)) as client:
        for _ in range(rounds):
            for length, values in costs.items():
                async with lab.awake(TURNLINE) as system:
                    values.append(await _full_inboxes(lab, client, system.programs[0], length))
    return Curve(
        name="inbox",
        title="a turn by messages that wait in its inbox",
        x="messages in the inbox",
        y=_TURNS_CPU,
        expected="flat",
        points=[point_of(length, values) for length, values in costs.items()],
    )


async def _full_inboxes(lab: Lab, client: TurnClient, program: Child, length: int) -> float:
    """Return the CPU of worker and Redis per turn, ms; each turn that ends is replaced."""
    stream = new_id("full")
    ids = [new_id("i") for _ in range(_INBOX_CONVERSATIONS)]
    for conversation_id in ids:
        await client.submit_many([_message(conversation_id, stream) for _ in range(length)])
    ended, start_s, before = 0, 0.0, await redis_work(lab.redis)
    async for event in client.replies(stream, "bench", "1", batch=16):
        if not isinstance(event, TurnCompleted):
            raise Failed("a turn of the benchmark failed")
        await client.submit(_message(event.conversation_id, stream))
        ended += 1
        if ended == _INBOX_WARM:
            start_s, before = cpu_s(program.pid), await redis_work(lab.redis)
        elif ended == _INBOX_WARM + _INBOX_TURNS:
            break
    worker_s = cpu_s(program.pid) - start_s
    redis_s = (await redis_work(lab.redis)).since(before).cpu_s
    for conversation_id in ids:
        await client.forget(conversation_id)
    return (worker_s + redis_s) / _INBOX_TURNS * 1000


def _message(conversation_id: str, stream: str) -> UserMessage:
    return UserMessage(conversation_id=conversation_id, text=TEXT, reply_to=stream)


# Idle conversations


async def by_idle_conversations(lab: Lab, *, rounds: int) -> Curve:
    """Measure turns beside more and more idle conversations, which stay."""
    redis = open_async(lab.redis_url(TURNLINE))
    scenario = Scenario(
        name="idle", title="idle", model=INSTANT, conversations=10, systems=(TURNLINE,)
    )
    points: list[Point] = []
    made = 0
    try:
        template = await _dumps(redis, "hello-0")
        for keys in _KEYS:
            count = keys // len(template)
            await _restore(redis, template, made, count)
            made = max(made, count)
            taken = [await sample(lab, scenario, TURNLINE, warm=True) for _ in range(rounds)]
            costs = [(it.worker_cpu_s + it.redis_cpu_s) / it.turns * 1000 for it in taken]
            points.append(point_of(keys, costs))
    finally:
        await redis.aclose()
    return Curve(
        name="idle",
        title=f"a turn by keys of idle conversations ({len(template)} each)",
        x="keys of idle conversations",
        y=_TURNS_CPU,
        expected="flat",
        points=points,
    )


async def _dumps(redis: AsyncRedis, conversation_id: str) -> list[tuple[str, str, bytes]]:
    """Return the keys of a conversation: name before and behind its id, value serialized."""
    kept: list[tuple[str, str, bytes]] = []
    for name in conversation_keys(_SHARD.tag, conversation_id).own:
        data = await redis.execute_command("DUMP", name)
        if data is not None:
            before, _, behind = name.partition(conversation_id)
            kept.append((before, behind, data))
    return kept


async def _restore(
    redis: AsyncRedis, template: Sequence[tuple[str, str, bytes]], made: int, count: int
) -> None:
    """Raise the number of idle conversations from `made` to `count`."""
    words = [word for key in template for word in key]
    for first in range(made, count, _RESTORE_AT_ONCE):
        last = min(first + _RESTORE_AT_ONCE, count) - 1
        await redis.execute_command("EVAL", _RESTORE, 0, first, last, *words)


# Workers


async def by_workers(lab: Lab, *, rounds: int) -> list[Curve]:
    """Measure fleets of ever more workers, each a process: doing nothing, and all they can."""
    lab.model.answer_as(INSTANT)
    url, base_url = lab.redis_url("growth"), lab.model.base_url
    seen: dict[int, list[_OfFleet]] = {count: [] for count in _WORKERS}
    async with AsyncExitStack() as stack:
        redis = open_async(url)
        stack.push_async_callback(redis.aclose)
        client = await stack.enter_async_context(TurnClient.connect(url))
        programs: list[Child] = []
        fleet = Turnline(TURNLINE, client, programs)
        for count, taken in seen.items():
            while len(programs) < count:
                number = len(programs)
                programs.append(stack.enter_context(systems.worker(url, base_url, number)))
            await _until_up(redis, programs)
            await _turns(fleet, _BUSY * count, 0.0)  # opens their connections
            for _ in range(rounds):
                idle = await _idle(lab, programs)
                first_ms = await _first_delta_ms(fleet)
                busy = await _all_busy(lab, fleet)
                taken.append(_OfFleet(idle.redis_ms, first_ms, busy.cpu_ms, busy.commands))
    turn = f"a turn, {_BUSY} conversations a worker"
    figures: tuple[tuple[str, str, str, Literal["flat", "linear"]], ...] = (
        ("workers-idle", "an idle fleet", "CPU of Redis per second, ms", "linear"),
        ("workers-first", "first delta, idle fleet", "added time, p50, ms", "flat"),
        ("workers-busy", turn, _TURNS_CPU, "flat"),
        ("workers-cmds", turn, "Redis commands", "flat"),
    )
    return [
        Curve(
            name=name,
            title=f"{title}, by workers",
            x="workers",
            y=y,
            expected=expected,
            points=[point_of(count, [it[n] for it in taken]) for count, taken in seen.items()],
        )
        for n, (name, title, y, expected) in enumerate(figures)
    ]


async def _until_up(redis: AsyncRedis, programs: Sequence[Child]) -> None:
    """Wait until all workers have said that they live."""
    while int(await redis.execute_command("ZCARD", _SHARD.workers)) < len(programs):
        for program in programs:
            program.check()
        await asyncio.sleep(0.1)


async def _since(lab: Lab, programs: Sequence[Child], before: _Spent | None = None) -> _Spent:
    """Return what was spent, since an earlier answer or since the start."""
    work = await redis_work(lab.redis)
    workers_s = sum(cpu_s(program.pid) for program in programs)
    now = _Spent((workers_s + work.cpu_s) * 1000, work.cpu_s * 1000, work.commands)
    return now if before is None else _Spent(*(b - a for a, b in zip(before, now, strict=True)))


async def _idle(lab: Lab, programs: Sequence[Child]) -> _Spent:
    """Return what a fleet without work costs per second."""
    before = await _since(lab, programs)
    await asyncio.sleep(_ROUND_S)
    return (await _since(lab, programs, before)).per(_ROUND_S)


async def _first_delta_ms(fleet: Turnline) -> float:
    """Return the median time to the first text of lone turns, ms."""
    times = [await fleet.turn(new_id("w"), TEXT) for _ in range(_IDLE_TURNS)]
    return statistics.median((it.first_s - it.submitted_s) * 1000 for it in times)


async def _all_busy(lab: Lab, fleet: Turnline) -> _Spent:
    """Return what a turn costs while the machine is fully busy."""
    before = await _since(lab, fleet.programs)
    turns = await _turns(fleet, _BUSY * len(fleet.programs), _ROUND_S)
    return (await _since(lab, fleet.programs, before)).per(turns)


async def _turns(fleet: Turnline, conversations: int, seconds: float) -> int:
    """Run turns for so long, at least one in each conversation; return how many."""
    until_s = time.perf_counter() + seconds

    async def converse() -> list[Timing]:
        conversation_id = new_id("w")
        taken = [await fleet.turn(conversation_id, TEXT)]
        while time.perf_counter() < until_s:
            taken.append(await fleet.turn(conversation_id, TEXT))
        return taken

    taken = await asyncio.gather(*(converse() for _ in range(conversations)))
    return sum(map(len, taken))
