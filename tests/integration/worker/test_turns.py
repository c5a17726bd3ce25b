"""What becomes of messages: order, merging, settings, interrupts, dead letters, forgetting."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.driving import Hand, ended, requests, user
from tests.support.keys import assert_keys_expire, kept
from tests.support.wait import wait_until
from turnline.contracts import (
    Configure,
    ContextAppend,
    ContextReplace,
    StoreFull,
    Transcription,
    TurnAbsorbed,
    TurnClient,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    UserMessage,
    UserStartedSpeaking,
    UserStoppedSpeaking,
)
from turnline.contracts.conversation import (
    AssistantEntry,
    ImagePart,
    ImageUrl,
    SettingsChange,
    TextPart,
    UserEntry,
)
from turnline.contracts.keys import conversation_keys
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.simulator import Simulator
from turnline.worker.effects import Effects
from turnline.worker.errors import LeaseLost
from turnline.worker.outcome import Parked

KEYS = conversation_keys("{s0}", "c")


async def contents(client: TurnClient) -> list[Any]:
    return [message.content for message in (await client.history("c")).messages]


@pytest.mark.promise("P2")
async def test_five_messages_at_once_make_ten_messages_in_order(hand: Hand) -> None:
    """Turns of a conversation take effect in the order they were accepted."""
    receipts = [await hand.client.submit(user(f"message {n}")) for n in range(5)]

    await hand.run_one()

    results = [await hand.client.result(receipt, timeout_s=5) for receipt in receipts]
    expected = [text for n, r in enumerate(results) for text in (f"message {n}", r.text)]
    assert await contents(hand.client) == expected
    assert [receipt.position for receipt in receipts] == [0, 1, 2, 3, 4]


@pytest.mark.promise("P13")
async def test_requests_of_later_turns_begin_with_the_bytes_of_earlier_ones(hand: Hand) -> None:
    """The prompt cache hits: prefixes are byte-stable from turn to turn and worker to worker."""
    for n in range(3):
        await hand.client.submit(user(f"wie geht's, Nº {n}?"))
        await hand.run_one()

    first, second, third = (
        bytes(entry.body).split(b'"messages":[')[1].split(b'],"')[0]
        for entry in hand.sim.ledger.entries()
        if entry.path.endswith("completions")
    )
    assert second.startswith(first)
    assert third.startswith(second)
    headers = [entry.headers.get("x-grok-conv-id") for entry in hand.sim.ledger.entries()]
    assert set(headers) == {"c"}


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
async def test_another_worker_goes_on_where_the_first_stopped(
    redis_url: str, sim: Simulator, client: TurnClient, cache_bytes: int
) -> None:
    """With and without a cache, and with a stale one, the context is what was committed."""
    from tests.support.driving import hand as open_hand  # noqa: PLC0415

    async with (
        open_hand(redis_url, sim, cache_bytes=cache_bytes) as one,
        open_hand(redis_url, sim, cache_bytes=cache_bytes) as other,
    ):
        for worker in (one, other, other, one):
            await client.submit(user("Hello"))
            await worker.run_one()

    assert [len(body["messages"]) for body in requests(sim)] == [1, 3, 5, 7]
    assert len(await contents(client)) == 8


@pytest.mark.promise("P2")
async def test_settings_take_effect_in_order(hand: Hand) -> None:
    """`configure` changes what comes after it, not what came before."""
    await hand.client.submit(user("before"))
    configured = await hand.client.submit(
        Configure(
            conversation_id="c",
            settings=SettingsChange(system_prompt="Be brief.", temperature=0.5, max_tokens=3),
        )
    )
    await hand.client.submit(user("after"))

    await hand.run_one()

    before, after = requests(hand.sim)
    assert before["messages"][0]["role"] == "user"
    assert after["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (after["temperature"], after["max_tokens"]) == (0.5, 3)
    await ended(hand.client, configured, TurnCompleted)
    assert (await hand.client.history("c")).system_prompt == "Be brief."


async def test_context_can_be_appended_replaced_and_only_noted(
    hand: Hand, client: TurnClient, sim: Simulator
) -> None:
    """What changes the context without an answer runs no model."""
    await client.submit(user("noted", run=False))
    await client.submit(
        ContextAppend(conversation_id="c", messages=(AssistantEntry(content="aha"),))
    )
    await hand.run_one()
    assert await contents(client) == ["noted", "aha"]
    assert requests(sim) == []

    replaced = (UserEntry(content="a new start"), AssistantEntry(content="fine"))
    await client.submit(ContextReplace(conversation_id="c", messages=replaced))
    await client.submit(user("go on"))
    await hand.run_one()

    assert (await contents(client))[:3] == ["a new start", "fine", "go on"]
    assert [m["content"] for m in requests(sim)[0]["messages"]] == ["a new start", "fine", "go on"]
    await client.submit(user("and on"))
    await hand.run_one()
    assert len(await contents(client)) == 6


async def test_images_travel_as_parts(hand: Hand) -> None:
    """A message of parts reaches the model as it was sent."""
    parts = (
        TextPart(text="What is this?"),
        ImagePart(image_url=ImageUrl(url="data:image/png;base64,iVBORw0KGgo=")),
    )
    await hand.client.submit(UserMessage(conversation_id="c", parts=parts))

    await hand.run_one()

    (message,) = requests(hand.sim)[0]["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url"]
    assert (await contents(hand.client))[0] == parts


async def test_fragments_are_merged_into_one_turn(hand: Hand) -> None:
    """`final=False`: messages in quick succession make one; the last of them is answered."""
    one = await hand.client.submit(user("I would like", final=False))
    two = await hand.client.submit(user("to book", final=False))
    three = await hand.client.submit(user("a table"))

    await hand.run_one()

    assert requests(hand.sim)[0]["messages"] == [
        {"role": "user", "content": "I would like to book a table"}
    ]
    ends = [await hand.client.result(receipt, timeout_s=5) for receipt in (one, two, three)]
    assert [type(end) for end in ends] == [TurnAbsorbed, TurnAbsorbed, TurnCompleted]
    assert {end.into for end in ends[:2]} == {three.turn_id}


@pytest.mark.promise("P2")
async def test_a_note_behind_an_open_message_takes_effect_behind_its_turn(hand: Hand) -> None:
    """What was accepted after the pieces of a turn does not slip in before it."""
    await hand.client.submit(user("I would like", final=False))
    asked = await hand.client.submit(user("to book", final=False))
    noted = await hand.client.submit(user("(on hold)", run=False))

    await hand.run_one()

    reply = await hand.client.result(asked, timeout_s=5)
    await ended(hand.client, noted, TurnCompleted)
    assert await contents(hand.client) == ["I would like to book", reply.text, "(on hold)"]


async def test_a_note_between_pieces_stands_before_the_turn_that_the_last_one_makes(
    hand: Hand,
) -> None:
    """A turn has the place of the message that it answers."""
    await hand.client.submit(user("I would like", final=False))
    await hand.client.submit(user("(on hold)", run=False))
    asked = await hand.client.submit(user("to book"))

    await hand.run_one()

    reply = await hand.client.result(asked, timeout_s=5)
    assert await contents(hand.client) == ["(on hold)", "I would like to book", reply.text]


async def test_pieces_with_images_keep_their_place_among_the_words(hand: Hand) -> None:
    """Text that waits to be merged goes before the picture that came after it."""
    picture = ImagePart(image_url=ImageUrl(url="data:image/png;base64,AAAA"))
    await hand.client.submit(user("look", final=False))
    await hand.client.submit(
        UserMessage(conversation_id="c", parts=[picture], final=False)  # the wire's order counts
    )
    await hand.client.submit(user("what is it?"))

    await hand.run_one()

    (body,) = requests(hand.sim)
    first, second, third = (message["content"] for message in body["messages"])
    assert (first, third) == ("look", "what is it?")
    assert second[0]["type"] == "image_url"


async def test_an_interrupt_of_a_message_in_pieces_ends_once(hand: Hand) -> None:
    """Also if more of the message comes behind the interrupt."""
    await hand.client.submit(user("I would like", final=False))
    stopped = await hand.client.interrupt("c")
    asked = await hand.client.submit(user("to book"))

    await hand.run_one()

    await ended(hand.client, asked, TurnInterrupted)
    said = await hand.redis.execute_command("XRANGE", KEYS.events, "-", "+")
    ends = [fields for _, fields in said if stopped.turn_id.encode() in fields[b"e"]]
    assert len(ends) == 1


async def test_a_fragment_alone_is_answered_after_the_aggregation_timeout(hand: Hand) -> None:
    """Nothing pending is lost: silence ends the message."""
    receipt = await hand.client.submit(user("hello", final=False))

    await hand.run_one()

    await ended(hand.client, receipt, TurnCompleted)
    assert (await contents(hand.client))[0] == "hello"


async def test_speech_becomes_a_turn(hand: Hand) -> None:
    """Transcriptions between start and stop make one message, answered under the last of them."""
    receipts = [
        await hand.client.submit(message)
        for message in (
            UserStartedSpeaking(conversation_id="c"),
            Transcription(conversation_id="c", text="what", final=False),
            Transcription(conversation_id="c", text="what is"),
            Transcription(conversation_id="c", text="the time?"),
            UserStoppedSpeaking(conversation_id="c"),
        )
    ]

    await hand.run_one()

    ends = [await hand.client.result(receipt, timeout_s=5) for receipt in receipts]
    assert [type(end).__name__ for end in ends] == [
        *("TurnAbsorbed", "TurnAbsorbed", "TurnAbsorbed"),
        *("TurnCompleted", "TurnAbsorbed"),
    ]
    assert (await contents(hand.client))[0] == "what is the time?"


async def test_a_speaker_who_pauses_long_holds_no_slot(
    redis: Redis, redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """The fragments wait in the inbox; the next word brings the conversation back at once."""
    from tests.support.driving import hand as open_hand  # noqa: PLC0415

    async with open_hand(redis_url, sim, speech_timeout_s=0.05) as worker:
        await client.submit(UserStartedSpeaking(conversation_id="c"))
        await client.submit(Transcription(conversation_id="c", text="well"))
        lease = await worker.must_claim()
        outcome = await worker.driver().run(lease)
        assert isinstance(outcome, Parked)
        assert outcome.why == "input"
        await worker.release(lease, outcome)
        assert await worker.claim() is None
        assert await redis.xlen(KEYS.inbox) == 2

        await client.submit(UserStoppedSpeaking(conversation_id="c"))
        await worker.run_one()

    assert (await contents(client))[0] == "well"


async def test_interrupt_keeps_the_partial_reply(hand: Hand) -> None:
    """The partial text is committed and flagged, tokens are counted, the next turn just works."""
    hand.sim.inject("stall;at=tokens:5")
    turn = await hand.speaking(user("Tell me a long story"))
    await hand.client.interrupt("c")
    await turn.notified()

    end = await ended(hand.client, turn.receipt, TurnInterrupted)
    assert end.text
    assert end.text.startswith(turn.shown.strip())
    history = await hand.client.history("c")
    assert history.messages[1].content == end.text
    assert history.interrupted == (1,)
    assert end.usage_state == "estimated"
    assert end.usage.completion_tokens == 5
    (entry,) = [e for e in hand.sim.ledger.entries() if e.path.endswith("completions")]
    await wait_until(lambda: entry.outcome == "cut", "the model's connection is closed")

    await hand.client.submit(user("Go on"))
    lease = await hand.claim()
    if lease is not None:
        await hand.driver().run(lease)
    assert len(await contents(hand.client)) == 4


async def test_interrupt_cuts_the_reply_to_what_was_heard(hand: Hand) -> None:
    """`heard` decides how much of the reply the context keeps."""
    hand.sim.inject("text;value=one%20two%20three%20four|stall;at=tokens:4")
    turn = await hand.speaking(user("Count"), until="four")
    await hand.client.interrupt("c", heard="one two")
    await turn.notified()

    assert (await hand.client.result(turn.receipt, timeout_s=5)).text == "one two"
    assert await contents(hand.client) == ["Count", "one two"]


async def test_interrupt_before_the_turn_runs_keeps_the_user_message(hand: Hand) -> None:
    """A waiting turn can be stopped: nothing is asked of the model, nothing of the user is lost."""
    receipt = await hand.client.submit(user("never mind"))
    await hand.client.interrupt("c")

    await hand.run_one()

    await ended(hand.client, receipt, TurnInterrupted)
    assert await contents(hand.client) == ["never mind"]
    assert requests(hand.sim) == []


async def test_when_busy_interrupt_answers_the_newer_message(hand: Hand) -> None:
    """The running turn is stopped and kept; both user messages are in the context."""
    hand.sim.inject("stall;at=tokens:3")
    first = await hand.speaking(user("first"))
    second = await hand.client.submit(user("second", when_busy="interrupt"))
    await first.notified()

    await ended(hand.client, first.receipt, TurnInterrupted)
    await ended(hand.client, second, TurnCompleted)
    assert [m["role"] for m in requests(hand.sim)[1]["messages"]] == ["user", "assistant", "user"]


@pytest.mark.promise("P7")
async def test_when_busy_rollback_joins_both_messages(hand: Hand) -> None:
    """The running turn leaves no trace but its spend; its words join the newer message."""
    hand.sim.inject("stall;at=tokens:3")
    first = await hand.speaking(user("book a table"))
    second = await hand.client.submit(user("for two", when_busy="rollback"))
    await first.notified()

    end = await ended(hand.client, first.receipt, TurnAbsorbed)
    assert end.into == second.turn_id
    reply = await hand.client.result(second, timeout_s=5)
    assert await contents(hand.client) == ["book a table for two", reply.text]
    totals = await hand.client.usage("c")
    assert totals.abandoned.completion_tokens == 3
    assert totals.usage == reply.usage


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b'{"type":"unknown","conversation_id":"c"}',
        b'{"type":"user_message","conversation_id":"c","text":5}',
        b'{"type":"user_message","conversation_id":"other","text":"x"}',
        b"\xff\xfe",
        b"",
    ],
)
async def test_broken_bytes_in_an_inbox_are_a_dead_letter_and_the_next_turn_runs(
    redis: Redis, hand: Hand, data: bytes
) -> None:
    """Whoever wrote them; the bytes are kept and the conversation goes on."""
    await redis.xadd(KEYS.inbox, {"m": data})
    receipt = await hand.client.submit(user("fine"))

    await hand.run_one()

    await ended(hand.client, receipt, TurnCompleted)
    ((_, letter),) = await redis.xrange("turnline:{s0}:dead")
    assert letter[b"code"] == b"invalid_message"
    if data:
        assert letter[b"m"] == data
    events = await redis.xrange(KEYS.events)
    assert b'"type":"turn_failed"' in events[0][1][b"e"]
    assert await contents(hand.client) != []


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("bad-key", "auth"),
        ("stop", "unsupported_parameter"),
        ("safety", "safety"),
        ("credits", "credits"),
    ],
)
async def test_a_refused_turn_fails_by_name_and_leaves_the_context_alone(
    redis: Redis, hand: Hand, scenario: str, code: str
) -> None:
    """Terminal failures: turn_failed, a dead letter, and the conversation goes on."""
    hand.sim.inject(scenario)
    failing = await hand.client.submit(user("one"))
    fine = await hand.client.submit(user("two"))

    await hand.run_one()

    await ended(hand.client, failing, TurnFailed, code)
    reply = await hand.client.result(fine, timeout_s=5)
    assert await contents(hand.client) == ["two", reply.text]
    assert await redis.xlen("turnline:{s0}:dead") == 1


@pytest.mark.promise("P6", "P7")
async def test_a_retryable_failure_waits_without_a_slot_and_is_tried_again(hand: Hand) -> None:
    """The attempt's spend is kept apart; readers see a new attempt and the right text."""
    hand.sim.inject("rst;at=tokens:3")
    receipt = await hand.client.submit(user("Hello"))
    lease = await hand.must_claim()
    outcome = await hand.driver().run(lease)
    assert isinstance(outcome, Parked)
    assert outcome.why == "backoff"
    await hand.release(lease, outcome)
    await hand.client.submit(user("next"))
    await hand.make_due("c")

    await hand.run_one()

    result = await hand.client.result(receipt, timeout_s=5)
    assert result.attempt == 2
    totals = await hand.client.usage("c")
    assert (totals.calls, totals.estimated_calls) == (3, 1)
    assert totals.abandoned.completion_tokens == 3
    assert len(await contents(hand.client)) == 4


