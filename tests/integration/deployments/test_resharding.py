"""The number of shards changes while turns run: nothing is lost, repeated, reordered or missed."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.processes import worker_process
from tests.support.wait import wait_until
from turnline.contracts import (
    SyncTurnClient,
    TurnClient,
    TurnCompleted,
    TurnStarted,
    TurnUnknown,
    UserMessage,
)
from turnline.contracts.conversation import Usage, UserEntry
from turnline.contracts.keys import shard_keys, shard_of
from turnline.contracts.layout import FIELDS, Layout, read_layout
from turnline.contracts.opening import open_async
from turnline.contracts.protocol import Requests
from turnline.contracts.replies import encode_event
from turnline.contracts.scripts import run, text
from turnline.ops.deployments import Cluster
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.fleet import lua
from turnline.ops.fleet.resharding import CannotReshard, Progress, reshard
from turnline.ops.simulator import Simulator
from turnline.worker.store import lua as store

MANY = 12
MOVES = next(f"c{n}" for n in range(100) if shard_of(f"c{n}", MANY))
TURNS = 12


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """A Grok that does not wait."""
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture(params=["server", "cluster"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of servers of their own, with a fleet of one shard."""
    if request.param == "server":
        with EmbeddedRedis() as server:
            yield server.url
    else:
        with Cluster() as deployment:
            yield deployment.address


async def begin(redis: Any, shards: int = 1) -> None:
    """Have a fleet with so many shards, as its first worker says it."""
    for number in range(shards):
        await redis.execute_command("HSET", shard_keys(number).fleet, "shards", shards)


class Talk:
    """One conversation: somebody who talks, and somebody who follows."""

    def __init__(self, client: TurnClient, name: str) -> None:
        self.client = client
        self.name = name
        self.asked: list[str] = []
        self.replies: list[str] = []
        self.followed: list[str] = []

    async def talk(self, is_over: asyncio.Event) -> None:
        """Ask one thing after the other, until it is over and a few more were asked."""
        while not is_over.is_set() or len(self.asked) < TURNS:
            words = f"{self.name} {len(self.asked)}"
            self.asked.append(words)
            receipt = await self.client.submit(UserMessage(conversation_id=self.name, text=words))
            end = await self.client.result(receipt, timeout_s=30)
            assert isinstance(end, TurnCompleted), end
            self.replies.append(end.text)
            await asyncio.sleep(0)

    async def follow(self) -> None:
        """Note which turn ended, by its reply."""
        async for event in self.client.follow(self.name, after="0"):
            if isinstance(event, TurnCompleted):
                self.followed.append(event.text)


@pytest.mark.promise("P1", "P3", "P8")
async def test_talks_go_on_while_a_fleet_is_resharded(address: str, sim: Simulator) -> None:
    """There and back, with producers who know the one number or the other, and readers."""
    redis = open_async(address)
    await begin(redis)
    is_over = asyncio.Event()
    with worker_process(address, sim.base_url, shards=str(MANY)):
        async with (
            TurnClient.connect(address, shards=1) as before,
            TurnClient.connect(address, shards=MANY) as after,
        ):
            talks = [
                Talk(client, f"{n}-{k}")
                for n in range(8)
                for k, client in enumerate((before, after))
            ]
            following = [asyncio.create_task(it.follow()) for it in talks]
            talking = asyncio.gather(*(it.talk(is_over) for it in talks))
            await wait_until(lambda: all(len(it.replies) > 2 for it in talks), "all talk", 60)
            there = await reshard(address, MANY)
            counts = [len(it.replies) for it in talks]
            await wait_until(
                lambda: all(len(it.replies) > n for it, n in zip(talks, counts, strict=True)),
                "all go on",
                60,
            )
            back = await reshard(address, 1)
            is_over.set()
            await talking
            await wait_until(
                lambda: all(it.followed == it.replies for it in talks), "all is followed", 30
            )
            for task in following:
                task.cancel()
            histories = [await before.history(it.name) for it in talks]
            totals = [await after.usage(it.name) for it in talks]
            spent = await before.spend(by=("tenant",))
    await redis.aclose()

    moving = sum(shard_of(it.name, MANY) != 0 for it in talks)
    assert (there.moved, back.moved) == (moving, moving)
    for talk, history, total in zip(talks, histories, totals, strict=True):
        said = [it.content for it in history.messages if isinstance(it, UserEntry)]
        assert said == talk.asked
        assert total.turns == len(talk.asked)
    usage = sum((it.usage + it.abandoned for it in totals), Usage())
    assert [(it.calls, it.usage) for it in spent] == [(sum(it.calls for it in totals), usage)]


