"""Redis, the simulated model and the systems under comparison, of which one at a time is awake."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from turnline.contracts.connection import AsyncRedis
from turnline.contracts.opening import open_async
from turnline.ops.bench import systems
from turnline.ops.bench.measuring import check_platform, rss_mb
from turnline.ops.bench.scenarios import ABOUT, Model
from turnline.ops.bench.systems import System
from turnline.ops.chaos.simulated import SimAdmin
from turnline.ops.cli.failures import Failed
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.fleet.child import Child

_LONGEST_BLOCK_S: Final = 1.0
"""The longest that any system's worker waits for work in one command."""
_PATIENCE_S: Final = 120.0
_DATABASES: Final = (*ABOUT, "fleet", "arq-fleet", "growth", "soak", "producers")
_SIMULATOR: Final = ("--ledger-entries", "20000")


class SimulatedModel(SimAdmin):
    """The simulator in a process of its own."""

    def __init__(self, process: Child) -> None:
        """Talk to a simulator that has just been started."""
        self.process = process
        self.base_url = process.first_line()
        super().__init__(self.base_url)

    def answer_as(self, model: Model) -> None:
        """Answer everything like this from now on."""
        self.remove_faults()
        self.add_rule(model.scenario, times=None)


class Lab:
    """What all measurements share."""

    def __init__(
        self, server: EmbeddedRedis, redis: AsyncRedis, model: SimulatedModel, stack: AsyncExitStack
    ) -> None:
        """Take over what `open_lab` started."""
        self.server = server
        self.redis = redis
        self.model = model
        self._stack = stack
        self._systems: dict[str, System] = {}
        self._asleep_s: dict[str, float] = {}
        self.rest_mb: dict[str, float] = {}
        """Memory of one worker of each system after its first turns, MiB."""

    def redis_url(self, name: str) -> str:
        """Return the database of one system or measurement."""
        return self.server.url_of(1 + _DATABASES.index(name))

    async def start(self, workers_of: Mapping[str, int]) -> None:
        """Start systems with so many workers; all are asleep afterwards."""
        for name, workers in workers_of.items():
            url = self.redis_url(name)
            self._systems[name] = await systems.opened(
                name, url, self.model.base_url, workers, self._stack
            )
        for system in self._systems.values():
            for n in range(2 * workers_of[system.name]):  # they are up when they answer
                await system.turn(f"hello-{n}", "Hello")
            if system.programs:
                self.rest_mb[system.name] = rss_mb(system.programs[0].pid)
            self._freeze(system.name, system.programs)

    @asynccontextmanager
    async def awake(self, name: str, workers: int = 1) -> AsyncGenerator[System]:
        """Wake one system, with so many of its workers, for the block.

        A frozen worker may have asked Redis for work just before, and would be given some.

        Raises:
            Failed: A worker ended, or the system stopped answering.
        """
        system = self._systems[name]
        chosen = system.programs[:workers]
        if len(chosen) < len(system.programs):
            await asyncio.sleep(self._asleep_s[name] + _LONGEST_BLOCK_S - time.monotonic())
        for program in chosen:
            program.check()
            program.signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                yield system
        except TimeoutError:
            raise Failed(f"{name} did not answer for {_PATIENCE_S:.0f} s") from None
        finally:
            self._freeze(name, chosen)

    def _freeze(self, name: str, programs: Sequence[Child]) -> None:
        for program in programs:
            program.signal(signal.SIGSTOP)
        self._asleep_s[name] = time.monotonic()


@asynccontextmanager
async def open_lab() -> AsyncGenerator[Lab]:
    """Start Redis and the simulated model.

    Raises:
        Failed: This machine does not let other processes be measured.
        EmbeddedRedisError: There is no Redis to be had.
        ChildFailed: The simulator did not start.
    """
    check_platform()
    async with AsyncExitStack() as stack:
        server = stack.enter_context(EmbeddedRedis(port=0, databases=16))
        process = systems.program("turnline.ops.simulator", *_SIMULATOR)
        model = SimulatedModel(stack.enter_context(process))
        redis = open_async(server.url)
        stack.push_async_callback(redis.aclose)
        yield Lab(server, redis, model, stack)


def new_id(prefix: str) -> str:
    """Return a conversation id that no earlier measurement used."""
    return f"{prefix}-{time.monotonic_ns():x}-{os.urandom(2).hex()}"
