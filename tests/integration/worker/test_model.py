"""Queue and store scripts against a plain model of the promises, in any order of events.

Hypothesis plays producers, workers, clocks, crashes and expiries over a few conversations on a real
server and shrinks what goes wrong. The model knows, for each conversation, what was accepted, what
is delayed, what is committed, and whose lease counts.
"""

import asyncio
import itertools
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, NamedTuple, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from redis.asyncio import Redis

from tests.support.driving import SHARD
from turnline.contracts import ConversationBusy, TurnClient, UserMessage
from turnline.contracts.conversation import CallEntry, Usage
from turnline.contracts.keys import conversation_keys, conversation_of
from turnline.contracts.opening import open_servers
from turnline.contracts.protocol import Limits
from turnline.contracts.replies import TurnCompleted, TurnRecord
from turnline.contracts.routed import RoutedRedis
from turnline.contracts.scripts import run, text
from turnline.ops.embedded import EmbeddedRedis
from turnline.worker.batching import Pipelines
from turnline.worker.effects import ConversationSnapshot, Effects
from turnline.worker.errors import LeaseLost
from turnline.worker.lease import Lease
from turnline.worker.outcome import Done, Parked
from turnline.worker.queue.lua import claim, release, renew
from turnline.worker.store.cache import ContextCache
from turnline.worker.store.conversations import Conversations

T = TypeVar("T")
CONVERSATIONS = ("a", "b")
WORKERS = (0, 1, 2)
LONG_MS = 2**40
"""Half the time since the Unix epoch, which passes at once."""
conversations = st.sampled_from(CONVERSATIONS)
workers = st.sampled_from(WORKERS)


class Told:
    """What the model knows of one conversation."""

    def __init__(self) -> None:
        self.inbox: list[str] = []
        self.due: list[str] = []
        """Delayed messages whose time has come, while nobody has looked."""
        self.later: list[tuple[int, str]] = []
        """When each other one is due, ms, and its turn; in this order."""
        self.context: list[str] = []
        self.accepted: set[str] = set()
        self.holder: str | None = None
        """Value of the lease that counts."""
        self.tokens = 0
        self.spend = 0
        self.abandoned = 0
        self.open_call = False

    def look(self) -> None:
        """Put what is due into the inbox."""
        self.inbox += self.due
        self.due = []


class View(NamedTuple):
    """What a load has to bring: the conversation as it was when the server made the reply."""

    context: list[str]
    inbox: list[str]
    abandoned: int