async def said(redis: Any, conversation_id: str, words: str, shards: int = 1) -> None:
    """Have a worker answer a turn."""
    keys = Requests().names(conversation_id, shards)[1]
    async with asyncio.timeout(5):
        await redis.execute_command("SET", keys.in_progress, "7 w")
        await redis.execute_command("HSET", keys.state, "head", "1-1")
        event = TurnStarted(conversation_id=conversation_id, turn_id=words)
        args = store.EmitArgs("7 w", b"", 10_000, 600_000, "", 1, [encode_event(event)])
        await run(redis, store.emit(keys, args))
        await redis.execute_command("RPUSH", keys.context, f'{{"role":"user","content":"{words}"}}')
        await redis.execute_command("DEL", keys.inbox, keys.in_progress, keys.job)
        await redis.execute_command("ZREM", keys.queue, keys.job_id)


async def talked(redis: Redis, client: TurnClient, words: str, shards: int = 1) -> None:
    """Submit a turn, and have it answered."""
    await client.submit(UserMessage(conversation_id=MOVES, turn_id=words, text=words))
    await said(redis, MOVES, words, shards)


async def contents(client: TurnClient) -> list[Any]:
    """What the history has."""
    return [it.content for it in (await client.history(MOVES)).messages]


async def test_whoever_knows_an_old_number_finds_all(redis: Redis, redis_url: str) -> None:
    """A client that sleeps while the fleet is resharded, in whatever it asks next."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        receipt = await client.submit(UserMessage(conversation_id=MOVES, turn_id="two", text="two"))
        await said(redis, MOVES, "two")
        for ask in ("history", "record", "events", "follow", "usage", "submit", "forget"):
            async with TurnClient.connect(redis_url) as sleeper:
                assert await contents(sleeper) == ["one", "two"]
                follower = sleeper.follow(MOVES, after="0")
                assert (await anext(follower)).turn_id == "one"
                await reshard(redis_url, MANY)
                match ask:
                    case "history":
                        assert await contents(sleeper) == ["one", "two"]
                    case "record":
                        assert (await sleeper.record(receipt)).state == "accepted"
                    case "events":
                        assert (await anext(sleeper.events(receipt))).turn_id == "two"
                    case "follow":
                        assert (await anext(follower)).turn_id == "two"
                    case "submit":
                        again = UserMessage(conversation_id=MOVES, turn_id="two", text="two")
                        assert (await sleeper.submit(again)).status == "duplicate"
                    case "forget":
                        assert await sleeper.forget(MOVES)
                await reshard(redis_url, 1)
        with pytest.raises(TurnUnknown):
            await client.record(receipt)
    assert [key async for key in redis.scan_iter(f"*:c:{MOVES}:*")] == []


@pytest.mark.parametrize("read", ["follow", "events", "blocking"])
async def test_a_reader_who_waits_is_told(redis: Redis, redis_url: str, read: str) -> None:
    """Also one that blocks; what comes next is read where it comes."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        receipt = await client.submit(UserMessage(conversation_id=MOVES, turn_id="two", text="two"))
        keys = Requests().names(MOVES)[1]
        await redis.delete(keys.inbox, keys.job)  # nobody runs it now
        await redis.zrem(keys.queue, keys.job_id)

        def block() -> str:
            with SyncTurnClient.connect(redis_url) as blocking:
                return next(iter(blocking.events(receipt))).turn_id

        async def wait() -> str:
            if read == "blocking":
                return await asyncio.to_thread(block)
            events: Any = client.events(receipt) if read == "events" else client.follow(MOVES)
            return (await anext(events)).turn_id

        async def is_waiting() -> bool:
            _, listeners = await redis.execute_command("PUBSUB", "SHARDNUMSUB", keys.events)
            return listeners > 0 or (await redis.info("clients"))["blocked_clients"] > 0

        waiting = asyncio.create_task(wait())
        await wait_until(is_waiting, "somebody waits")
        await reshard(redis_url, MANY)
        await said(redis, MOVES, "two", MANY)

        assert await asyncio.wait_for(waiting, 15) == "two"


