"""`turnline exporter`: how the fleet stands, for Prometheus, scalers and scripts."""

import asyncio
import os
import signal
import sys

import click

from turnline.contracts.errors import InvalidAddress
from turnline.ops.cli.connecting import fleet_options
from turnline.ops.cli.failures import Failure
from turnline.ops.fleet.exporting import Blind, Exporter, document_of, page_of
from turnline.ops.fleet.fleet_status import FleetWatch
from turnline.worker.http_places import BadPlace, Place, listen_at, read_place
from turnline.worker.logs import set_up
from turnline.worker.probes.service_manager import ServiceManager
from turnline.worker.probes.small_http import SmallServer


@click.command(
    epilog="\b\nFor example:\n"
    "  turnline exporter --http 0.0.0.0:9465\n"
    "  turnline exporter --once --json | jq .demand"
)
@click.option(
    "--http",
    "at",
    metavar="HOST:PORT",
    default="127.0.0.1:9465",
    show_default=True,
    help="Where to answer: HOST:PORT, PORT or unix:PATH.",
)
@click.option("--once", is_flag=True, help="Print how the fleet stands, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object (with --once).")
@fleet_options
def exporter(
    *, at: str, once: bool, as_json: bool, redis_url: str, shards: int, prefix: str
) -> None:
    """Show how the fleet stands, for Prometheus, scalers and scripts.

    What waits and runs, since when, workers alive, dead letters and today's spend, from Redis
    alone: true also while no worker lives. It answers /metrics, /status.json, /readyz and /livez.

    If Redis does not answer, it says so within three seconds: `turnline_fleet_up 0`, and 503 at
    /status.json and /readyz. With --once the exit code is 1.
    """
    if as_json and not once:
        raise click.UsageError("--json goes with --once; over HTTP it is /status.json")
    try:
        place = read_place(at)
    except BadPlace as error:
        raise Failure(f"--http: {error}.") from None
    sys.exit(asyncio.run(_run(None if once else place, redis_url, shards, prefix, as_json=as_json)))


async def _run(
    place: Place | None, redis_url: str, shards: int, prefix: str, *, as_json: bool
) -> int:
    try:
        watch = FleetWatch(redis_url, shards=shards, prefix=prefix)
    except InvalidAddress as error:
        raise Failure(
            f"--redis (or TURNLINE_REDIS_URL) is not the address of a Redis: {error}."
        ) from None
    except ValueError as error:
        raise Failure(f"--prefix (or TURNLINE_PREFIX): {error}.") from None
    exporting = Exporter(watch, redis_url)
    try:
        if place is not None:
            await _answer(exporting, place)
            return 0
        status = await exporting.status()
        click.echo((document_of if as_json else page_of)(status).rstrip(b"\n"))
        return 1 if isinstance(status, Blind) else 0
    finally:
        await watch.aclose()


async def _answer(exporting: Exporter, place: Place) -> None:
    """Answer until SIGTERM or Ctrl-C."""
    set_up("warning", "text")
    try:
        listening = listen_at(place)
    except OSError as error:
        raise Failure(f"--http: {place} cannot be listened at ({error.strerror}).") from None
    server, over = SmallServer(listening, exporting.answers), asyncio.Event()
    manager = ServiceManager(os.environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    await server.start()
    name = listening.getsockname()
    shown = place if place.path else place._replace(port=name[1])
    click.echo(f"turnline exporter: answering at {shown}: /metrics /status.json", err=True)
    manager.ready("answering")
    manager.keep_telling(lambda: True)
    try:
        await over.wait()
    finally:
        manager.close()
        manager.stopping()
        await server.close()
