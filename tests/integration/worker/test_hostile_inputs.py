"""What is written past `submit`, odd results of tools, defects: the conversation goes on."""

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.tools.bench import calling, context, tool_hand
from tests.integration.worker.test_queue import Rig, rig
from tests.support.driving import SHARD, Hand, ended, fleet, requests, user
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed, TurnInterrupted
from turnline.contracts.keys import conversation_keys
from turnline.ops.simulator import Simulator
from turnline.worker.outcome import Outcome, Parked
from turnline.worker.tools import tool
from turnline.worker.turn.ports import AggregatorPair, ModelService, Services

KEYS = conversation_keys(SHARD.tag, "c")
__all__ = ["rig"]  # the fixture


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"tool_result","conversation_id":"c","call_id":""}',
        b'{"type":"tool_result","conversation_id":"c","call_id":7}',
        b'{"type":"tool_result"',
        b'"tool_result"\xff',
    ],
)
async def test_a_malformed_tool_result_behind_a_turn_fails_alone(
    redis: Redis, hand: Hand, data: bytes
) -> None:
    """The turn before it is answered although it looks for results in the whole inbox."""
    receipt = await hand.client.submit(user("hi"))
    await redis.xadd(KEYS.inbox, {"t": "odd", "m": data})

    await hand.run_due()

    await ended(hand.client, receipt, TurnCompleted)
    ((_, letter),) = await redis.xrange(SHARD.dead)
    assert (letter[b"t"], letter[b"code"], letter[b"m"]) == (b"odd", b"invalid_message", data)
    assert await redis.xlen(KEYS.inbox) == 0


@pytest.mark.parametrize(
    "data", [b'{"type":"interrupt","heard":7}', b"not json", b"\xff", b'{"type":"unknown"}']
)
async def test_a_malformed_interrupt_stops_the_turn_it_names(
    redis: Redis, hand: Hand, data: bytes
) -> None:
    """What acts is in the entry's own fields; the message that cannot be read fails alone."""
    receipt = await hand.client.submit(user("hi"))
    head = (await redis.xrange(KEYS.inbox))[0][0]
    await redis.xadd(KEYS.inbox, {"t": "odd", "m": data, "on": head, "act": "interrupt"})

    await hand.run_due()

    await ended(hand.client, receipt, TurnInterrupted)
    ((_, letter),) = await redis.xrange(SHARD.dead)
    assert (letter[b"t"], letter[b"m"]) == (b"odd", data)
    assert [role for role, _ in await context(hand.client)] == ["user"]


@pytest.mark.promise("P9")
async def test_bad_bytes_in_the_fields_of_an_entry_end_with_it(redis: Redis, hand: Hand) -> None:
    """No field of an entry has to be text, or what it claims to be."""
    bad = dict.fromkeys(("t", "d", "a", "on", "act", "tp", "\udcff"), b"\xff")
    fields = {key.encode(errors="surrogateescape"): value for key, value in bad.items()}
    receipt = await hand.client.submit(user("hi"))
    await redis.xadd(KEYS.inbox, {**fields, b"m": b"x"})
    last = await hand.client.submit(user("and again"))

    await hand.run_due()

    for each in (receipt, last):
        await ended(hand.client, each, TurnCompleted)
    assert await redis.xlen(SHARD.dead) == 1
    assert await redis.xlen(KEYS.inbox) == 0


@pytest.mark.promise("P1")
async def test_a_used_id_takes_nothing_else_with_it(redis: Redis, hand: Hand) -> None:
    """What was collected together with a turn that is over has yet to take effect, and does."""
    used = await hand.client.submit(user("done", turn_id="used"))
    await hand.run_due()
    before = await hand.client.record(used)
    fresh = await hand.client.submit(user("fresh", final=False, turn_id="fresh"))
    again = b'{"type":"user_message","conversation_id":"c","turn_id":"used","text":"again"}'
    await redis.xadd(KEYS.inbox, {"t": "used", "m": again})

    await hand.run_due()

    await ended(hand.client, fresh, TurnCompleted)
    assert await hand.client.record(used) == before
    users = [text for role, text in await context(hand.client) if role == "user"]
    assert users == ["done", "fresh"]
    assert await redis.xlen(KEYS.inbox) == 0