async def test_a_move_that_was_cut_off_is_done_again(redis: Redis, redis_url: str) -> None:
    """With what was said since, and without what had arrived by then."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        old, new = (Requests().names(MOVES, it)[1] for it in (1, MANY))
        _, _, cursor, *items = await run(redis, lua.pack(old, lua.PackArgs(old.job_id, 0)))
        args = lua.ArriveArgs(text(cursor), b"", "m", items)
        await redis.hset(new.fleet, "mover", "m")
        assert await run(redis, lua.arrive(new, args)) == [b"arrived", b""]
        await talked(redis, client, "two")

        await reshard(redis_url, MANY)

        assert await contents(client) == ["one", "two"]


async def test_a_full_server_is_waited_for(redis: Redis, redis_url: str) -> None:
    """As one that is away is."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
    before = (await redis.info("errorstats")).get("errorstat_OOM", {"count": 0})["count"]

    async def refused() -> bool:
        refusals = (await redis.info("errorstats")).get("errorstat_OOM", {"count": 0})["count"]
        return moving.done() or refusals > before + 2

    await redis.config_set("maxmemory", 1)
    try:
        moving = asyncio.create_task(reshard(redis_url, MANY))
        await wait_until(refused, "it is refused, and goes on")
    finally:
        await redis.config_set("maxmemory", 0)

    assert (await asyncio.wait_for(moving, 10)).moved == 1


async def test_a_connection_that_breaks_while_it_looks_is_no_end(
    redis: Redis, redis_url: str
) -> None:
    """It looks again."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
    await redis.mset({f"other-{n}": "" for n in range(100_000)})

    async def cut() -> bool:
        looking = [it for it in await redis.client_list() if it["cmd"] == "scan"]
        for it in looking:
            await redis.client_kill_filter(_id=it["id"])
        return bool(looking)

    moving = asyncio.create_task(reshard(redis_url, MANY))
    await wait_until(cut, "it looks, and its connection is cut")

    assert (await asyncio.wait_for(moving, 10)).moved == 1


async def test_what_was_accepted_after_it_was_packed_lets_it_stay(
    redis: Redis, redis_url: str
) -> None:
    """A mover that was held up for longer than producers wait; the turn may be over by then."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        old = Requests().names(MOVES)[1]
        _, last, cursor, *_ = await run(redis, lua.pack(old, lua.PackArgs(old.job_id, 0)))
        await talked(redis, client, "two")
        await redis.hset(old.fleet, "mover", "m")

        args = lua.LeaveArgs(old.job_id, last, MANY, 1000, "m", text(cursor))
        answer, _ = await run(redis, lua.leave(old, args))

        assert text(answer) == "changed"
        assert await contents(client) == ["one", "two"]


async def test_an_old_copy_does_not_replace_a_newer_one(redis: Redis, redis_url: str) -> None:
    """A server that lost what it was told has the conversation still."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        old = Requests().names(MOVES)[1]
        copies = {key: await redis.dump(key) for key in old.own}
        await reshard(redis_url, MANY)
        await talked(redis, client, "two", MANY)
        for key, dump in copies.items():
            if dump:
                await redis.restore(key, 0, dump, replace=True)
        await on_its_way(redis)

        done = await reshard(redis_url, MANY)

        assert (done.superseded, await contents(client)) == (1, ["one", "two"])


async def on_its_way(redis: Redis, mover: str = "m") -> None:
    """Have a fleet of one shard on its way to many."""
    words = Layout(MANY, 1, (1,)).fields()
    for number in range(MANY):
        await redis.execute_command("HSET", shard_keys(number).fleet, *words, "mover", mover)


async def test_what_is_forgotten_does_not_arrive(redis: Redis, redis_url: str) -> None:
    """A conversation that is on its way when it is forgotten, however long that takes."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        await on_its_way(redis)
        old, new = (Requests().names(MOVES, it)[1] for it in (1, MANY))
        _, last, cursor, *items = await run(redis, lua.pack(old, lua.PackArgs(old.job_id, 0)))

        assert await client.forget(MOVES)

        args = lua.ArriveArgs(text(cursor), b"", "m", items)
        assert await run(redis, lua.arrive(new, args)) == [b"late", b""]
        args_ = lua.LeaveArgs(old.job_id, last, MANY, 1000, "m", text(cursor))
        assert await run(redis, lua.leave(old, args_)) == [b"gone", 0]
        assert await contents(client) == []
        assert [key async for key in redis.scan_iter(f"*{MOVES}*")] == []


