"""What fails alike again is not paid for again and again, and holds up nobody else."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

import msgspec
import pytest
from click.testing import CliRunner
from redis.asyncio import Redis

from tests.support.driving import Hand, batcher_on, ended, fleet, requests, user
from tests.support.driving import hand as open_hand
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed
from turnline.contracts.keys import shard_keys
from turnline.ops.cli.dead import dead
from turnline.ops.fleet.dead_letters import letter_of
from turnline.ops.simulator import Simulator
from turnline.worker.outcome import Parked
from turnline.worker.pipeline.stream import CompletionStream
from turnline.worker.states import LeaseEvent
from turnline.worker.store.breakers import Breakers

pytestmark = pytest.mark.promise("P12")
SHARD = shard_keys(0)


async def run_to_the_end(hand: Hand, *, most: int = 20) -> int:
    """Run what is due, attempt after attempt, each as soon as the last one is over."""
    for attempt in range(1, most + 1):
        lease = await hand.must_claim()
        outcome = await hand.driver().run(lease)
        if not isinstance(outcome, Parked):
            return attempt
        await hand.release(lease, outcome)
        await hand.make_due(lease.conversation_id)
    raise AssertionError(f"not over after {most} attempts")


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("truncated-json;at=tokens:1", "malformed_stream"),
        ("truncated-json;at=tokens:0", "malformed_stream"),
        ("eof;at=tokens:2", "truncated"),
        ("ok-html", "not_a_stream"),
        ("ok-empty", "truncated"),
        ("error-frame;at=tokens:1,text=something%20new", "reply_error"),
    ],
)
async def test_the_second_reply_that_cannot_be_used_ends_the_turn_by_name(
    hand: Hand, scenario: str, code: str
) -> None:
    """Two calls, no more; the conversation goes on with its next turn."""
    hand.sim.inject(scenario, times=None)
    receipt = await hand.client.submit(user())

    assert await run_to_the_end(hand) == 2

    await ended(hand.client, receipt, TurnFailed, code)
    assert len(requests(hand.sim)) == 2
    hand.sim.rules.clear()
    receipt = await hand.client.submit(user("again"))
    await run_to_the_end(hand)
    await ended(hand.client, receipt, TurnCompleted)


async def test_a_crash_in_between_does_not_make_the_count_forget(
    hand: Hand, redis_url: str
) -> None:
    """Malformed, a worker that dies, malformed by another worker: the second one counts."""
    hand.sim.inject("truncated-json;at=tokens:1", nth=1)
    hand.sim.inject("stall;at=tokens:1,seconds=60", nth=2)
    hand.sim.inject("truncated-json;at=tokens:1", nth=3, times=None)
    receipt = await hand.client.submit(user())
    lease = await hand.must_claim()
    await hand.release(lease, await hand.driver().run(lease))
    await hand.make_due("c")
    lease = await hand.must_claim()
    attempt = asyncio.create_task(hand.driver().run(lease))
    await wait_until(lambda: len(requests(hand.sim)) == 2, "the second call is on its way")
    lease.advance(LeaseEvent.FENCED)  # as if killed: nothing more is written
    attempt.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attempt
    await hand.expire(lease)

    async with open_hand(redis_url, hand.sim) as other:
        assert await run_to_the_end(other) == 1

    failed = await ended(hand.client, receipt, TurnFailed)
    assert (failed.code, failed.attempt, len(requests(hand.sim))) == ("malformed_stream", 3, 3)


async def test_replies_that_cannot_be_used_for_different_reasons_are_each_tried_again(
    hand: Hand,
) -> None:
    """One broken frame and one truncated reply, and the third attempt answers."""
    hand.sim.inject("truncated-json;at=tokens:1", nth=1)
    hand.sim.inject("eof;at=tokens:2", nth=2)
    receipt = await hand.client.submit(user())

    assert await run_to_the_end(hand) == 3

    await ended(hand.client, receipt, TurnCompleted)


async def test_attempts_that_the_provider_began_to_answer_are_bounded(hand: Hand) -> None:
    """The fifth connection lost in the middle of a reply is the last; its code is kept."""
    hand.sim.inject("rst;at=tokens:2", times=None)
    receipt = await hand.client.submit(user())

    assert await run_to_the_end(hand) == 5

    failed = await ended(hand.client, receipt, TurnFailed, "attempts_exhausted")
    assert failed.message.endswith("connection")
    assert len(requests(hand.sim)) == 5
    assert (await hand.client.usage("c")).abandoned.completion_tokens == 5 * 2


def _streams() -> list[object]:
    return [it for it in gc.get_objects() if isinstance(it, CompletionStream)]


@pytest.mark.parametrize(
    "scenario",
    ["odd-reply;shape=endless,size=4500000", "truncated-json;at=tokens:1", "eof", "status=503"],
)
async def test_an_attempt_that_failed_leaves_nothing_to_collect(hand: Hand, scenario: str) -> None:
    """It is freed as it ends, with the megabytes that it read: collections are rare."""
    hand.sim.inject(scenario, times=None)
    await hand.client.submit(user())
    lease = await hand.must_claim()
    gc.collect()
    gc.disable()
    try:
        await hand.driver().run(lease)
        await wait_until(lambda: not _streams(), "the response to be freed")
    finally:
        gc.enable()


@pytest.mark.parametrize("words", ["please try again", "internal error", "at capacity"])
async def test_errors_that_may_pass_are_paid_for_within_the_same_bounds(
    redis_url: str, client: TurnClient, sim: Simulator, words: str
) -> None:
    """Once words have come, an error in the stream is an attempt, and its tokens count."""
    text = words.replace(" ", "%20")
    sim.inject(f"error-frame;at=tokens:8,text={text}", times=None)
    receipts = [await client.submit(user(conversation=name)) for name in ("c", "d")]
    async with open_hand(redis_url, sim) as hand:
        assert await run_to_the_end(hand) == 5
    async with open_hand(redis_url, sim, turn_spend_tokens=15, turn_attempts=50) as hand:
        tries = await run_to_the_end(hand)

    ends = [await client.result(receipt, timeout_s=5) for receipt in receipts]
    codes = {it.code for it in ends if isinstance(it, TurnFailed)}
    assert codes == {"attempts_exhausted", "spend_exhausted"}
    assert len(requests(sim)) == 5 + tries
    assert tries <= 2


@pytest.mark.parametrize("scenario", ["status=503", "rate-limit", "ok-json", "accept-close"])
async def test_refusals_cost_nothing_and_are_bounded_by_time_alone(
    hand: Hand, scenario: str
) -> None:
    """Eight refusals in a row, more than attempts are allowed, and then the answer."""
    hand.sim.inject(scenario, times=8)
    receipt = await hand.client.submit(user())

    assert await run_to_the_end(hand) == 9

    await ended(hand.client, receipt, TurnCompleted)


async def test_tokens_of_vain_attempts_are_bounded(
    redis_url: str, client: TurnClient, sim: Simulator
) -> None:
    """Past the limit the turn fails by name, though attempts and time are left."""
    sim.inject("rst;at=tokens:8", times=None)
    receipt = await client.submit(user())
    async with open_hand(redis_url, sim, turn_spend_tokens=15, turn_attempts=50) as hand:
        attempts = await run_to_the_end(hand)

    await ended(client, receipt, TurnFailed, "spend_exhausted")
    abandoned = (await client.usage("c")).abandoned
    assert abandoned.total_tokens > 15
    assert abandoned.total_tokens * (attempts - 1) / attempts <= 15


@pytest.mark.parametrize("scenario", ["truncated-json;at=tokens:1", "eof;at=tokens:1"])
async def test_replies_that_cannot_be_used_open_no_breaker(
    redis: Redis, hand: Hand, scenario: str
) -> None:
    """Twelve conversations fail alike; nothing is held against the provider."""
    hand.sim.inject(scenario, times=None, conversation="odd-*")
    for n in range(12):
        await hand.client.submit(user(conversation=f"odd-{n}"))
    for _ in range(12):
        await run_to_the_end(hand)

    assert len(requests(hand.sim)) == 24
    assert await redis.exists(SHARD.breakers) == 0


@pytest.mark.parametrize("scenario", ["status=500", "rst;at=before-headers", "rst;at=tokens:1"])
async def test_a_few_conversations_that_always_fail_hold_up_nobody(
    redis_url: str, client: TurnClient, sim: Simulator, scenario: str
) -> None:
    """Three conversations fail again and again for nobody's fault but theirs; one is healthy."""
    sim.inject(scenario, times=None, conversation="odd-*")
    async with fleet(redis_url, sim):
        for n in range(3):
            for _ in range(5):
                await client.submit(user(conversation=f"odd-{n}"))
        await wait_until(lambda: len(requests(sim)) >= 12, "they fail on and on", timeout_s=20)

        receipt = await client.submit(user(conversation="healthy"))
        result = await client.result(receipt, timeout_s=1.5)

    assert isinstance(result, TurnCompleted)


