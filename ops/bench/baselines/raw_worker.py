"""The floor: a Redis-stream worker around a bare SSE reader, with no safety of any kind."""

import asyncio
from typing import Any, Final

import click
import msgspec
import uvloop

from turnline.contracts.connection import AsyncRedis
from turnline.contracts.opening import open_async
from turnline.ops.bench.baselines.sse import BareModel

JOBS: Final = "bench:jobs"
GROUP: Final = "workers"
HISTORY: Final = "bench:list:"
EVENTS: Final = "bench:events:"
_KEEP_S: Final = 600
_encode = msgspec.json.encode


async def answer(redis: AsyncRedis, model: BareModel, entry_id: bytes, job: dict[Any, Any]) -> None:
    """Answer one turn: one command before it, one per read of the stream, one pipeline after it."""
    conversation_id, events = job[b"c"].decode(), EVENTS + job[b"t"].decode()
    user = _encode({"role": "user", "content": job[b"m"].decode()})
    stored = await redis.execute_command("LRANGE", HISTORY + conversation_id, 0, -1)
    pieces: list[str] = []
    async for piece in model.stream([*stored, user], conversation_id):
        pieces.append(piece)
        await redis.execute_command("XADD", events, "*", "delta", piece)
    reply = "".join(pieces)
    said = _encode({"role": "assistant", "content": reply})
    pipe = redis.pipeline(transaction=True)
    pipe.execute_command("RPUSH", HISTORY + conversation_id, user, said)
    pipe.execute_command("XADD", events, "*", "done", reply)
    pipe.execute_command("EXPIRE", events, _KEEP_S)
    pipe.execute_command("XACK", JOBS, GROUP, entry_id)
    await pipe.execute()


async def serve(redis_url: str, base_url: str, consumer: str, slots: int) -> None:
    """Take jobs for ever, up to `slots` at a time."""
    redis, model = open_async(redis_url), BareModel(base_url)
    free = asyncio.Semaphore(slots)
    running: set[asyncio.Task[None]] = set()

    def ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        free.release()
        task.result()

    click.echo("ready")
    while True:
        await free.acquire()
        free.release()
        count = max(1, slots - len(running))
        command = ("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "BLOCK", 500)
        reply = await redis.execute_command(*command, "STREAMS", JOBS, ">")
        for _, entries in reply or ():
            for entry_id, words in entries:
                await free.acquire()
                task = asyncio.create_task(answer(redis, model, entry_id, words))
                running.add(task)
                task.add_done_callback(ended)


@click.command()
@click.option("--redis", "redis_url", required=True)
@click.option("--base-url", required=True)
@click.option("--consumer", default="1", show_default=True)
@click.option("--slots", default=256, show_default=True)
def main(redis_url: str, base_url: str, consumer: str, slots: int) -> None:
    """Serve until killed; prints a line when it is about to."""
    uvloop.run(serve(redis_url, base_url, consumer, slots))


if __name__ == "__main__":
    main()