@pytest.mark.promise("P1")
async def test_what_is_said_after_forgetting_is_moved(redis: Redis, redis_url: str) -> None:
    """There and back at once: what is left of the forgetting keeps nothing from moving."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        await on_its_way(redis)
        await client.forget(MOVES)
        await talked(redis, client, "two", MANY)
        for shards in (MANY, 1, MANY, 1):
            done = await reshard(redis_url, shards)
            assert done.superseded == 0
            assert await contents(client) == ["two"]


@pytest.mark.promise("P1")
async def test_nothing_leaves_that_has_not_arrived(redis: Redis, redis_url: str) -> None:
    """A stray key in the new shard is no conversation."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        new = Requests().names(MOVES, MANY)[1]
        await redis.set(new.job, "{}")
        await redis.set(new.in_progress, "7 w", px=60_000)

        done = await reshard(redis_url, MANY)

        assert (done.moved, done.superseded, await contents(client)) == (1, 0, ["one"])


@pytest.mark.promise("P1")
async def test_what_is_late_stays(redis: Redis, redis_url: str) -> None:
    """Others are forgotten in the new shard all the time, so nothing arrives."""
    await begin(redis)
    fleet = Requests().names(MOVES, MANY)[1].fleet
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        moving = asyncio.create_task(reshard(redis_url, MANY))
        for n in range(500):
            await redis.execute_command("HSET", fleet, "forgot", n)
        assert await contents(client) == ["one"]

        assert (await asyncio.wait_for(moving, 10)).moved == 1
        assert await contents(client) == ["one"]


async def waiting_mover(redis: Redis, redis_url: str, client: TurnClient) -> asyncio.Task[Progress]:
    """A mover that waits for the turn `two` of a conversation."""
    await talked(redis, client, "one")
    await client.submit(UserMessage(conversation_id=MOVES, turn_id="two", text="two"))
    seen: list[Progress] = []
    moving = asyncio.create_task(reshard(redis_url, MANY, tell=seen.append))
    await wait_until(lambda: seen, "it waits for the conversation")
    return moving


async def test_only_one_mover_may_move(redis: Redis, redis_url: str) -> None:
    """The last one that began; one that was held up meanwhile ends, and changes nothing."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        held = await waiting_mover(redis, redis_url, client)
        other = asyncio.create_task(reshard(redis_url, MANY))
        with pytest.raises(CannotReshard, match="another"):
            await asyncio.wait_for(held, 10)
        await said(redis, MOVES, "two")
        await asyncio.wait_for(other, 10)

        old, new = (Requests().names(MOVES, it)[1] for it in (1, MANY))
        args = lua.ArriveArgs("0-0", b"", "held", [])
        assert await run(redis, lua.arrive(new, args)) == [b"fenced", b""]
        args_ = lua.LeaveArgs(old.job_id, b"two", MANY, 1000, "held", "0-0")
        assert await run(redis, lua.leave(old, args_)) == [b"fenced", 0]
        for how in ("go_on", "follow"):
            late = lua.AnnounceArgs("1 held", how, 0, b"", "1", str(MANY), "")
            answer, _ = await run(redis, lua.announce(lua.FleetKey(new.fleet), late))
            assert text(answer) == "fenced"
        assert await contents(client) == ["one", "two"]


@pytest.mark.promise("P1", "P2")
async def test_who_knows_of_the_way_there_alone_splits_nothing(
    redis: Redis, redis_url: str
) -> None:
    """A producer that was quiet since: on the way back the old shard is another one."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as quiet, TurnClient.connect(redis_url) as client:
        await on_its_way(redis)
        await quiet.submit(UserMessage(conversation_id="other", text="Hi"))
        await said(redis, "other", "Hi", MANY)
        await reshard(redis_url, MANY)
        await client.submit(UserMessage(conversation_id=MOVES, turn_id="one", text="one"))
        moving = asyncio.create_task(reshard(redis_url, 1))  # and waits: the turn has not ended

        async def is_on_its_way_back() -> bool:
            return await redis.hget(shard_keys(0).fleet, "from") == str(MANY).encode()

        await wait_until(is_on_its_way_back, "the way back has begun")
        again = UserMessage(conversation_id=MOVES, turn_id="one", text="one")
        assert (await quiet.submit(again)).status == "duplicate"
        two = await quiet.submit(UserMessage(conversation_id=MOVES, turn_id="two", text="two"))
        assert two.position == 1
        await said(redis, MOVES, "one", MANY)
        await asyncio.wait_for(moving, 10)
        assert await contents(client) == ["one"]