@contextlib.asynccontextmanager
async def breakers(redis_url: str) -> AsyncIterator[Breakers]:
    """Breakers as one worker has them."""
    async with batcher_on(redis_url) as batcher:
        yield Breakers(batcher, SHARD)


async def test_a_probe_that_fails_does_not_hold_off_who_has_not_failed(
    redis: Redis, redis_url: str
) -> None:
    """The pause grows for those that fail; a newcomer is let through, and closes it for all."""
    async with breakers(redis_url) as ours:
        for n in range(10):
            await ours.failed("x", f"odd-{n % 5}")
        assert 1.9 < await ours.wait_s("x", "odd-0") <= 2.0
        for _ in range(3):  # three pauses, three probes of the same one, each in vain
            await redis.hset(SHARD.breakers, "x|until", 0)
            assert await ours.wait_s("x", "odd-0") == 0
            await ours.failed("x", "odd-0")
        assert await ours.wait_s("x", "odd-1") > 15

        assert await ours.wait_s("x", "healthy") <= 2.0
        await redis.hset(SHARD.breakers, "x|next", 0)
        assert await ours.wait_s("x", "healthy") == 0
        assert 0 < await ours.wait_s("x", "another") <= 2.0
        await ours.succeeded("x")

        assert await ours.wait_s("x", "odd-1") == 0
        assert await redis.exists(SHARD.breakers) == 0