@pytest.mark.promise("P4")
async def test_a_zombie_cannot_write(redis: Redis, hand: Hand) -> None:
    """A worker that lost its lease has every later write refused by the server."""
    hand.sim.inject("stall;at=tokens:3")
    turn = await hand.speaking(user("Hello"))
    await hand.expire(turn.lease)
    await hand.run_one()
    before = await kept(redis)

    effects = Effects(turn_id="another", messages=[b"{}"], turns=1, events=[])
    for write in (
        hand.store.load(turn.lease),
        hand.store.emit(turn.lease, [b"{}"], head="", batch=1),
        hand.store.checkpoint(turn.lease, 0, [b"m{}"]),
        hand.store.commit(turn.lease, effects, keep_lease=True),
    ):
        with pytest.raises(LeaseLost):
            await write
    await hand.release(turn.lease, Parked(1_000, "backoff"))

    assert await kept(redis) == before
    assert len(await contents(hand.client)) == 2
    turn.task.cancel()
    await asyncio.gather(turn.task, return_exceptions=True)
    assert await kept(redis) == before


@pytest.mark.promise("P4")
async def test_forget_removes_every_trace_while_a_turn_runs(redis: Redis, hand: Hand) -> None:
    """Also the running turn's: its later writes are refused."""
    await hand.client.submit(user("secret", reply_to="inbox"))
    await hand.run_one()
    hand.sim.inject("stall;at=tokens:3")
    turn = await hand.speaking(user("more secrets"))

    assert await hand.client.forget("c")
    turn.task.cancel()
    await asyncio.gather(turn.task, return_exceptions=True)

    left = await kept(redis)
    assert not [key for key in left if ":c:" in key or "arq" in key]
    assert await redis.xlen("turnline:{s0}:replies:inbox") == 0
    assert not [key for key, value in left.items() if "secret" in repr(value)]
    assert await hand.client.forget("c") is False


