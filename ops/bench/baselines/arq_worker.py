"""A stock ARQ worker as one would write it first: `AsyncOpenAI`'s stream, history as JSON in Redis.

Written with care (one client, one encoder, a pipeline at the end) but without Turnline's promises:
no order within a conversation, no fence, a crash loses the turn or runs it twice.
"""

from typing import Any, Final, cast

import click
import msgspec
import uvloop
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker
from openai import AsyncOpenAI

from turnline.contracts.job_format import deserialize_job, serialize_job

FUNCTION: Final = "answer"
HISTORY: Final = "bench:history:"
EVENTS: Final = "bench:events:"
_KEEP_S: Final = 600
_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode


async def answer(ctx: dict[str, Any], conversation_id: str, turn_id: str, text: str) -> None:
    """Answer one turn and publish what is said as it comes."""
    redis = ctx["redis"]
    client = cast("AsyncOpenAI", ctx["client"])
    stored = await redis.get(HISTORY + conversation_id)
    messages = _decode(stored) if stored else []
    messages.append({"role": "user", "content": text})
    stream = await client.chat.completions.create(
        model="grok-4.3",
        messages=cast("Any", messages),
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-grok-conv-id": conversation_id},
    )
    events = EVENTS + turn_id
    pieces: list[str] = []
    tokens = 0
    async for chunk in stream:
        if chunk.usage is not None:
            tokens = chunk.usage.total_tokens
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            pieces.append(piece)
            await redis.xadd(events, {"delta": piece})
    reply = "".join(pieces)
    messages.append({"role": "assistant", "content": reply})
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(HISTORY + conversation_id, msgspec.json.encode(messages), ex=_KEEP_S)
        pipe.incrby("bench:tokens:" + conversation_id, tokens)
        pipe.xadd(events, {"done": reply})
        pipe.expire(events, _KEEP_S)
        await pipe.execute()


async def _open_client(ctx: dict[str, Any]) -> None:
    if "client" not in ctx:
        ctx["client"] = AsyncOpenAI(api_key="xai-bench", base_url=ctx["base_url"], max_retries=0)


def worker(redis_url: str, ctx: dict[str, Any], *, slots: int, poll_s: float) -> Worker:
    """Return ARQ's worker; without a `client` in `ctx` it opens one for `base_url`."""
    return Worker(
        [answer],
        redis_settings=RedisSettings.from_dsn(redis_url),
        max_jobs=slots,
        poll_delay=poll_s,
        on_startup=_open_client,
        ctx=ctx,
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        handle_signals=False,
    )


@click.command()
@click.option("--redis", "redis_url", required=True)
@click.option("--base-url", required=True)
@click.option("--poll-s", default=0.5, show_default=True)
@click.option("--max-jobs", default=10, show_default=True)
@click.option("--uvloop", "on_uvloop", is_flag=True)
def main(redis_url: str, base_url: str, poll_s: float, max_jobs: int, on_uvloop: bool) -> None:  # noqa: FBT001  click's
    """Serve until killed."""
    if on_uvloop:
        uvloop.install()
    worker(redis_url, {"base_url": base_url}, slots=max_jobs, poll_s=poll_s).run()


async def enqueue(pool: ArqRedis, conversation_id: str, turn_id: str, text: str) -> None:
    """Put one turn on the queue."""
    await pool.enqueue_job(FUNCTION, conversation_id, turn_id, text)


if __name__ == "__main__":
    main()
