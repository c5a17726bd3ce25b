"""Producers who submit all the time while something is done to the servers."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.wait import wait_until
from turnline.contracts import SyncTurnClient, TurnClient, UserMessage

SHARDS = 6


class Producers:
    """An asyncio and a blocking producer who submit all the time, and what they see."""

    def __init__(self, address: str, wait_replicas: int = 0) -> None:
        self._address = address
        self._wait_replicas = wait_replicas
        self.confirmed: list[tuple[str, str]] = []
        self.receipts = 0
        self.blocking_receipts = 0
        self.longest_s = 0.0
        self.accepted: list[tuple[str, str]] = []
        self._is_over = threading.Event()

    async def submit(self) -> None:
        async with TurnClient.connect(
            self._address, shards=SHARDS, wait_replicas=self._wait_replicas
        ) as client:
            await asyncio.gather(*(self._talk(client, f"c{n}") for n in range(12)))

    async def _talk(self, client: TurnClient, conversation: str) -> None:
        while not self._is_over.is_set():
            began_s = time.monotonic()
            receipt = await client.submit(UserMessage(conversation_id=conversation, text="Hi"))
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            self.accepted.append((conversation, receipt.turn_id))
            if (receipt.replicas or 0) >= self._wait_replicas:
                self.confirmed.append((conversation, receipt.turn_id))
            self.receipts += 1
            await asyncio.sleep(0.01)

    def submit_blocking(self) -> None:
        with SyncTurnClient.connect(self._address, shards=SHARDS) as client:
            while not self._is_over.wait(0.01):
                message = UserMessage(conversation_id="b", text="Hi")
                self.accepted.append(("b", client.submit(message).turn_id))
                self.blocking_receipts += 1

    async def while_they_submit(self, disturb: Callable[[], Any]) -> Any:
        """Disturb, and return what came of it once both went on for a while."""
        tasks = [
            asyncio.create_task(self.submit()),
            asyncio.create_task(asyncio.to_thread(self.submit_blocking)),
        ]
        try:
            await self._go_on(tasks, 5)
            found = await asyncio.to_thread(disturb)
            await self._go_on(tasks, 30)
        finally:
            self._is_over.set()
            await asyncio.gather(*tasks)
        return found

    async def _go_on(self, tasks: list[asyncio.Task[None]], times: int) -> None:
        wanted = self.receipts + 12 * times, self.blocking_receipts + times

        def enough() -> bool:
            ended = any(task.done() for task in tasks)
            return ended or (self.receipts, self.blocking_receipts) >= wanted

        await wait_until(enough, "both go on", timeout_s=30)

    async def lost(
        self, accepted: Sequence[tuple[str, str]] | None = None
    ) -> list[tuple[str, str]]:
        """What was accepted, all or these, and is not there."""
        accepted = self.accepted if accepted is None else accepted
        async with TurnClient.connect(self._address, shards=SHARDS) as client:
            known = {it: set(await _turns(client, it)) for it in {it for it, _ in accepted}}
        return [(it, turn) for it, turn in accepted if turn.encode() not in known[it]]


async def _turns(client: TurnClient, conversation: str) -> list[bytes]:
    await client._homes.refresh()  # a worker of another test may have said another number
    _, names = client._make.names(conversation)
    keys: list[bytes] = await client._redis.execute_command("HKEYS", names.turns)
    return keys