class Held:
    """What a worker believes to hold: perhaps wrongly."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.prefetched: View | None = None
        """What a load that travelled with the claim brought, until it is used."""
        self.loaded: ConversationSnapshot | None = None


class QueueAndStore(RuleBasedStateMachine):
    """Producers, workers and accidents."""

    server: ClassVar[EmbeddedRedis]
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        url = self.server.url_of(next(self.numbers) % 512)
        self.redis = Redis.from_url(url)
        servers = open_servers(url)
        self.raw: Any = RoutedRedis(servers)
        self.pipelines = Pipelines(servers)
        self.do(self.redis.flushdb())
        self.client = TurnClient(self.raw, limits=Limits(queue_age_s=1e10))  # due since 0 here
        self.stores = [
            Conversations(self.pipelines.of(SHARD.tag), SHARD, cache=ContextCache(4096 * worker))
            for worker in WORKERS
        ]
        self.model = {name: Told() for name in CONVERSATIONS}
        self.held: dict[int, Held] = {}
        self.ids = itertools.count()

    def do(self, awaitable: Awaitable[T]) -> T:
        async def main() -> T:
            return await awaitable

        return self.loop.run_until_complete(main())

    def do_in_loop(self, make: Callable[[], Awaitable[T]]) -> T:
        async def main() -> T:
            return await make()

        return self.loop.run_until_complete(main())

    def teardown(self) -> None:
        self.do(self.redis.aclose())
        self.do(self.pipelines.close())
        self.do(self.raw.aclose())
        self.loop.close()

    # -- producers ------------------------------------------------------------------------------

    @rule(
        name=conversations,
        policies=st.lists(
            st.sampled_from(["enqueue", "interrupt", "rollback", "reject"]), min_size=1, max_size=3
        ),
    )
    def submit(self, name: str, policies: list[Any]) -> None:
        for when_busy in policies:
            self._submit(name, when_busy)

    def _submit(self, name: str, when_busy: Any) -> None:
        told = self.model[name]
        turn_id = f"t{next(self.ids)}"
        message = UserMessage(
            conversation_id=name, turn_id=turn_id, text=turn_id, when_busy=when_busy
        )
        busy = bool(told.inbox or told.due) or told.holder is not None
        try:
            receipt = self.do(self.client.submit(message))
        except ConversationBusy:
            assert when_busy == "reject"
            assert busy
            return
        assert not (when_busy == "reject" and busy)
        assert receipt.accepted
        told.look()
        assert receipt.position == len(told.inbox)
        told.inbox.append(turn_id)
        told.accepted.add(turn_id)
        again = self.do(self.client.submit(message))
        assert not again.accepted

    @rule(name=conversations, hours=st.integers(1, 3))
    def submit_later(self, name: str, hours: int) -> None:
        told = self.model[name]
        turn_id = f"t{next(self.ids)}"
        at_ms = int(time.time() * 1000) + hours * 3_600_000
        message = UserMessage(
            conversation_id=name, turn_id=turn_id, text=turn_id, deliver_at_ms=at_ms
        )
        receipt = self.do(self.client.submit(message))
        assert receipt.accepted
        told.look()
        place = bisect_right(told.later, at_ms, key=lambda it: it[0])
        assert receipt.position == len(told.inbox) + place
        told.later.insert(place, (at_ms, turn_id))
        told.accepted.add(turn_id)
        again = self.do(self.client.submit(message))
        assert not again.accepted

    @rule(name=conversations, count=st.integers(1, 3))
    def time_passes(self, name: str, count: int) -> None:
        """So many delayed messages come to their time."""
        told, keys = self.model[name], conversation_keys(SHARD.tag, name)
        coming, told.later = told.later[:count], told.later[count:]
        if coming:
            members = self.do(self.redis.zrange(keys.later, 0, -1))
            for member in members[len(told.due) : len(told.due) + len(coming)]:
                self.do(self.redis.zincrby(keys.later, -LONG_MS, member))
            told.due += [turn_id for _, turn_id in coming]
            if told.holder is None:
                self.do(self.redis.zadd(SHARD.queue, {keys.job_id: 0}, xx=True))

    @rule(name=conversations, really=st.integers(0, 4))
    def forget(self, name: str, really: int) -> None:
        if really:
            return  # a rare event, else nothing else ever happens
        self.do(self.client.forget(name))
        self.model[name] = Told()

    # -- workers --------------------------------------------------------------------------------

    @rule(
        worker=workers,
        loads=st.sampled_from([True, True, False]),
        hint=st.one_of(st.none(), conversations),
    )
    def claim(self, worker: int, loads: bool, hint: str | None = None) -> None:
        due = self._due()
        if hint is not None and (self.model[hint].holder or "").endswith(f" w{worker}"):
            hint = None  # a worker does not ask for what it holds
        call = claim(SHARD, 1, 3_600_000, f"w{worker}")
        _, _, _, *items = self.do(run(self.raw, call))
        assert bool(items) == bool(due)
        early = None if hint is None else self.do(self._load_early(worker, hint))
        if items:
            name = conversation_of(text(items[0]), SHARD.tag)
            assert name in due
            lease = Lease(SHARD.tag, name, text(items[1]))
            held = self.held[worker] = Held(lease)
            told = self.model[name]
            told.holder = lease.value
            if name == hint:
                lease.prefetched, held.prefetched = early, _begin(told)
            if loads:
                self._load(worker)

    def _due(self) -> list[str]:
        """Return the conversations that wait for a worker."""
        return [
            name
            for name, told in self.model.items()
            if (told.inbox or told.due) and told.holder is None
        ]

    @rule(
        worker=workers,
        other=workers,
        accident=st.sampled_from(["none", "expire", "expire and redo", "crash", "forget"]),
        strikes_after=st.sampled_from(["claim", "load", "call", "commit"]),
        keep_lease=st.booleans(),
    )
    def work(
        self, worker: int, other: int, accident: str, strikes_after: str, keep_lease: bool
    ) -> None:
        """Claim, load, call, commit: with an accident somewhere in between."""
        self.claim(worker, loads=False)
        if worker not in self.held:
            return
        name = self.held[worker].lease.conversation_id
        for stage in ("claim", "load", "call", "commit"):
            held = self.held.get(worker)
            if held is None:
                return
            match stage:
                case "load":
                    self._load(worker)
                case "call" if held.loaded:
                    self._call_model(worker)
                case "commit" if held.loaded and held.loaded.entries:
                    self._commit(worker, keep_lease=keep_lease, rewrite=False)
                case _:
                    pass
            if stage == strikes_after:
                self._strike(accident, worker, other, name)

    def _strike(self, accident: str, worker: int, other: int, name: str) -> None:
        match accident:
            case "crash":
                self.held.pop(worker, None)
            case "forget":
                self.do(self.client.forget(name))
                self.model[name] = Told()
            case "expire" | "expire and redo":
                self._expire(name)
                if accident == "expire and redo" and other != worker:
                    self.claim(other, loads=True)
                    held = self.held.get(other)
                    if held is not None and held.loaded and held.loaded.entries:
                        self._commit(other, keep_lease=True, rewrite=False)
            case _:
                pass

    async def _load_early(self, worker: int, name: str) -> object:
        """As the queue does right behind a claim, whatever that brought."""
        early: Any = self.stores[worker].prefetch(name, f"w{worker}")
        await early.reply
        return early

    def _counts(self, worker: int) -> bool:
        lease = self.held[worker].lease
        return self.model[lease.conversation_id].holder == lease.value

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def load(self, data: Any) -> None:
        self._load(data.draw(st.sampled_from(sorted(self.held))))

    def _load(self, worker: int) -> None:
        held, counts = self.held[worker], self._counts(worker)
        view, held.prefetched = held.prefetched, None
        try:
            held.loaded = self.do_in_loop(lambda: self.stores[worker].load(held.lease))
        except LeaseLost:
            assert view is None
            assert not counts
            del self.held[worker]
            return
        if view is None:
            assert counts
            view = _begin(self.model[held.lease.conversation_id])
        assert [m.decode() for m in held.loaded.messages] == view.context
        assert [entry.turn_id for entry in held.loaded.entries] == view.inbox
        kinds = Counter(step[:1] for step in held.loaded.steps)
        assert (kinds[b"c"], kinds[b"l"]) == (view.abandoned, held.loaded.crashes)

    @precondition(lambda self: any(h.loaded for h in self.held.values()))
    @rule(data=st.data())
    def call_model(self, data: Any) -> None:
        loaded = sorted(w for w, h in self.held.items() if h.loaded)
        self._call_model(data.draw(st.sampled_from(loaded)))

    def _call_model(self, worker: int) -> None:
        held, counts = self.held[worker], self._counts(worker)
        told = self.model[held.lease.conversation_id]
        entry = CallEntry(
            call_id="x", turn_id="x", attempt=1, model="m", state="unknown", abandoned=True
        )
        if told.open_call and counts:
            return  # one call at a time
        try:
            self.do_in_loop(
                lambda: self.stores[worker].emit(held.lease, [b"{}"], head="", batch=1, call=entry)
            )
        except LeaseLost:
            assert not counts
            del self.held[worker]
            return
        assert counts
        told.open_call = True

    @precondition(lambda self: any(h.loaded and h.loaded.entries for h in self.held.values()))
    @rule(data=st.data(), keep_lease=st.booleans(), rewrite=st.booleans())
    def commit(self, data: Any, keep_lease: bool, rewrite: bool) -> None:
        ready = sorted(w for w, h in self.held.items() if h.loaded and h.loaded.entries)
        self._commit(data.draw(st.sampled_from(ready)), keep_lease=keep_lease, rewrite=rewrite)

    def _commit(self, worker: int, *, keep_lease: bool, rewrite: bool) -> None:
        held, counts = self.held[worker], self._counts(worker)
        assert held.loaded is not None
        name = held.lease.conversation_id
        told = self.model[name]
        entry = held.loaded.entries[0]
        turn_id = entry.turn_id
        assert turn_id is not None
        earlier = held.loaded.messages if rewrite else []
        added = [b'"%s"' % turn_id.encode(), b'"re:%s"' % turn_id.encode()]
        ending = TurnCompleted(conversation_id=name, turn_id=turn_id, text=f"re:{turn_id}")
        left = [_abandoned() for step in held.loaded.steps if step[:1] == b"c"]
        spent = CallEntry(
            call_id="y",
            turn_id=turn_id,
            attempt=1,
            model="m",
            state="reported",
            usage=Usage(total_tokens=7),
        )
        effects = Effects(
            turn_id=turn_id,
            entries=[entry.entry_id],
            messages=[*earlier, *added],
            rewrite=rewrite,
            calls=[*left, spent],
            turns=1,
            events=[ending],
            records=[(turn_id, TurnRecord(state="completed", accepted_at_ms=1))],
        )
        try:
            done = self.do_in_loop(
                lambda: self.stores[worker].commit(held.lease, effects, keep_lease=keep_lease)
            )
        except LeaseLost:
            assert not counts
            del self.held[worker]
            return
        if done.outcome == "duplicate":
            assert turn_id not in told.inbox
            held.loaded = None
            return
        assert counts
        same = Lease(SHARD.tag, name, held.lease.value)  # as after a lost reply
        again = self.do_in_loop(
            lambda: self.stores[worker].commit(same, effects, keep_lease=keep_lease)
        )
        assert again.outcome == "duplicate"
        assert held.lease.released == (done.outcome == "released")
        assert told.inbox[0] == turn_id
        told.inbox.pop(0)
        told.look()
        told.context += [f'"{turn_id}"', f'"re:{turn_id}"']
        told.tokens += 7
        told.spend += 1 + len(left)
        told.abandoned = 0
        told.open_call = False
        assert done.length == len(told.context)
        if done.outcome == "committed":
            assert keep_lease
            assert not self._due()  # whoever waits goes first
            assert [e.turn_id for e in done.entries] == told.inbox
            held.loaded = None
        else:
            assert not keep_lease or not told.inbox or self._due()
            told.holder = None
            del self.held[worker]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), defer=st.sampled_from([0, 3_600_000]))
    def release(self, data: Any, defer: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        held, counts = self.held.pop(worker), self._counts(worker) if worker in self.held else None
        lease = held.lease
        told = self.model[lease.conversation_id]
        counts = told.holder == lease.value
        outcome = Parked(defer, "backoff") if defer else Done()
        word, waiting = self.do(run(self.raw, release(lease, outcome)))
        assert (word == b"fenced") == (not counts)
        if counts:
            told.holder = None
            told.look()
            assert waiting == len(told.inbox)
            assert (word == b"later") == bool(told.later and not told.inbox)
            if defer and told.inbox:  # the deferral is over at once, for the model's sake
                self.do(self.redis.zadd(SHARD.queue, {lease.keys.job_id: 0}))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def renew(self, data: Any) -> None:
        worker = data.draw(st.sampled_from(sorted(self.held)))
        lease, counts = self.held[worker].lease, self._counts(worker)
        held = [(lease.keys.job_id, lease.value)]
        call = renew(SHARD, f"w{worker}", held, lease_s=3_600, about=b"{}")
        _, renewed, *lost = self.do(run(self.raw, call))
        assert (renewed == 1, bool(lost)) == (counts, not counts)

    # -- accidents ------------------------------------------------------------------------------

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def crash(self, data: Any) -> None:
        """The process is gone; its lease goes on until it ends."""
        del self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @rule(name=conversations)
    def expire(self, name: str) -> None:
        """A lease ends, whether or not its holder lives."""
        self._expire(name)

    def _expire(self, name: str) -> None:
        told, keys = self.model[name], conversation_keys(SHARD.tag, name)
        if told.holder is not None:
            self.do(self.redis.delete(keys.in_progress))
            self.do(self.redis.zadd(SHARD.queue, {keys.job_id: 0}, xx=True))
            told.holder = None

    @rule()
    def flush_scripts(self) -> None:
        self.do(self.redis.script_flush())

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def promises_hold(self) -> None:
        for name, told in self.model.items():
            keys = conversation_keys(SHARD.tag, name)
            context = self.do(self.redis.lrange(keys.context, 0, -1))
            assert [m.decode() for m in context] == told.context
            inbox = self.do(self.redis.xrange(keys.inbox))
            assert [fields[b"t"].decode() for _, fields in inbox] == told.inbox
            delayed = self.do(self.redis.zrange(keys.later, 0, -1))
            expected = told.due + [turn_id for _, turn_id in told.later]
            assert [member.split()[1].decode() for member in delayed] == expected
            due_ms = self.do(self.redis.zscore(SHARD.queue, keys.job_id))
            assert due_ms is not None or not (told.inbox or delayed), "accepted and stranded"
            if told.holder is None and told.later and not (told.inbox or told.due):
                assert due_ms == told.later[0][0]
            if told.holder is not None:
                holder = self.do(self.redis.get(keys.in_progress))
                assert holder is not None
                assert holder.decode() == told.holder
            totals = self.do(self.client.usage(name))
            assert totals.usage.total_tokens == told.tokens
            assert totals.calls == told.spend


def _begin(told: Told) -> View:
    """Begin an attempt: a call that an earlier one left open is now abandoned."""
    told.look()
    told.abandoned += told.open_call
    told.open_call = False
    return View([*told.context], [*told.inbox], told.abandoned)


def _abandoned() -> CallEntry:
    return CallEntry(
        call_id="x", turn_id="x", attempt=1, model="m", state="unknown", abandoned=True
    )


@pytest.fixture(scope="module")
def _server() -> Iterator[None]:
    with EmbeddedRedis(databases=512) as server:
        QueueAndStore.server = server
        yield


TestQueueAndStore = QueueAndStore.TestCase
TestQueueAndStore.settings = settings(
    max_examples=settings().max_examples // 2, stateful_step_count=40, deadline=None
)
TestQueueAndStore = pytest.mark.promise("P1", "P2", "P3", "P4", "P7")(
    pytest.mark.timeout(900)(pytest.mark.usefixtures("_server")(TestQueueAndStore))
)  # for --hypothesis-profile=long