async def test_a_provider_that_fails_is_told_of_once(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And once that it is back; the shards of a process say it together."""
    failing: set[str] = set()
    async with batcher_on(redis_url) as batcher:
        one, other = (Breakers(batcher, shard_keys(n), failing=failing) for n in range(2))
        with caplog.at_level("INFO", "turnline.turns"):
            for breaker in (one, other):
                for n in range(10):
                    await breaker.failed("x", f"c{n}")
                for n in range(3):
                    assert await breaker.wait_s("x", f"c{n}") > 0
            await one.succeeded("x")
            await other.succeeded("x")

    assert caplog.messages == ["provider.failing", "provider.back"]


async def test_failures_of_few_conversations_do_not_open_a_breaker(redis_url: str) -> None:
    """A hundred failures of four conversations are theirs; the fifth makes it the provider's."""
    async with breakers(redis_url) as ours:
        for n in range(100):
            await ours.failed("x", f"c{n % 4}")
            assert await ours.wait_s("x", "c0") == 0
        await ours.failed("x", "c4")

        assert await ours.wait_s("x", "c0") > 0


async def test_a_breaker_that_an_older_worker_closed_begins_anew(
    redis: Redis, redis_url: str
) -> None:
    """Who failed before a success is not counted, though an older version leaves the marks."""
    async with breakers(redis_url) as ours:
        for n in range(4):
            await ours.failed("x", f"c{n}")
        await redis.hdel(SHARD.breakers, "x|failures", "x|until", "x|pause", "x|probe")
        for _ in range(12):
            await ours.failed("x", "c4")

        assert await ours.wait_s("x", "c4") == 0


async def test_the_providers_words_are_in_the_dead_letter_alone(
    redis: Redis, hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    """Why a request was refused is shown to an operator, and not to readers, logs or spans."""
    hand.sim.inject("bad-schema")
    receipt = await hand.client.submit(user())
    await run_to_the_end(hand)

    await ended(hand.client, receipt, TurnFailed, "invalid_tool_schema")
    [(entry_id, fields)] = await redis.xrange(SHARD.dead)
    letter = letter_of(0, entry_id, fields)
    assert letter.provider_said == (
        "invalid-argument: Invalid request content: Invalid function schema."
    )
    assert letter.code == "invalid_tool_schema"
    words = b"Invalid function schema"
    for key in await redis.keys("*"):
        kind = await redis.type(key)
        if kind == b"string" or key == SHARD.dead.encode():
            continue
        dump = await redis.dump(key)
        assert words not in dump, key
    assert words.decode() not in caplog.text


async def test_the_command_line_shows_what_the_provider_said(redis_url: str, hand: Hand) -> None:
    """`turnline dead show`, and `--json` for programs."""
    hand.sim.inject("tool-choice")
    await hand.client.submit(user())
    await run_to_the_end(hand)
    runner = CliRunner(env={"COLUMNS": "200"})

    listed = await asyncio.to_thread(runner.invoke, dead, ["list", "--json", "--redis", redis_url])
    (letter,) = msgspec.json.decode(listed.stdout)
    shown = await asyncio.to_thread(
        runner.invoke, dead, ["show", letter["id"], "--redis", redis_url]
    )

    said = "invalid-argument: A tool_choice was set on the request but no tools were specified."
    assert letter["provider_said"] == said
    assert letter["code"] == "invalid_tool_choice"
    assert "provider said" in shown.stdout
    assert said in " ".join(shown.stdout.split())
