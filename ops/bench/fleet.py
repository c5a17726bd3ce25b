"""How many turns a fleet of workers has in flight while the model does not answer."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

from turnline.contracts import TurnClient, TurnCompleted, UserMessage
from turnline.ops.bench import fleet_process
from turnline.ops.bench.baselines import arq_worker
from turnline.ops.bench.held_model import HeldModel, allow_open_files
from turnline.ops.bench.lab import new_id
from turnline.ops.bench.measuring import rss_mb
from turnline.ops.bench.results import InFlight
from turnline.ops.bench.systems import arq_pool, program
from turnline.ops.fleet.child import Child

_BATCH: Final = 200
_STUCK_S: Final = 30.0
"""A fleet is broken if it should begin another turn and has not for so long."""
_STANDSTILL_S: Final = 5.0
"""The same for a fleet that is expected to stop."""
_STREAM: Final = "fleet"
_TEXT: Final = "Hello"


class Size(NamedTuple):
    """How large the fleet is."""

    workers: int = 24
    slots: int = 100

    @property
    def turns(self) -> int:
        """How many turns would fill it."""
        return self.workers * self.slots


async def turnline_in_flight(redis_url: str, size: Size) -> InFlight:
    """Give Turnline's fleet as many turns as it has slots, and wait until all are answered."""
    async with TurnClient.connect(redis_url) as client, HeldModel() as model:

        async def ask(count: int) -> None:
            for start in range(0, count, _BATCH):
                messages = [
                    UserMessage(conversation_id=new_id(f"f{n}"), text=_TEXT, reply_to=_STREAM)
                    for n in range(start, min(count, start + _BATCH))
                ]
                for outcome in await client.submit_many(messages):
                    if isinstance(outcome, Exception):
                        raise outcome

        with _process("turnline", redis_url, model, size) as program:
            await ask(1)
            await _completed(client, 1)
            rest_mb = rss_mb(program.pid)
            model.hold()
            await ask(size.turns)
            await _standstill(model, program, size.turns, after_s=_STUCK_S)
            busy_mb = rss_mb(program.pid)
            model.release()
            completed = await _completed(client, size.turns)
    return _result("turnline", size, model.most, completed, (rest_mb, busy_mb))


async def arq_in_flight(redis_url: str, size: Size) -> InFlight:
    """Give a stock ARQ fleet as many turns as it has slots, and count those that it begins."""
    pool = await arq_pool(redis_url)

    async def ask(count: int) -> None:
        for start in range(0, count, _BATCH):
            await asyncio.gather(
                *(
                    arq_worker.enqueue(pool, new_id(f"f{n}"), uuid.uuid4().hex, _TEXT)
                    for n in range(start, min(count, start + _BATCH))
                )
            )

    async with HeldModel() as model:
        try:
            with _process("arq", redis_url, model, size) as program:
                await ask(1)
                await _until(model, lambda: model.answered == 1)
                rest_mb = rss_mb(program.pid)
                model.hold()
                await ask(size.turns)
                await _standstill(model, program, size.turns, after_s=_STANDSTILL_S)
                busy_mb = rss_mb(program.pid)
        finally:
            await pool.aclose()
    return _result("arq", size, model.most, None, (rest_mb, busy_mb))


def _process(kind: str, redis_url: str, model: HeldModel, size: Size) -> Child:
    allow_open_files()
    where = ("--redis", redis_url, "--base-url", model.base_url)
    sizes = ("--workers", str(size.workers), "--slots", str(size.slots))
    return program(fleet_process.__name__, "--kind", kind, *where, *sizes)


async def _completed(client: TurnClient, count: int) -> int:
    """Wait for so many turns to end and return how many completed."""
    completed = 0
    async for event in client.replies(_STREAM, "bench", "1", batch=512):
        completed += isinstance(event, TurnCompleted)
        count -= 1
        if not count:
            break
    return completed


async def _until(model: HeldModel, holds: Callable[[], bool]) -> None:
    while not holds():
        model.changed.clear()
        await model.changed.wait()


async def _standstill(model: HeldModel, program: Child, count: int, *, after_s: float) -> None:
    """Wait until so many turns are with the model, or no more of them come."""
    while model.waiting < count:
        model.changed.clear()
        try:
            await asyncio.wait_for(model.changed.wait(), after_s)
        except TimeoutError:
            program.check()
            return


def _result(
    system: str, size: Size, in_flight: int, completed: int | None, mb: tuple[float, float]
) -> InFlight:
    rest_mb, busy_mb = mb
    return InFlight(
        system=system,
        workers=size.workers,
        slots=size.slots,
        submitted=size.turns,
        in_flight=in_flight,
        completed=completed,
        rest_mb=rest_mb,
        busy_mb=busy_mb,
        kb_per_turn=(busy_mb - rest_mb) * 1024 / max(1, in_flight),
    )
