"""`python -m turnline.ops.bench.simulator_speed`: chunks per second of one simulator."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

import click

_END: Final = b"0\r\n\r\n"
_BODY: Final = (
    b'{"model":"grok-4.3","stream":true,"stream_options":{"include_usage":true},'
    b'"messages":[{"role":"user","content":"Hello"}]}'
)


@click.command()
@click.option("--chunks", default=200, show_default=True, help="Content chunks per answer.")
@click.option("--clients", default=8, show_default=True, help="Connections at a time.")
@click.option("--seconds", default=3.0, show_default=True, help="How long to measure.")
@click.option("--itl-ms", default=0.0, show_default=True, help="Time between two chunks.")
def main(chunks: int, clients: int, seconds: float, itl_ms: float) -> None:
    """Read answers as fast as they come; print chunks per second, by wall and by server CPU."""
    asyncio.run(_measure(chunks, clients, seconds, itl_ms))


async def _measure(chunks: int, clients: int, seconds: float, itl_ms: float) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "turnline.ops.simulator",
        "--die-with-parent",
        "--ledger-entries",
        "1000",
        *(["--itl-ms", str(itl_ms)] if itl_ms else []),
        stdout=asyncio.subprocess.PIPE,
    )
    with _terminating(server):
        assert server.stdout is not None
        url = (await server.stdout.readline()).decode()
        port = int(url.rpartition(":")[2].partition("/")[0])
        cpu_before_s, start_s = _cpu_s(server.pid), time.monotonic()
        counts = await asyncio.gather(
            *(_client(port, chunks, start_s + seconds) for _ in range(clients))
        )
        wall_s, cpu_s = time.monotonic() - start_s, _cpu_s(server.pid) - cpu_before_s
    await server.wait()
    requests = sum(counts)
    events = requests * (chunks + 3)
    click.echo(
        f"{requests} answers of {chunks} chunks: {events / wall_s:,.0f} chunks/s by wall,"
        f" {events / cpu_s:,.0f} chunks/s per server core,"
        f" {cpu_s / requests * 1e6:,.0f} us of server CPU per answer"
    )


@contextlib.contextmanager
def _terminating(process: asyncio.subprocess.Process) -> Generator[None]:
    try:
        yield
    finally:
        process.terminate()


async def _client(port: int, chunks: int, end_s: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\nauthorization: Bearer k\r\n"
        b"content-type: application/json\r\nx-sim: chunks=%d\r\ncontent-length: %d\r\n\r\n%b"
    ) % (chunks, len(_BODY), _BODY)
    answers = 0
    while time.monotonic() < end_s:
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        await _read_to_end(reader)
        answers += 1
    writer.close()
    return answers


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    tail = b""
    while not tail.endswith(_END):
        data = await reader.read(2**18)
        if not data:
            raise ConnectionError("the simulator closed the connection")
        tail = (tail + data)[-len(_END) :]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