@pytest.mark.parametrize("is_begun_anew", [True, False])
@pytest.mark.promise("P1")
async def test_a_first_shard_that_lost_its_word_is_told_by_the_others(
    redis: Redis, redis_url: str, is_begun_anew: bool
) -> None:
    """Also if a worker has given it a number since; nothing is left where nobody looks."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        await on_its_way(redis, "3 m")
        fleet = shard_keys(0).fleet
        await redis.delete(fleet)
        if is_begun_anew:
            await redis.hset(fleet, "shards", MANY)

        with pytest.raises(CannotReshard, match=f"turnline reshard {MANY}"):
            await reshard(redis_url, 1)
        assert (await reshard(redis_url, MANY)).moved == 1
        assert await contents(client) == ["one"]
        assert (await reshard(redis_url, 1)).moved == 1


@pytest.mark.promise("P4")
async def test_what_a_mover_sends_late_changes_nothing(redis: Redis, redis_url: str) -> None:
    """Not even after its own end."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        moving = await waiting_mover(redis, redis_url, client)
        mover = text(await redis.hget(shard_keys(0).fleet, "mover"))
        old, new = (Requests().names(MOVES, it)[1] for it in (1, MANY))
        copies = [(await redis.dump(key) or b"", 0) for key in old.own[:9]]
        await said(redis, MOVES, "two")
        await asyncio.wait_for(moving, 10)
        await client.forget(MOVES)

        late = lua.ArriveArgs("0-0", b"", mover, [it for pair in copies for it in pair])
        assert await run(redis, lua.arrive(new, late)) == [b"fenced", b""]
        for how in ("go_on", "follow", "end"):
            again = lua.AnnounceArgs(mover, how, 0, b"", str(MANY), "1", "1")
            answer, _ = await run(redis, lua.announce(lua.FleetKey(new.fleet), again))
            assert text(answer) == "fenced"
        assert await contents(client) == []


async def test_of_two_numbers_at_once_one_wins(redis: Redis, redis_url: str) -> None:
    """And all shards agree on it."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        both = (reshard(redis_url, it) for it in (MANY, 3))
        outcomes = await asyncio.gather(*both, return_exceptions=True)

        (done,) = (it for it in outcomes if isinstance(it, Progress))
        assert [type(it) for it in outcomes if it is not done] == [CannotReshard]
        for number in range(done.shards):
            known = await redis.hmget(shard_keys(number).fleet, *FIELDS)
            assert read_layout(known) == Layout(done.shards, 0, (1,))
        assert await contents(client) == ["one"]


async def test_forgetting_looks_again_when_the_shards_change(redis: Redis, redis_url: str) -> None:
    """A client that was held up in the middle."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        homes = client._homes.every_home()
        assert await anext(homes) == 1
        await reshard(redis_url, MANY)
        assert [it async for it in homes] == [MANY, 1]


@pytest.mark.parametrize(
    "word", ["abc", "01", "1_0", "+1", " 1 ", "1.0", "99999", "9" * 23, "-3", "\xff"]
)
@pytest.mark.parametrize("field", FIELDS)
async def test_odd_words_in_the_hash_stop_no_producer(
    redis: Redis, redis_url: str, field: str, word: str
) -> None:
    """What is no number says nothing."""
    await begin(redis)
    for client_is_told in (False, True):
        async with TurnClient.connect(redis_url) as client:
            if client_is_told:
                await client.history("c")
            await redis.hset(shard_keys(0).fleet, field, word.encode("latin-1"))
            async with asyncio.timeout(5):
                await client.submit(UserMessage(conversation_id="c", text="Hi"))
                assert (await client.history("c")).messages == ()
        await begin(redis)


async def test_a_turn_that_waits_stays_until_it_ended(redis: Redis, redis_url: str) -> None:
    """The mover waits for it; what was accepted between two of its steps lets it stay."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
        await client.submit(UserMessage(conversation_id=MOVES, turn_id="two", text="two"))
        seen: list[list[str]] = []

        moving = asyncio.create_task(
            reshard(redis_url, MANY, tell=lambda progress: seen.append([*progress.awaited]))
        )
        await wait_until(lambda: len(seen) > 2, "it waits")
        assert seen[-1] == [MOVES]
        await client.submit(UserMessage(conversation_id=MOVES, turn_id="three", text="three"))
        await said(redis, MOVES, "two")

        assert (await asyncio.wait_for(moving, 10)).moved == 1
        assert await contents(client) == ["one", "two"]


async def test_a_producer_who_knows_nothing_is_refused(redis: Redis, redis_url: str) -> None:
    """One of the version before would begin the conversation again."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
    await reshard(redis_url, MANY)
    old = Requests().names(MOVES)[1]

    assert await redis.type(old.inbox) == b"string"
    assert 0 < await redis.ttl(old.inbox) <= 24 * 3600


