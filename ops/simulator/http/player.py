"""Plays the plan of a response on a connection and writes down what became of it."""

import asyncio
import itertools
import time
from typing import Final

from turnline.ops.simulator.faults.response_plan import (
    KEEPALIVE,
    Action,
    ActionKind,
    Frame,
    Framing,
    Plan,
)
from turnline.ops.simulator.http.client_connection import Connection
from turnline.ops.simulator.http.http1 import BodyEncoder, head
from turnline.ops.simulator.request_ledger import Entry

_BATCH_FRAMES: Final = 512
_BATCH_BYTES: Final = 64 * 1024


class Player:
    """One response on its way."""

    def __init__(
        self, plan: Plan, entry: Entry, connection: Connection, *, received_s: float
    ) -> None:
        self._plan = plan
        self._entry = entry
        self._connection = connection
        self._received_s = received_s
        self._body = BodyEncoder(plan.framing, plan.coding)
        self._out: list[bytes] = []
        self._broke_off = False
        self._is_over = False

    async def play(self, *, keeps_alive: bool) -> None:
        """Play the plan to its end, to a fault that ends it, or until the client goes."""
        connection, plan = self._connection, self._plan
        connection.ignores_disconnect = plan.ignores_disconnect
        try:
            for action in plan.before_head:
                await self._act(action)
                if self._broke_off:
                    return
            if plan.head_delay_s:
                await asyncio.sleep(plan.head_delay_s)
            closes = plan.closes or not keeps_alive
            self._entry.status = plan.status
            self._out.append(
                head(
                    plan.status,
                    plan.headers,
                    plan.framing,
                    plan.coding,
                    self._length(),
                    closes=closes,
                )
            )
            await self._steps()
            if self._broke_off:
                return
            self._out.append(self._body.end())
            await self._send()
            self._is_over = True
            self._leave(closes=closes or plan.framing is Framing.CLOSE)
        finally:
            self._note_end()

    async def _steps(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        batch: list[Frame] = []
        batch_bytes = 0
        for step in self._plan.steps:
            if isinstance(step, Action):
                await self._flush(batch)
                batch, batch_bytes = [], 0
                await self._act(step)
                if self._broke_off:
                    return
                due_s = loop.time()
                continue
            due_s += step.delay_s
            waits = step.delay_s > 0 and due_s > loop.time()
            is_full = len(batch) >= _BATCH_FRAMES or batch_bytes >= _BATCH_BYTES
            if waits or step.opens_write or is_full:
                await self._flush(batch)
                batch, batch_bytes = [], 0
            if waits:
                await asyncio.sleep(due_s - loop.time())
            batch.append(step)
            batch_bytes += len(step.data)
        self._encode(batch)

    def _encode(self, batch: list[Frame]) -> None:
        if not batch:
            return
        entry, lead = self._entry, self._plan.prefix + str(int(time.time())).encode()
        data = b"".join([lead + frame.data if frame.stamped else frame.data for frame in batch])
        self._out.append(self._body.encode(data))
        for frame in batch:
            entry.tokens_streamed += frame.tokens
            if frame.finishes:
                entry.finished = True
            if frame.reports_usage:
                entry.usage_reported = True

    async def _flush(self, batch: list[Frame]) -> None:
        self._encode(batch)
        await self._send()

    async def _send(self) -> None:
        if not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        if self._entry.first_byte_ms is None:
            self._entry.first_byte_ms = self._elapsed_ms()
        slicing = self._plan.slicing
        if slicing is None:
            self._entry.bytes_sent += self._connection.write(data)
        else:
            for piece in _sliced(data, slicing.every_bytes):
                self._entry.bytes_sent += self._connection.write(piece)
                await asyncio.sleep(slicing.pause_s)
        await self._connection.drain()

    async def _act(self, action: Action) -> None:
        await self._send()
        match action.kind:
            case ActionKind.FIN:
                self._broke_off = True
                self._connection.close()
            case ActionKind.RST:
                self._broke_off = True
                self._connection.reset()
            case ActionKind.RAW:
                self._out.append(action.data)
                await self._send()
            case ActionKind.WAIT:
                await self._wait(action)

    async def _wait(self, action: Action) -> None:
        loop = asyncio.get_running_loop()
        end_s = None if action.seconds is None else loop.time() + action.seconds
        while self._connection.is_open:
            left_s = 3600.0 if end_s is None else end_s - loop.time()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, action.keepalive_s or left_s))
            if action.keepalive_s is not None:
                self._out.append(self._body.encode(KEEPALIVE))
                await self._send()

    def _length(self) -> int:
        if self._plan.framing in {Framing.CHUNKED, Framing.CLOSE}:
            return 0
        return sum(len(self._plan.whole(frame)) for frame in self._plan.frames())

    def _leave(self, *, closes: bool) -> None:
        connection, plan = self._connection, self._plan
        connection.closes_on_next = plan.closes_on_next
        if closes:
            connection.close()
        elif plan.idle_close_s is not None:
            connection.close_if_idle_after(plan.idle_close_s)

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._received_s) * 1000

    def _note_end(self) -> None:
        entry, plan, gone_at_ms = self._entry, self._plan, self._connection.gone_at_ms
        entry.duration_ms = self._elapsed_ms()
        if not (self._is_over or self._broke_off) or plan.ignores_disconnect:
            entry.disconnected_at_ms = gone_at_ms
        if not plan.is_answer:
            entry.outcome = "error" if plan.is_error else "whole"
            return
        if self._is_over and not plan.truncated:
            entry.outcome = "whole"
            return
        entry.outcome = "cut"
        was_client = not (self._is_over or self._broke_off) and gone_at_ms is not None
        entry.cut_by = "client" if was_client else "server"
        entry.cut_at = _cut_at(entry)


def _cut_at(entry: Entry) -> str:
    if entry.first_byte_ms is None or entry.status is None:
        return "before_headers"
    if entry.usage_reported:
        return "before_done"
    if entry.finished:
        return "before_usage"
    return f"tokens:{entry.tokens_streamed}" if entry.tokens_streamed else "after_headers"


def _sliced(data: bytes, every_bytes: int | None) -> list[bytes]:
    """Segments of a size, or segments that end inside every character of several bytes."""
    if every_bytes is not None:
        return [data[at : at + every_bytes] for at in range(0, len(data), every_bytes)]
    cuts = [0, *(at for at, byte in enumerate(data) if 0x80 <= byte < 0xC0), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(cuts) if end > start]
