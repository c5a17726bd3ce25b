"""The systems that are compared, as a client drives them: one turn, timed."""

import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple, Protocol, cast

import msgspec
from arq.connections import ArqRedis, RedisSettings, create_pool
from openai import APIError, AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

from turnline.contracts import (
    ContextAppend,
    TextDelta,
    TurnClient,
    TurnCompleted,
    TurnFailed,
    UserMessage,
)
from turnline.contracts.connection import AsyncRedis
from turnline.contracts.conversation import AssistantEntry, ContextEntry, UserEntry
from turnline.contracts.job_format import deserialize_job, serialize_job
from turnline.contracts.opening import open_async
from turnline.ops.bench import collector
from turnline.ops.bench.baselines import arq_worker, raw_worker
from turnline.ops.bench.scenarios import (
    DIRECT,
    EXPORTING,
    FLOOR,
    RESPONSES,
    TUNED,
    TURNLINE,
    UNTRACED,
)
from turnline.ops.fleet.child import Child

SLOTS: Final = 256
"""Turns that one worker runs at once, where the system has such a limit."""
ARQ_SLOTS: Final = 10
"""The same by ARQ's default."""
NOTHING: Final[Mapping[str, str]] = {}
_SENTENCE: Final = "This is one of the messages that came before, as long as most of them are."


class Timing(NamedTuple):
    """One turn as its client saw it; seconds of `time.perf_counter`."""

    submitted_s: float
    first_s: float
    """When the first text was there."""
    done_s: float
    text: str
    """The whole reply; empty if there was none."""


class System(Protocol):
    """One way to have turns answered."""

    name: str
    programs: Sequence[Child]
    """Its workers; none where the client does it all."""

    async def seed(self, conversation_id: str, messages: int) -> None:
        """Give a conversation a history."""
        ...

    async def turn(self, conversation_id: str, text: str) -> Timing:
        """Run one turn and wait for its end."""
        ...

    async def kept(self, conversation_id: str) -> int:
        """Return how many messages the conversation has."""
        ...


class Turnline:
    """Turnline itself, through its client, reading every event."""

    def __init__(self, name: str, client: TurnClient, programs: Sequence[Child]) -> None:
        """Use a connected client."""
        self.name = name
        self.programs = programs
        self.client = client

    async def seed(self, conversation_id: str, messages: int) -> None:
        """Append messages without an answer."""
        entries = tuple(
            UserEntry(content=_SENTENCE) if n % 2 == 0 else AssistantEntry(content=_SENTENCE)
            for n in range(messages)
        )
        message = ContextAppend(
            conversation_id=conversation_id, messages=cast("tuple[ContextEntry, ...]", entries)
        )
        await self.client.result(await self.client.submit(message))

    async def turn(self, conversation_id: str, text: str) -> Timing:
        """Submit, then read the turn's events."""
        submitted_s, first_s = time.perf_counter(), 0.0
        receipt = await self.client.submit(UserMessage(conversation_id=conversation_id, text=text))
        reply = ""
        async for event in self.client.events(receipt):
            if not first_s and isinstance(event, TextDelta):
                first_s = time.perf_counter()
            elif isinstance(event, TurnCompleted):
                reply = event.text
            elif isinstance(event, TurnFailed):
                break
        done_s = time.perf_counter()
        return Timing(submitted_s, first_s or done_s, done_s, reply)

    async def kept(self, conversation_id: str) -> int:
        """Count what is committed."""
        return len((await self.client.history(conversation_id)).messages)