async def test_a_wrong_number_of_shards_is_corrected(redis: Redis, redis_url: str) -> None:
    """A message goes where workers look for it, whatever the producer was told."""
    await begin(redis, MANY)
    async with TurnClient.connect(redis_url, shards=5) as client:
        receipts = await client.submit_many(
            [UserMessage(conversation_id=f"c{n}", text="Hi") for n in range(20)]
        )
        with SyncTurnClient.connect(redis_url) as blocking:
            blocking.submit(UserMessage(conversation_id="c0", text="Hi"))

    assert not [it for it in receipts if isinstance(it, Exception)]
    for n in range(20):
        assert await redis.exists(Requests().names(f"c{n}", MANY)[1].inbox)


async def test_replies_of_all_shards_are_consumed(redis: Redis, redis_url: str) -> None:
    """By a consumer that was there before the shards were."""
    await begin(redis)
    streams = [shard_keys(n).reply_prefix + "out" for n in range(MANY)]
    async with TurnClient.connect(redis_url) as client:
        replies = client.replies("out", "group", "me")
        end = TurnCompleted(conversation_id=MOVES, turn_id="one", text="Hi")
        await redis.xadd(streams[0], {"e": encode_event(end)})
        assert (await anext(replies)).turn_id == "one"
        await reshard(redis_url, MANY)
        await client.history(MOVES)
        for stream in streams:
            await redis.xadd(stream, {"e": encode_event(end)})

        async with asyncio.timeout(30):
            assert [(await anext(replies)).turn_id for _ in streams] == ["one"] * MANY


async def test_what_has_to_be_done_before_is_said(redis: Redis, redis_url: str) -> None:
    """Nothing is changed."""
    with pytest.raises(CannotReshard, match="TURNLINE_SHARDS=12"):
        await reshard(redis_url, MANY)
    await begin(redis)
    await redis.zadd(shard_keys(0).workers, {"w": 9e15})
    with pytest.raises(CannotReshard, match="no worker serves shard 1 and 10 others"):
        await reshard(redis_url, MANY)
    assert await redis.hgetall(shard_keys(0).fleet) == {b"shards": b"1"}

    layout = Layout(MANY, 1, (1,))
    await redis.execute_command("HSET", shard_keys(0).fleet, *layout.fields())
    with pytest.raises(CannotReshard, match="turnline reshard 12"):
        await reshard(redis_url, 3)

    await redis.delete(shard_keys(0).workers)
    assert await reshard(redis_url, MANY) == Progress(MANY, 1, is_done=True)
    known = read_layout(await redis.execute_command("HMGET", shard_keys(0).fleet, *FIELDS))
    assert known == Layout(MANY, 0, (1,))
    assert await reshard(redis_url, MANY) == Progress(MANY, 0, is_done=True)


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_mark_in_the_right_place_loses_no_event(
    redis: Redis, redis_url: str, is_gone: bool
) -> None:
    """Gone: the conversation came back, and goes on below it, since another clock was behind."""
    await begin(redis)
    events = Requests().names(MOVES)[1].events
    async with TurnClient.connect(redis_url) as client:
        follower = client.follow(MOVES, after="5-0")
        follower._reading.moved_at, follower._reading.stream = "9-0", events
        if not is_gone:
            await redis.xadd(events, {"moved": MANY}, id="9-0")
        event = TurnStarted(conversation_id=MOVES, turn_id="two")
        await redis.xadd(events, {"e": encode_event(event)}, id="6-0" if is_gone else "10-0")

        assert (await asyncio.wait_for(anext(follower), 10)).turn_id == "two"


async def test_a_server_may_forget_the_scripts_at_any_moment(redis: Redis, redis_url: str) -> None:
    """Also between the teaching of one and its call."""
    await begin(redis)
    async with TurnClient.connect(redis_url) as client:
        await talked(redis, client, "one")
    large = Requests().names(MOVES)[1].steps  # so that it does not come in one piece
    await redis.rpush(large, random.Random(1).randbytes(2_000_000))
    is_over = asyncio.Event()

    async def forget_all() -> None:
        while not is_over.is_set():
            await redis.script_flush()

    flushing = [asyncio.create_task(forget_all()) for _ in range(8)]
    for shards in (MANY, 1) * 2:
        await reshard(redis_url, shards)
    is_over.set()
    await asyncio.gather(*flushing)

    async with TurnClient.connect(redis_url) as client:
        assert await contents(client) == ["one"]
