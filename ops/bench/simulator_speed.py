"""`python -m turnline.ops.bench.simulator_speed`: chunks per second of one simulator."""

import asyncio
import time
from typing import Final

import click

from turnline.ops.bench.baselines.sse import BareModel
from turnline.ops.bench.lab import SimulatedModel
from turnline.ops.bench.measuring import cpu_s
from turnline.ops.bench.scenarios import Model
from turnline.ops.bench.systems import program

_OPTIONS: Final = ("--ledger-entries", "1000")


@click.command()
@click.option("--chunks", default=200, show_default=True, help="Content chunks per answer.")
@click.option("--clients", default=8, show_default=True, help="Connections at a time.")
@click.option("--seconds", default=3.0, show_default=True, help="How long to measure.")
@click.option("--itl-ms", default=0.0, show_default=True, help="Time between two chunks.")
def main(chunks: int, clients: int, seconds: float, itl_ms: float) -> None:
    """Read answers as fast as they come; print chunks per second, by wall and by server CPU."""
    options = (*_OPTIONS, *(("--itl-ms", str(itl_ms)) if itl_ms else ()))
    with program("turnline.ops.simulator", *options) as process:
        model = SimulatedModel(process)
        model.answer_as(Model(chunks=chunks))
        cpu_before_s, start_s = cpu_s(process.pid), time.monotonic()
        requests = asyncio.run(_answers(model.base_url, clients, start_s + seconds))
        wall_s, spent_s = time.monotonic() - start_s, cpu_s(process.pid) - cpu_before_s
    events = requests * (chunks + 3)
    click.echo(
        f"{requests} answers of {chunks} chunks: {events / wall_s:,.0f} chunks/s by wall,"
        f" {events / spent_s:,.0f} chunks/s per server core,"
        f" {spent_s / requests * 1e6:,.0f} us of server CPU per answer"
    )


async def _answers(base_url: str, clients: int, until_s: float) -> int:
    """Return how many answers so many clients have read until then."""
    model = BareModel(base_url)

    async def client(number: int) -> int:
        answers = 0
        while time.monotonic() < until_s:
            async for _ in model.stream([b'{"role":"user","content":"Hello"}'], f"c{number}"):
                pass
            answers += 1
        return answers

    return sum(await asyncio.gather(*map(client, range(clients))))


if __name__ == "__main__":
    main()
