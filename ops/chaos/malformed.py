"""The drill of malformed replies: half of the conversations get them, the rest must not notice."""

import asyncio
import bisect
import time
from collections import Counter
from typing import Final

from turnline.contracts import TextDelta, TurnClient, UserMessage
from turnline.contracts.replies import TERMINAL
from turnline.ops.bench.measuring import rss_mb
from turnline.ops.chaos.figures import Drilled, Figure, Tell, fleet, percentile
from turnline.ops.chaos.simulated import SimAdmin

_SLICE_S: Final = 5.0
"""Length of a slice: malformed and plain replies alternate."""
_WORKERS: Final = 2
_HALF: Final = 12
"""Conversations of either half."""
_EVERY_S: Final = 0.4
"""Each conversation asks at most once in this time.

Turns that fail at once would otherwise be asked ten times as often. Then the others would notice
the many questions, and not the malformed replies.
"""
_SIZED: Final = 4_500_000
"""Bytes of the replies that are too long."""
_PATIENCE_S: Final = 60.0
_SHAPES: Final = (
    *("parts", "no-finish", "surrogates", "whole-json", "garbage", "endless"),
    *("arguments", "calls", "long-names", "deep"),
)
_MALFORMED: Final = (
    "truncated-json;at=tokens:1",
    "bad-utf8;at=tokens:2",
    "eof;at=tokens:2",
    "ok-html",
    "ok-empty",
    "error-frame;at=tokens:1,text=something%20went%20wrong",
    *(f"odd-reply;shape={shape},size={_SIZED}" for shape in _SHAPES),
)


class _Half:
    """Conversations that talk without a pause, and what their turns were like."""

    def __init__(self, client: TurnClient, name: str) -> None:
        self.names = [f"{name}-{n}" for n in range(_HALF)]
        self.turns: Counter[bool] = Counter()
        self.ended: Counter[str] = Counter()
        self.waits_s: dict[bool, list[float]] = {False: [], True: []}
        """From the submission to the first delta, without and with malformed replies."""
        self.submitted_ms: dict[str, list[float]] = {it: [] for it in self.names}
        """When each turn of a conversation was submitted, in order; they do not overlap."""
        self._client = client
        self._sent = 0

    async def talk(self, until_s: float, *, odd: bool) -> None:
        """Ask again and again until then, in every conversation; each turn is read to its end."""
        await asyncio.gather(*(self._talk(name, until_s, odd=odd) for name in self.names))

    async def _talk(self, name: str, until_s: float, *, odd: bool) -> None:
        while time.monotonic() < until_s:
            self._sent += 1
            message = UserMessage(conversation_id=name, text=f"#{self._sent} tell me", run=True)
            self.submitted_ms[name].append(time.time() * 1000)
            began_s = time.monotonic()
            receipt = await self._client.submit(message)
            first_s = None
            async with asyncio.timeout(_PATIENCE_S):
                async for event in self._client.events(receipt):
                    if first_s is None and isinstance(event, TextDelta):
                        first_s = time.monotonic() - began_s
                    if isinstance(event, TERMINAL):
                        self.ended[getattr(event, "code", "") or "answered"] += 1
            self.turns[odd] += 1
            self.waits_s[odd].append(_PATIENCE_S if first_s is None else first_s)
            await asyncio.sleep(began_s + _EVERY_S - time.monotonic())


async def drill(rounds: int, tell: Tell) -> Drilled:
    """Give half of the conversations malformed and plain replies, in alternating slices.

    Both kinds are measured in one run, so that the machine is the same for both.
    """
    memory_mb = 0.0
    with fleet(_WORKERS) as stack:
        sim = SimAdmin(stack.base_url)
        async with TurnClient.connect(stack.redis_url) as client:
            healthy, odd = _Half(client, "healthy"), _Half(client, "odd")
            for half in (healthy, odd):  # the first turns warm everything up
                await half.talk(time.monotonic(), odd=False)
            for n in range(2 * rounds):
                tell(f"slice {n + 1} of {2 * rounds}")
                sim.add_rule("chunks=12", times=None, conversation="healthy-*")
                is_odd = n % 2 == 1
                if is_odd:
                    for place, name in enumerate(odd.names):
                        scenario = _MALFORMED[(place + n // 2 * _HALF) % len(_MALFORMED)]
                        sim.add_rule(scenario, times=None, conversation=name)
                until_s = time.monotonic() + _SLICE_S
                await asyncio.gather(*(half.talk(until_s, odd=is_odd) for half in (healthy, odd)))
                sim.remove_faults()
                memory_mb = max(memory_mb, *(rss_mb(stack.pid(it)) for it in range(_WORKERS)))
        paid = await asyncio.to_thread(_paid, sim, odd)
    return _figures(rounds, healthy, odd, paid, memory_mb)


def _paid(sim: SimAdmin, half: _Half) -> Counter[tuple[str, int]]:
    """Return how often each turn was paid for a malformed reply.

    A call belongs to the turn that was submitted last before it. Bodies are not read: a run makes
    more of them than the simulator keeps.
    """
    paid: Counter[tuple[str, int]] = Counter()
    for name in half.names:
        for entry in sim.entries(conversation=name, bodies=False):
            if entry.scenarios:
                paid[name, bisect.bisect(half.submitted_ms[name], entry.received_at_ms)] += 1
    return paid


def _figures(
    rounds: int,
    healthy: _Half,
    odd: _Half,
    paid: Counter[tuple[str, int]],
    memory_mb: float,
) -> Drilled:
    plain, beside = healthy.waits_s[False], healthy.waits_s[True]
    before_s, with_s = percentile(plain, 0.99), percentile(beside, 0.99)
    answered = healthy.ended["answered"]
    return Drilled(
        "malformed",
        "malformed replies in half of the conversations; first delta of the others",
        [
            Figure("slices of either kind", rounds),
            Figure("turns of the others, without", healthy.turns[False]),
            Figure("turns of the others, with", healthy.turns[True]),
            Figure("turns with malformed replies", odd.turns[True]),
            Figure("of these, failed by name", sum(odd.ended.values()) - odd.ended["answered"]),
            Figure("first delta without, p50", percentile(plain, 0.5) * 1000, "ms"),
            Figure("first delta with, p50", percentile(beside, 0.5) * 1000, "ms"),
            Figure("first delta without, p99", before_s * 1000, "ms"),
            Figure("first delta with, p99", with_s * 1000, "ms"),
            Figure("p99 with, by that without", with_s / before_s if before_s else 0.0, most=1.5),
            Figure("memory of the larger worker", memory_mb, "MB"),
            Figure("most paid for one turn", max(paid.values(), default=0), most=2),
            Figure(
                "turns of the others that failed", sum(healthy.ended.values()) - answered, most=0
            ),
        ],
    )