@pytest.mark.promise("P9")
async def test_foreign_members_of_the_queue_do_not_end_a_worker(
    redis_url: str, redis: Redis, sim: Simulator, client: TurnClient
) -> None:
    """One whose name is no text belongs to nobody: it is removed, and the others are served."""
    foreign = b"\xff\xfe"
    now_s, _ = await redis.time()
    await redis.zadd(SHARD.queue, {foreign: now_s * 1000})
    await client.submit(user("hi"))

    async with fleet(redis_url, sim):
        assert isinstance(await client.ask("other", "hello", timeout_s=5), TurnCompleted)
        assert isinstance(await client.ask("c", "again", timeout_s=5), TurnCompleted)
        assert await redis.zscore(SHARD.queue, foreign) is None


async def test_a_tool_may_return_what_is_no_utf8(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Lone surrogates, as in names of files, reach the model replaced; the tool ran once."""
    runs: list[str] = []

    @tool
    async def listing() -> str:
        """List files."""
        runs.append("listing")
        return "caf\udce9.txt"

    sim.inject(calling("listing"))
    async with tool_hand(redis_url, sim, listing) as hand:
        receipt = await client.submit(user("Which files?"))
        await hand.run_due()

    await ended(client, receipt, TurnCompleted)
    assert runs == ["listing"]
    assert ("tool", "caf?.txt") in await context(client)
    assert requests(sim)[-1]["messages"][-1]["content"] == "caf?.txt"


class Defective:
    """Makes services, but not the first few times: a defect that no attempt survives."""

    def __init__(self, services: Services, defects: int) -> None:
        self._services = services
        self._left = defects
        self.models_of = services.models_of

    def create_context_aggregator(self, *given: Any, **more: Any) -> AggregatorPair:
        if self._left > 0:
            self._left -= 1
            raise RuntimeError("defect")
        return self._services.create_context_aggregator(*given, **more)

    def __call__(self, *given: Any, **more: Any) -> ModelService:
        return self._services(*given, **more)

    def budget_s(self, *given: Any) -> float:
        return self._services.budget_s(*given)


@pytest.mark.parametrize(("defects", "attempt"), [(3, 4), (5, 5)])
async def test_a_defect_counts_as_a_crash_and_ends_some_day(
    redis: Redis, hand: Hand, defects: int, attempt: int
) -> None:
    """After three of them the turn fails; unread, if even that goes down. The next one runs."""
    poison = await hand.client.submit(user("poison", reply_to="inbox"))
    fine = await hand.client.submit(user("fine"))
    services: Any = Defective(hand.services, defects)
    hand.services = services
    raised = 0
    while (lease := await hand.claim()) is not None:
        outcome: Outcome
        try:
            outcome = await hand.driver().run(lease)
        except RuntimeError:  # as the queue parks what ends in a way that nobody thought of
            raised += 1
            outcome = Parked(2_000, "defect")
        if not lease.released:
            await hand.release(lease, outcome)
        if await redis.exists(KEYS.inbox):
            await hand.make_due("c")

    assert raised == defects
    failed = await ended(hand.client, poison, TurnFailed)
    assert (failed.code, failed.attempt) == ("crashed", attempt)
    await ended(hand.client, fine, TurnCompleted)
    ((_, letter),) = await redis.xrange(SHARD.dead)
    assert (letter[b"t"], letter[b"code"]) == (poison.turn_id.encode(), b"crashed")
    assert b'"text":"poison"' in letter[b"m"]
    ((_, told),) = await redis.xrange(SHARD.reply_prefix + "inbox")
    assert b'"crashed"' in told[b"e"]
    assert [text for role, text in await context(hand.client) if role == "user"] == ["fine"]


async def test_the_queue_counts_a_defect_as_a_crash(redis: Redis, rig: Rig, hand: Hand) -> None:
    """What ended without a word is noted by the next load; a parked turn has said its word."""

    async def run(ctx: dict[str, Any], conversation_id: str) -> Outcome:
        await hand.store.load(ctx["lease"])
        raise ValueError("defect")

    rig.start(run)
    await hand.client.submit(user("hi"))
    await wait_until(lambda: redis.hget(KEYS.state, "parked"), "parked")
    await rig.stop()
    rig.workers.clear()

    await hand.make_due("c")
    lease = await hand.must_claim()
    assert (await hand.store.load(lease)).crashes == 1
    await hand.release(lease, Parked(2_000, "backoff"))
    await hand.make_due("c")
    assert (await hand.store.load(await hand.must_claim())).crashes == 1