class _Queued(ABC):
    """What the baselines' clients share: one stream of events per turn, read to its end."""

    def __init__(self, name: str, redis: AsyncRedis, programs: Sequence[Child]) -> None:
        self.name = name
        self.programs = programs
        self.redis = redis

    async def turn(self, conversation_id: str, text: str) -> Timing:
        """Enqueue, then read the turn's stream."""
        turn_id = uuid.uuid4().hex
        submitted_s, first_s = time.perf_counter(), 0.0
        await self._enqueue(conversation_id, turn_id, text)
        stream, after = arq_worker.EVENTS + turn_id, "0"
        while True:
            command = ("XREAD", "COUNT", 512, "BLOCK", 5000, "STREAMS", stream, after)
            for _, entries in await self.redis.execute_command(*command) or ():
                for entry_id, fields in entries:
                    after = entry_id
                    first_s = first_s or time.perf_counter()
                    if b"done" in fields:
                        done_s = time.perf_counter()
                        return Timing(submitted_s, first_s, done_s, fields[b"done"].decode())

    @abstractmethod
    async def _enqueue(self, conversation_id: str, turn_id: str, text: str) -> None:
        """Put a turn on the system's queue."""


class Arq(_Queued):
    """A stock ARQ worker; see `turnline.ops.bench.baselines.arq_worker`."""

    def __init__(
        self, name: str, redis: AsyncRedis, programs: Sequence[Child], pool: ArqRedis
    ) -> None:
        """Enqueue through ARQ's own client."""
        super().__init__(name, redis, programs)
        self._pool = pool

    async def seed(self, conversation_id: str, messages: int) -> None:
        """Write the history."""
        stored = msgspec.json.encode(_history(messages))
        await self.redis.execute_command("SET", arq_worker.HISTORY + conversation_id, stored)

    async def kept(self, conversation_id: str) -> int:
        """Count what the history holds."""
        stored = await self.redis.execute_command("GET", arq_worker.HISTORY + conversation_id)
        return len(msgspec.json.decode(stored or b"[]"))

    async def _enqueue(self, conversation_id: str, turn_id: str, text: str) -> None:
        await arq_worker.enqueue(self._pool, conversation_id, turn_id, text)


class Raw(_Queued):
    """The floor; see `turnline.ops.bench.baselines.raw_worker`."""

    async def seed(self, conversation_id: str, messages: int) -> None:
        """Write the history."""
        stored = [msgspec.json.encode(message) for message in _history(messages)]
        await self.redis.execute_command("RPUSH", raw_worker.HISTORY + conversation_id, *stored)

    async def kept(self, conversation_id: str) -> int:
        """Count what the history holds."""
        count: int = await self.redis.execute_command("LLEN", raw_worker.HISTORY + conversation_id)
        return count

    async def _enqueue(self, conversation_id: str, turn_id: str, text: str) -> None:
        words = ("c", conversation_id, "t", turn_id, "m", text)
        await self.redis.execute_command("XADD", raw_worker.JOBS, "*", *words)


class Direct:
    """`AsyncOpenAI` in the client's own process: no queue, and a history that dies with it."""

    def __init__(self, name: str, client: AsyncOpenAI) -> None:
        """Use one client for all conversations."""
        self.name = name
        self.programs: Sequence[Child] = ()
        self._client = client
        self._histories: dict[str, list[dict[str, str]]] = {}

    async def seed(self, conversation_id: str, messages: int) -> None:
        """Remember a history."""
        self._histories[conversation_id] = _history(messages)

    async def kept(self, conversation_id: str) -> int:
        """Count what is remembered."""
        return len(self._histories.get(conversation_id, ()))

    async def turn(self, conversation_id: str, text: str) -> Timing:
        """Ask the model."""
        submitted_s, first_s = time.perf_counter(), 0.0
        messages = self._histories.setdefault(conversation_id, [])
        messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            async for chunk in await self._ask(conversation_id, messages):
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    first_s = first_s or time.perf_counter()
                    pieces.append(piece)
        except APIError:  # a saturated process misses the SDK's own time-outs
            pieces.clear()
        reply, done_s = "".join(pieces), time.perf_counter()
        messages.append({"role": "assistant", "content": reply})
        return Timing(submitted_s, first_s or done_s, done_s, reply)

    async def _ask(
        self, conversation_id: str, messages: list[dict[str, str]]
    ) -> AsyncStream[ChatCompletionChunk]:
        return await self._client.chat.completions.create(
            model="grok-4.3",
            messages=cast("Any", messages),
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-grok-conv-id": conversation_id},
        )