async def test_replies_fan_in_and_nothing_is_kept_for_ever(redis: Redis, hand: Hand) -> None:
    """`reply_to` gets the terminal events; every key expires or is known to be permanent."""
    receipt = await hand.client.submit(user("Hello", reply_to="shop", metadata={"order": "7"}))
    await hand.client.submit(user("", parts=(TextPart(text="x"),), reply_to="shop"))
    await hand.run_one()

    replies = hand.client.replies("shop", "billing", "one")
    first = await anext(replies)
    second = await anext(replies)
    await replies.aclose()

    assert first.turn_id == receipt.turn_id
    assert first.metadata == {"order": "7"}
    assert isinstance(second, TurnCompleted)
    await assert_keys_expire(redis)


@pytest.mark.promise("P8")
async def test_a_long_inbox_yields_its_slot_after_the_quota(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """A busy conversation cannot hold a slot for ever; it goes to the back of the queue."""
    from tests.support.driving import hand as open_hand  # noqa: PLC0415

    async with open_hand(redis_url, sim, turn_quota=2) as worker:
        receipts = [await client.submit(user(f"{n}")) for n in range(5)]
        runs = 0
        while (lease := await worker.claim()) is not None:
            await worker.driver().run(lease)
            runs += 1

    assert runs == 3
    assert [(await client.result(r, timeout_s=5)).text[:11] for r in receipts] == [
        f"You said “{n}"[:11] for n in range(5)
    ]


@pytest.mark.promise("P1", "P3")
async def test_a_full_server_refuses_whole_commits_and_nothing_is_lost(
    sim: Simulator,
) -> None:
    """`noeviction`: what cannot be written is not half written; with memory again, it goes on."""
    from tests.support.driving import hand as open_hand  # noqa: PLC0415

    with EmbeddedRedis() as server:
        async with (
            open_hand(server.url, sim) as worker,
            TurnClient.connect(server.url) as client,
            Redis.from_url(server.url) as redis,
        ):
            sim.inject("stall;at=before-finish")
            turn = await worker.speaking(user("Hello"), client=client)
            await redis.config_set("maxmemory", 1)
            with pytest.raises(StoreFull):
                await client.submit(user("more"))
            effects = Effects(
                turn_id="x", entries=[(await redis.xrange(KEYS.inbox))[0][0].decode()]
            )
            commit = asyncio.create_task(worker.store.commit(turn.lease, effects, keep_lease=True))
            await wait_until(lambda: _refused(redis), "the commit is refused")
            assert await redis.xlen(KEYS.inbox) == 1
            commit.cancel()
            await redis.config_set("maxmemory", 0)
            turn.task.cancel()
            await asyncio.gather(commit, turn.task, return_exceptions=True)
            await worker.expire(turn.lease)
            await worker.run_one()
            await ended(client, turn.receipt, TurnCompleted)


async def _refused(redis: Redis) -> bool:
    stats = await redis.info("errorstats")
    return int(stats.get("errorstat_OOM", {"count": 0})["count"]) >= 2


@pytest.mark.promise("P6")
async def test_a_repeated_batch_of_events_says_nothing_twice(redis: Redis, hand: Hand) -> None:
    """After a lost reply a batch is sent again: in its turn, and when that is over."""
    receipt = await hand.client.submit(user("Hello"))
    await hand.client.submit(user("next"))
    lease = await hand.must_claim()
    loaded = await hand.store.load(lease)
    head = loaded.entries[0].entry_id
    for batch in (1, 1, 2, 1, 2):
        await hand.store.emit(lease, [b"%d" % batch], head=head, batch=batch)
    assert [fields[b"e"] for _, fields in await redis.xrange(KEYS.events)] == [b"1", b"2"]

    effects = Effects(turn_id=receipt.turn_id, entries=[head])
    await hand.store.commit(lease, effects, keep_lease=True)
    await hand.store.emit(lease, [b"late"], head=head, batch=3)

    assert await redis.xlen(KEYS.events) == 2
