"""A collector that throws traces away, to measure what sending them costs the sender."""

import asyncio

import click
import uvloop

from turnline.ops.bench.raw_http import Connection, RawServer, Request


class Collector(RawServer):
    """Takes everything."""

    async def serve(self, connection: Connection, request: Request) -> None:  # noqa: ARG002  it is not looked at
        """Say that it was taken."""
        await connection.answer(200)


async def serve() -> None:
    """Listen on loopback for ever; prints the address first."""
    async with Collector() as collector:
        click.echo(collector.url)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