def _history(messages: int) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if n % 2 else "user", "content": _SENTENCE} for n in range(messages)
    ]


# Starting them


def program(module: str, *arguments: str, environ: Mapping[str, str] = NOTHING) -> Child:
    """Start `python -m module`, without the settings of workers that this process may have."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TURNLINE_", "OTEL_"))}
    here = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environ}
    return Child(module, "-m", module, *arguments, environ={**inherited, **here}, says=True)


def worker(
    redis_url: str, base_url: str, number: int, environ: Mapping[str, str] = NOTHING
) -> Child:
    """Start a process of Turnline's worker."""
    settings = {
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": base_url,
        "TURNLINE_SLOTS": str(SLOTS),
        "TURNLINE_WORKER_NAME": f"bench-{number}",
        "TURNLINE_LOG_LEVEL": "warning",
        "TURNLINE_WIRE": "chat",
        "XAI_API_KEY": "xai-bench",
        **environ,
    }
    return program("turnline.worker", environ=settings)


async def arq_pool(redis_url: str) -> ArqRedis:
    """Return ARQ's own client."""
    settings = RedisSettings.from_dsn(redis_url)
    return await create_pool(
        settings, job_serializer=serialize_job, job_deserializer=deserialize_job
    )


async def opened(
    name: str, redis_url: str, base_url: str, workers: int, exits: AsyncExitStack
) -> System:
    """Start a system's workers and connect its client; both end with `exits`.

    Workers are ready when the first turn is answered.
    """
    if name == DIRECT:  # the SDK's client as it comes
        client = AsyncOpenAI(api_key="xai-bench", base_url=base_url, max_retries=0)
        return Direct(name, await exits.enter_async_context(client))
    if name in {TURNLINE, RESPONSES, UNTRACED, EXPORTING}:
        return await _turnline(name, redis_url, base_url, workers, exits)
    redis = open_async(redis_url)
    exits.push_async_callback(redis.aclose)
    where = ("--redis", redis_url, "--base-url", base_url)
    if name == FLOOR:
        group = ("XGROUP", "CREATE", raw_worker.JOBS, raw_worker.GROUP, "0", "MKSTREAM")
        await redis.execute_command(*group)
        options = [("--slots", str(SLOTS), "--consumer", str(n)) for n in range(workers)]
        return Raw(
            name, redis, _all(exits, (program(raw_worker.__name__, *where, *it) for it in options))
        )
    # ARQ as it comes, or polling every 10 ms with the others' slots
    tuned = ("--poll-s", "0.01", "--max-jobs", str(SLOTS), "--uvloop") if name == TUNED else ()
    programs = (program(arq_worker.__name__, *where, *tuned) for _ in range(workers))
    pool = await arq_pool(redis_url)
    exits.push_async_callback(pool.aclose)
    return Arq(name, redis, _all(exits, programs), pool)


async def _turnline(
    name: str, redis_url: str, base_url: str, workers: int, exits: AsyncExitStack
) -> System:
    """Start Turnline as it comes, or without traces, or with a collector for them."""
    environ: Mapping[str, str] = {}
    if name == UNTRACED:
        environ = {"TURNLINE_TRACE_STORE": "0"}
    elif name == RESPONSES:
        environ = {"TURNLINE_WIRE": "responses"}
    elif name == EXPORTING:
        sink = exits.enter_context(program(collector.__name__))
        environ = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{sink.first_line()}/v1/traces",
            "TURNLINE_TRACE_STORE": "0",
            "OTEL_BSP_SCHEDULE_DELAY": "200",  # ms: what a round makes is sent within the round
        }
    programs = (worker(redis_url, base_url, n, environ) for n in range(workers))
    client = await exits.enter_async_context(TurnClient.connect(redis_url))
    return Turnline(name, client, _all(exits, programs))


def _all(exits: AsyncExitStack, programs: Iterable[Child]) -> list[Child]:
    """Have programs end with `exits`."""
    return [exits.enter_context(each) for each in programs]
