"""Metrics of real workers, as Prometheus fetches them."""

import asyncio
import re
import socket

import pytest
from redis.asyncio import Redis

from tests.integration.telemetry.watching import KeptSpans, WatchedHand
from tests.support.driving import SHARD, batcher_on, limiter_on
from tests.support.processes import worker_process
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, UserMessage
from turnline.ops.simulator import Simulator
from turnline.worker.provider_limits import Caller, Grant
from turnline.worker.store.gauges import read_gauges
from turnline.worker.store.quotas import WithinQuota
from turnline.worker.telemetry import names as n


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def fetch(port: int, request: str = "GET /metrics HTTP/1.1") -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{request}\r\nHost: localhost\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


def values_on(page: str) -> dict[tuple[str, str], str]:
    """Return the values of a page by name and one label each."""
    return {
        (name, label): value
        for name, labels, value in re.findall(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", page, re.MULTILINE)
        for label in (labels.split(",") if labels else [""])
    }


async def test_a_worker_shows_its_metrics(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """On the loopback port asked for: turns, calls, tokens, cost, queue, loop."""
    port, model = free_port(), 'gen_ai_request_model="grok-4.3"'
    with worker_process(redis_url, sim.base_url, http=str(port), wire="chat"):
        results = [await client.ask(f"c{n}", "Hello", timeout_s=30) for n in range(3)]
        spent = sum(result.usage.cost_usd for result in results)
        pages: list[str] = []

        async def has_all() -> bool:
            """Producers hear of an end before it is counted; what was spent is counted last."""
            pages.append(await fetch(port))
            cost = values_on(pages[-1]).get(("turnline_llm_cost_usd_total", model), "0")
            return abs(float(cost) - spent) < 1e-9

        await wait_until(has_all, "all is counted")

    assert pages[-1].startswith("HTTP/1.1 200 OK\r\n")
    values = values_on(pages[-1])
    assert values["turnline_turn_duration_seconds_count", 'outcome="completed"'] == "3.0"
    scope = 'otel_scope_name="turnline"'
    assert values["turnline_turn_time_to_first_delta_seconds_count", scope] == "3.0"
    assert values["turnline_queue_wait_seconds_count", scope] == "3.0"
    assert values["turnline_llm_calls_total", 'status="completed"'] == "3.0"
    for kind, field in (("input", "prompt_tokens"), ("reasoning", "reasoning_tokens")):
        total = sum(getattr(result.usage, field) for result in results)
        assert float(values["turnline_llm_tokens_total", f'gen_ai_token_type="{kind}"']) == total
    assert values["turnline_turns_in_flight", scope] == "0.0"
    assert values["turnline_queue_depth", 'shard="s0"'] in {"0.0", "1.0"}  # read now and then
    assert values["turnline_breakers_open", 'shard="s0"'] == "0.0"


async def test_failures_are_counted_by_their_codes(hand: WatchedHand) -> None:
    """Retries, refusals, dead letters; nothing is in flight at the end."""
    hand.sim.inject("status=503")
    await hand.client.submit(UserMessage(conversation_id="c", text="Hello"))
    await hand.run_one()
    hand.sim.inject("status=400")
    await hand.make_due("c")
    await hand.run_one()

    assert hand.measured(n.M_RETRIES)["server_error"].value == 1
    assert hand.measured(n.M_DEAD)["bad_request"].value == 1
    assert hand.measured(n.M_TURN_DURATION)["failed"].count == 1
    assert hand.measured(n.M_CALLS)["grok-4.3 server_error"].value == 1
    assert hand.measured(n.M_IN_FLIGHT)[""].value == 0


@pytest.mark.parametrize("why", ["provider_limit", "tenant_limit"])
async def test_a_wait_for_a_limit_is_told(hand: WatchedHand, kept: KeptSpans, why: str) -> None:
    """As a retry with its reason, and by the span of the wait."""
    limits = limiter_on(hand.batcher, "*=2rps")
    free = limiter_on(hand.batcher, "*=off")
    limiter = hand.limiter = WithinQuota(free, limits) if why == "tenant_limit" else limits
    for who in ("a", "b"):
        assert isinstance(await limiter.reserve("grok-4.3", Caller(who), int, None), Grant)
    await hand.client.submit(UserMessage(conversation_id="c", text="Hello"))
    await hand.run_one()
    assert kept.turns == []

    async def is_done() -> bool:
        await hand.make_due("c")
        await hand.run_one()
        return bool(kept.turns)

    await wait_until(is_done, "its time has come")
    await limiter.aclose()

    assert kept.one(n.WAIT).attributes[n.WAIT_FOR] == why
    assert hand.measured(n.M_RETRIES)[why].value >= 1
    assert hand.measured(n.M_QUEUE_WAIT)[""].count == 1
    assert hand.measured(n.M_IN_FLIGHT)[""].value == 0


async def test_the_queue_is_measured(redis_url: str, redis: Redis, client: TurnClient) -> None:
    """What waits, since when, what is leased, and which breakers are open."""
    for number in range(3):
        await client.submit(UserMessage(conversation_id=f"c{number}", text="Hello"))
    await redis.zadd(SHARD.queue, {f"{SHARD.tag}:c1": 9e15}, xx=True)
    seconds, _ = await redis.time()
    await redis.zadd(SHARD.queue, {f"{SHARD.tag}:c2": seconds * 1000 - 60_000}, xx=True)
    await redis.hset(SHARD.breakers, "x grok|until", 9 * 10**15)
    await redis.hset(SHARD.breakers, "x grok|failures", 12)
    await redis.xadd(SHARD.dead, {"c": "c"})
    async with batcher_on(redis_url) as batcher:
        found = await read_gauges(batcher, SHARD)

    assert (found.due, found.running, found.dead, found.breakers_open) == (2, 1, 1, 1)
    assert 59 < found.oldest_s < 70
