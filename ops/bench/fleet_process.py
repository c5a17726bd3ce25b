"""Many workers in one process, as a fleet without the memory of many interpreters."""

import asyncio
from typing import Final

import click
import uvloop
from openai import AsyncOpenAI

from turnline.ops.bench.baselines import arq_worker
from turnline.worker.main import make_fleet
from turnline.worker.settings import from_env

_OPTIONS: Final = {
    "TURNLINE_CHECK_MODEL": "false",
    "TURNLINE_WIRE": "chat",
    "XAI_API_KEY": "xai-bench",
    # All heartbeats share one interpreter here: that is not the time to find workers dead.
    "TURNLINE_LEASE_S": "20",
    "TURNLINE_HEARTBEAT_S": "5",
}


async def run_turnline(redis_url: str, base_url: str, workers: int, slots: int) -> None:
    """Run so many of Turnline's workers."""
    where = {"TURNLINE_REDIS_URL": redis_url, "TURNLINE_BASE_URL": base_url}
    settings = {**_OPTIONS, **where, "TURNLINE_SLOTS": str(slots)}
    fleets = [
        make_fleet(from_env({**settings, "TURNLINE_WORKER_NAME": f"fleet-{n}"}))
        for n in range(workers)
    ]
    await asyncio.gather(*(fleet.run() for fleet in fleets))


async def run_arq(redis_url: str, base_url: str, workers: int, slots: int) -> None:
    """Run so many stock ARQ workers."""
    client = AsyncOpenAI(api_key="xai-bench", base_url=base_url, max_retries=0)
    running = [
        arq_worker.worker(redis_url, {"client": client}, slots=slots, poll_s=0.1)
        for _ in range(workers)
    ]
    await asyncio.gather(*(worker.async_run() for worker in running))


@click.command()
@click.option("--kind", type=click.Choice(["turnline", "arq"]), required=True)
@click.option("--redis", "redis_url", required=True)
@click.option("--base-url", required=True)
@click.option("--workers", default=24, show_default=True)
@click.option("--slots", default=100, show_default=True)
def main(kind: str, redis_url: str, base_url: str, workers: int, slots: int) -> None:
    """Serve until killed."""
    run = run_turnline if kind == "turnline" else run_arq
    uvloop.run(run(redis_url, base_url, workers, slots))


if __name__ == "__main__":
    main()
