"""Keeps the newest traces in Redis, beside the turns: nothing waits for it, nothing fails of it."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from turnline.contracts.keys import ShardKeys, conversation_keys
from turnline.contracts.scripts import Call
from turnline.worker.batching import ScriptBatcher
from turnline.worker.store.lua import KeepTraceArgs, KeepTraceKeys, keep_trace

_BATCH = 64
_GATHER_S = 0.05
"""Traces are written together; one that is asked for is at most this late."""
_PATIENCE_S = 2.0


class SpansOfTurn(Protocol):
    """What is read of the spans of one attempt; see `turnline.worker.telemetry.spans`."""

    @property
    def conversation_id(self) -> str: ...  # noqa: D102
    @property
    def turn_id(self) -> str: ...  # noqa: D102
    @property
    def trace_id(self) -> str: ...  # noqa: D102
    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def duration_ms(self) -> int: ...  # noqa: D102
    @property
    def spans(self) -> Sequence[object]: ...  # noqa: D102


class KeptTrace(NamedTuple):
    """The spans of one attempt, encoded, and what helps to find them."""

    conversation_id: str
    turn_id: str
    trace_id: str
    state: str
    duration_ms: int
    spans: int
    data: bytes
    """JSON."""


class TraceLimits(NamedTuple):
    """How much is kept, and waits to be."""

    kept: int = 1_000
    """Attempts per shard, about."""
    oldest_ms: int = 7 * 24 * 3600 * 1000
    copies: int = 10_000
    """Notes per conversation of what `forget` must find."""
    waiting: int = 1_000
    """Attempts that wait to be written; what comes on top is dropped."""


class Traces:
    """The traces of one shard."""

    def __init__(
        self,
        batcher: ScriptBatcher,
        shard: ShardKeys,
        *,
        limits: TraceLimits | None = None,
        on_written: Callable[[int, int], object] = lambda _sent, _dropped: None,
    ) -> None:
        """Write through `batcher`.

        Args:
            batcher: The shard's.
            shard: Whose traces.
            limits: See `TraceLimits`.
            on_written: Told how many spans were written and how many dropped.
        """
        self._batcher = batcher
        self._shard = shard
        self._limits = limits or TraceLimits()
        self._on_written = on_written
        self._waiting: deque[KeptTrace] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def keep(self, turn: SpansOfTurn, data: bytes) -> None:
        """Take the spans of one attempt, and their JSON, to be written soon."""
        if len(self._waiting) >= self._limits.waiting:
            self._on_written(0, len(turn.spans))
            return
        self._waiting.append(
            KeptTrace(
                turn.conversation_id,
                turn.turn_id,
                turn.trace_id,
                turn.state,
                turn.duration_ms,
                len(turn.spans),
                data,
            )
        )
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def close(self, *, within_s: float = _PATIENCE_S) -> None:
        """Write what waits, but not for longer than `within_s`."""
        self._closing.set()
        if self._writer is not None:
            _, late = await asyncio.wait({self._writer}, timeout=within_s)
            for writer in late:
                writer.cancel()
            if self._waiting:
                self._on_written(0, sum(trace.spans for trace in self._waiting))
                self._waiting.clear()

    async def _write(self) -> None:
        try:
            while self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GATHER_S):
                        await self._closing.wait()
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                spans = sum(trace.spans for trace in batch)
                try:
                    async with asyncio.timeout(_PATIENCE_S):
                        replies = await asyncio.gather(
                            *(self._batcher.run(self._call(trace)) for trace in batch),
                            return_exceptions=True,
                        )
                    answered = zip(batch, replies, strict=True)
                    dropped = sum(
                        it.spans for it, reply in answered if isinstance(reply, BaseException)
                    )
                except TimeoutError:
                    dropped = spans
                self._on_written(spans - dropped, dropped)
        finally:
            self._writer = None

    def _call(self, trace: KeptTrace) -> Call:
        """Build the call.

        Source: worker/store/lua/keep_trace.lua
        """
        keys, limits = conversation_keys(self._shard.tag, trace.conversation_id), self._limits
        return keep_trace(
            KeepTraceKeys(keys.turns, self._shard.traces, keys.copies),
            KeepTraceArgs(
                conversation=trace.conversation_id,
                turn_id=trace.turn_id,
                trace_id=trace.trace_id,
                state=trace.state,
                duration_ms=trace.duration_ms,
                spans=trace.data,
                kept=limits.kept,
                oldest_ms=limits.oldest_ms,
                copies_kept=limits.copies,
            ),
        )
