"""The checker of `turnline chaos` names each broken promise, and nothing where all are kept."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from turnline.contracts import Spend
from turnline.contracts.conversation import AssistantEntry, CallEntry, Totals, Usage, UserEntry
from turnline.contracts.keys import shard_of
from turnline.contracts.layout import Layout
from turnline.contracts.replies import (
    Rating,
    TextDelta,
    TurnAbsorbed,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnRecord,
    TurnStarted,
    encode_event,
)
from turnline.ops.chaos.checker import Violation, check
from turnline.ops.chaos.disturbances import Disturbance
from turnline.ops.chaos.evidence import Evidence, Left, Request
from turnline.ops.chaos.journal import Chat, Sent, Shown
from turnline.ops.chaos.spending import check_spending

USAGE = Usage(prompt_tokens=10, completion_tokens=4, total_tokens=14)
CUT = Usage(completion_tokens=1, total_tokens=1)
STATES = {
    TurnCompleted: "completed",
    TurnFailed: "failed",
    TurnInterrupted: "interrupted",
    TurnAbsorbed: "absorbed",
}


def record(end: Any) -> TurnRecord:
    return TurnRecord(
        state=STATES[type(end)], accepted_at_ms=1, event=msgspec.Raw(encode_event(end))
    )


def completed(n: int, **more: Any) -> TurnCompleted:
    return TurnCompleted(
        **{
            "conversation_id": "c",
            "turn_id": f"c.{n}",
            "text": f"You said “#{n} hi”.",
            "finish_reason": "stop",
            "usage": USAGE,
            **more,
        }
    )


def call(n: int, **more: Any) -> CallEntry:
    fields = {"attempt": 1, "state": "reported", "usage": USAGE, "finish_reason": "stop", **more}
    return CallEntry(call_id=f"c.{n}/{fields['attempt']}/1", turn_id=f"c.{n}", model="m", **fields)


def request(n: int, *, reported: Usage | None = USAGE, tokens_streamed: int = 4) -> Request:
    before = [pair for k in range(n) for pair in (("user", f"#{k} hi"), ("assistant", reply(k)))]
    return Request(
        messages=(*before, ("user", f"#{n} hi")),
        from_ms=1.0,
        outcome="whole",
        tokens_streamed=tokens_streamed,
        reported=reported,
    )


def reply(n: int) -> str:
    return f"You said “#{n} hi”."


def turn_events(n: int) -> list[Any]:
    ids = {"conversation_id": "c", "turn_id": f"c.{n}"}
    return [
        TurnStarted(**ids, worker="worker-1", event_id=f"{n}000-0"),
        TextDelta(**ids, text=reply(n), event_id=f"{n}010-0"),
        msgspec.structs.replace(completed(n), event_id=f"{n}020-0"),
    ]


class World:
    """Two turns of one conversation that went well; tests spoil one thing each."""

    def __init__(self) -> None:
        self.chat = Chat(
            conversation="c",
            sent=[
                Sent(
                    turn=f"c.{n}",
                    kind="user",
                    text=f"#{n} hi",
                    outcome="accepted",
                    accepts=1,
                    begun_ms=n * 1000.0,
                    answered_ms=n * 1000.0 + 1,
                    replies=True,
                )
                for n in range(2)
            ],
            shown=[
                Shown(
                    turn="c.0",
                    by="events",
                    ids=["0000-0", "0010-0", "0020-0"],
                    text=reply(0),
                    ended="TurnCompleted",
                ),
                Shown(turn="c.1", by="text", text=reply(1), ended="text"),
            ],
            followed=[event.event_id for n in range(2) for event in turn_events(n)],
            followed_to_end=True,
        )
        self.left = Left(
            log=("c.0", "c.1"),
            records={f"c.{n}": record(completed(n)) for n in range(2)},
            events=tuple(event for n in range(2) for event in turn_events(n)),
            context=tuple(
                entry
                for n in range(2)
                for entry in (UserEntry(content=f"#{n} hi"), AssistantEntry(content=reply(n)))
            ),
            calls=(call(0), call(1)),
            totals=Totals(turns=2, calls=2, reported_calls=2, usage=USAGE + USAGE),
        )
        self.requests = [request(0), request(1)]
        self.replies = {"c.0": 1, "c.1": 1}
        self.dead: list[tuple[str, str, str]] = []
        self.lives = {"turnline:{s0}:c:c:context": 1_000, "turnline:{s0}:token": -1}
        self.disturbances: list[Disturbance] = []
        self.layout = Layout(1)
        self.spend: list[Spend] = []

    def change(self, **left: Any) -> None:
        """Replace what is left of the conversation."""
        self.left = msgspec.structs.replace(self.left, **left)

    def ask_again(self, **request: Any) -> None:
        """Replace what stands in the model's record of turn 1."""
        self.requests[1] = msgspec.structs.replace(self.requests[1], **request)

    def events(self, *events: Any) -> None:
        """Replace the stream; every reader saw all of it."""
        self.change(events=events)
        self.chat.followed = [event.event_id for event in events]
        self.chat.shown = []

    def again(self, *, worker: str = "worker-2") -> None:
        """Have turn 0 begun a second time, and its first call abandoned."""
        ids = {"conversation_id": "c", "turn_id": "c.0"}
        end = completed(0, attempt=2)
        self.events(
            *turn_events(0)[:2],
            TurnStarted(**ids, worker=worker, attempt=2, event_id="0100-0"),
            TextDelta(**ids, attempt=2, text=reply(0), event_id="0110-0"),
            msgspec.structs.replace(end, event_id="0120-0"),
            *turn_events(1),
        )
        self.change(
            records={**self.left.records, "c.0": record(end)},
            calls=(
                call(0, state="unknown", abandoned=True, usage=Usage(), finish_reason=None),
                call(0, attempt=2),
                call(1),
            ),
            totals=Totals(turns=2, calls=3, reported_calls=2, unknown_calls=1, usage=USAGE + USAGE),
        )
        self.requests = [request(0, reported=None), request(0), request(1)]

    def violations(self) -> list[Violation]:
        evidence = Evidence(
            left={"c": self.left},
            replies=self.replies,
            dead=self.dead,
            lives=self.lives,
            requests={"c": self.requests},
            layout=self.layout,
            spend=self.spend,
        )
        return check([self.chat], evidence, self.disturbances)

    def columns(self) -> set[str]:
        return {violation.column for violation in self.violations()}


@pytest.fixture
def world() -> World:
    return World()


def rate(world: World, *ends: Any, of: str = "c.0") -> None:
    """Have turns 2 and following rate one."""
    for n, end in enumerate(ends, 2):
        its = msgspec.structs.replace(end, turn_id=f"c.{n}", event_id=f"{n}000-0")
        world.chat.sent.append(
            Sent(turn=f"c.{n}", kind="rating", rates=(of, "tone"), outcome="accepted", accepts=1)
        )
        world.change(
            log=(*world.left.log, f"c.{n}"),
            records={**world.left.records, f"c.{n}": record(its)},
        )
        world.events(*world.left.events, its)


def rated(world: World, *by: str) -> None:
    """Have the record of turn 0 show these ratings."""
    ratings = tuple(Rating(name="tone", score=1.0, feedback_id=it) for it in by)
    shown = msgspec.structs.replace(world.left.records["c.0"], feedback=ratings)
    world.change(records={**world.left.records, "c.0": shown})


NOTED = TurnCompleted(conversation_id="c", turn_id="")
UNKNOWN = TurnFailed(conversation_id="c", turn_id="", code="unknown_turn")


@pytest.mark.parametrize(
    ("by", "columns"),
    [(["c.3"], set()), ([], {"lost"}), (["c.2"], {"lost"}), (["c.3", "c.3"], {"lost"})],
)
def test_a_turn_has_the_last_of_its_ratings(world: World, by: list[str], columns: set[str]) -> None:
    """None is lost, or takes the place of a later one, or stands twice."""
    rate(world, NOTED, NOTED)
    rated(world, *by)

    assert world.columns() == columns


def test_a_turn_that_nobody_rated_has_no_rating(world: World) -> None:
    """Whoever it is from."""
    rated(world, "c.1")

    assert world.columns() == {"lost"}


def test_a_rating_fails_if_its_turn_is_not_there(world: World) -> None:
    """Which is no dead letter; of a turn that is there, it does not."""
    rate(world, UNKNOWN, of="gone")
    assert world.violations() == []

    world.chat.sent[-1].rates = ("c.1", "tone")
    assert world.columns() == {"broken"}


def test_nothing_is_said_about_a_run_that_went_well(world: World) -> None:
    """No violation where every promise was kept."""
    assert world.violations() == []


def at(event_id: str, event: Any) -> Any:
    """Give an event its place in the stream."""
    return msgspec.structs.replace(event, event_id=event_id)


def absorb(world: World, *, act: Any) -> None:
    """Have turn 0 absorbed into turn 1."""
    first = TurnAbsorbed(conversation_id="c", turn_id="c.0", into="c.1")
    second = completed(1, text="You said “#0 hi #1 hi”.")
    world.chat.sent[1].act = act
    world.events(
        msgspec.structs.replace(first, event_id="0020-0"),
        msgspec.structs.replace(second, event_id="1020-0"),
    )
    world.change(
        records={"c.0": record(first), "c.1": record(second)},
        context=(UserEntry(content="#0 hi #1 hi"), AssistantEntry(content=second.text)),
        calls=(call(1),),
        totals=Totals(turns=1, calls=1, reported_calls=1, usage=USAGE),
    )
    world.requests = [
        Request(
            messages=(("user", "#0 hi #1 hi"),),
            from_ms=1.0,
            outcome="whole",
            tokens_streamed=4,
            reported=USAGE,
        )
    ]


STRAY = TurnStarted(conversation_id="c", turn_id="c.0", worker="worker-9", event_id="0005-0")
WELL = TextDelta(conversation_id="c", turn_id="c.0", text="Well,", event_id="0010-0")
SPOILT: dict[str, dict[str, Callable[[World], object]]] = {
    "lost, tokens": {
        "an accepted turn has no end: its record still says accepted": lambda w: w.change(
            records={**w.left.records, "c.1": TurnRecord(state="accepted", accepted_at_ms=1)}
        ),
    },
    "lost": {
        "a message is left in the inbox when all is quiet": lambda w: w.change(inbox=1),
        "a turn says completed, and the context has no word of it": lambda w: w.change(
            context=w.left.context[:3]
        ),
    },
    "duplicated": {
        "two terminal events, however often the turn was tried": lambda w: w.events(
            *turn_events(0), at("0030-0", completed(0)), *turn_events(1)
        ),
        "a message was let in twice: its idempotency key was taken for a new one": lambda w: (
            setattr(w.chat.sent[0], "accepts", 2)
        ),
        "a message stands twice in the context": lambda w: w.change(
            context=(*w.left.context, w.left.context[-1])
        ),
    },
    "duplicated, lost": {
        "two entries in the reply stream for one turn, and none for another": lambda w: (
            w.replies.update({"c.0": 2}),
            w.replies.pop("c.1"),
        ),
    },
    "reordered": {
        "the same messages in another order than accepted": lambda w: w.change(
            context=(*w.left.context[2:], *w.left.context[:2])
        ),
        "a message was let in before one that its producer had had an answer for": lambda w: (
            w.change(log=("c.1", "c.0"))
        ),
        "the request of a turn does not hold the context as it stood before": lambda w: w.ask_again(
            messages=(("user", "#1 hi"),)
        ),
    },
    "duplicated, lost, misled": {
        "the terminal event is not the one of the record": lambda w: w.events(
            *turn_events(0), at("1020-0", completed(1, text="other"))
        ),
    },
    "misled": {
        "what the last attempt showed is not the beginning of what was committed": lambda w: (
            w.events(turn_events(0)[0], WELL, turn_events(0)[2], *turn_events(1))
        ),
        "an event follows the end of its turn": lambda w: w.events(
            *turn_events(0), at("0030-0", turn_events(0)[1]), *turn_events(1)
        ),
        "two workers make one attempt: a reader cannot tell their texts apart": lambda w: w.events(
            turn_events(0)[0], STRAY, *turn_events(0)[1:], *turn_events(1)
        ),
        "a reader misses an event": lambda w: w.chat.shown[0].ids.pop(1),
        "a reader sees an event again": lambda w: w.chat.shown[0].ids.append("0020-0"),
        "a reader sees another text": lambda w: setattr(w.chat.shown[1], "text", "x"),
        "a reader sees no end": lambda w: setattr(w.chat.shown[1], "ended", ""),
        "a follower misses an event": lambda w: w.chat.followed.pop(2),
        "a follower sees an event again": lambda w: w.chat.followed.append("1020-0"),
    },
    "tokens": {
        "the totals have less usage than the entries": lambda w: w.change(
            totals=Totals(turns=2, calls=2, reported_calls=2, usage=USAGE)
        ),
        "the totals have more turns than ended": lambda w: w.change(
            totals=msgspec.structs.replace(w.left.totals, turns=3)
        ),
        "a call stands twice in the ledger": lambda w: w.change(calls=(call(0), call(0))),
        "a call is missing in the ledger": lambda w: w.change(calls=(call(0),)),
        "an entry has other usage than its event": lambda w: w.change(
            calls=(call(0), call(1, usage=CUT))
        ),
        "the entry of an answer is marked as abandoned": lambda w: w.change(
            calls=(call(0), call(1, abandoned=True))
        ),
        "usage that was reported is marked as an estimate": lambda w: w.change(
            calls=(call(0), call(1, state="estimated"))
        ),
        "usage on which all agree was never reported by the model": lambda w: w.ask_again(
            reported=CUT
        ),
        "the model was asked once more than the ledger knows": lambda w: w.requests.insert(
            0, request(0, reported=None)
        ),
    },
    "run twice": {
        "a turn was begun again, and nothing had happened to its first worker": lambda w: w.again(),
    },
    "leaked": {
        "a key without expiry is none of the shard's own few": lambda w: w.lives.update(
            {"turnline:{s0}:c:c:context": -1}
        ),
        "a lease, steps or a mark of a running turn are left": lambda w: w.change(
            unfinished=("steps",)
        ),
        "a shard where the conversation was once has more than marks of it": lambda w: w.change(
            strays=("turnline:{s0}:c:c:state",)
        ),
    },
    "": {
        "nothing is spoilt: merged messages stand as one where their turn is": lambda w: absorb(
            w, act="rollback"
        ),
    },
    "broken": {
        "a message was absorbed that is no fragment and not rolled back": lambda w: absorb(
            w, act=""
        ),
    },
}


@pytest.mark.parametrize(("columns", "fault"), [(c, f) for c in SPOILT for f in SPOILT[c]])
def test_each_fault_is_named(world: World, columns: str, fault: str) -> None:
    """One thing is spoilt, and the columns of the promises that it breaks have entries."""
    SPOILT[columns][fault](world)

    assert ", ".join(sorted(world.columns())) == columns


def test_a_missing_terminal_event_is_a_loss(world: World) -> None:
    """The record has an end, the stream does not."""
    world.events(*turn_events(0), *turn_events(1)[:2])

    assert [(it.column, it.turn) for it in world.violations()] == [("lost", "c.1")]


def test_a_reply_to_another_message_misleads(world: World) -> None:
    """The reply quotes what was asked."""
    other = completed(1, text=reply(0))
    world.change(
        records={**world.left.records, "c.1": record(other)},
        context=(*world.left.context[:3], AssistantEntry(content=reply(0))),
    )
    world.events(*turn_events(0), msgspec.structs.replace(other, event_id="1020-0"))

    assert world.columns() == {"misled"}


def test_an_answers_usage_that_the_model_reported_and_the_ledger_missed_is_named(
    world: World,
) -> None:
    """But not where only an earlier attempt, whose worker died, was told it."""
    world.again()
    world.disturbances.append(Disturbance(kind="kill", worker="worker-1", from_ms=50, to_ms=60))
    answer = call(0, attempt=2, state="estimated", usage=CUT)
    end = completed(0, attempt=2, usage=CUT)
    world.events(*(end if e.event_id == "0120-0" else e for e in world.left.events))
    world.change(
        records={**world.left.records, "c.0": record(end)},
        calls=(world.left.calls[0], answer, world.left.calls[2]),
        totals=Totals(
            turns=2,
            calls=3,
            reported_calls=1,
            estimated_calls=1,
            unknown_calls=1,
            usage=USAGE + CUT,
        ),
    )
    first, second, other = world.requests
    told = msgspec.structs.replace(first, reported=USAGE)
    cut = msgspec.structs.replace(second, reported=None, from_ms=first.from_ms + 1)
    world.requests = [told, cut, other]
    assert "tokens" not in world.columns()
    world.requests = [first, msgspec.structs.replace(cut, reported=USAGE), other]

    assert world.columns() == {"tokens"}


def test_a_call_of_an_abandoned_attempt_counted_as_the_answers_is_named(world: World) -> None:
    """Even where totals and event agree with it."""
    world.again()
    world.disturbances.append(Disturbance(kind="kill", worker="worker-1", from_ms=50, to_ms=60))
    assert world.violations() == []
    end = completed(0, attempt=2, usage=USAGE + CUT)
    first = call(0, state="estimated", usage=CUT, finish_reason=None)
    world.requests[0] = request(0, reported=None, tokens_streamed=1)
    world.events(*(end if e.event_id == "0120-0" else e for e in world.left.events))
    world.change(
        records={**world.left.records, "c.0": record(end)},
        calls=(first, *world.left.calls[1:]),
        totals=Totals(
            turns=2, calls=3, reported_calls=2, estimated_calls=1, usage=USAGE + USAGE + CUT
        ),
    )

    assert world.columns() == {"tokens"}


def test_spend_that_is_not_the_ledgers_is_named(world: World) -> None:
    """Too much, too little, of another model or tenant; nobody looks where tenants are not kept."""
    world.spend = [Spend(tenant="acme", agent="", model="m", calls=2, usage=USAGE + USAGE)]
    assert world.violations() == []
    world.chat.tenant = "acme"
    assert {it.what for it in world.violations()} == {
        "call c.0/1/1 is entered as one of ''",
        "call c.1/1/1 is entered as one of ''",
    }
    world.change(calls=tuple(call(n, tenant="acme") for n in range(2)))
    assert world.violations() == []

    (good,) = world.spend
    for bad in (
        {"calls": 3},
        {"usage": USAGE},
        {"usage": USAGE + USAGE + CUT},
        {"model": "n"},
        {"agent": "a"},
        {"tenant": "globex"},
    ):
        world.spend = [msgspec.structs.replace(good, **bad)]
        assert world.columns() == {"tokens"}, bad
    world.spend = []
    assert world.columns() == {"tokens"}


def test_nobody_spends_more_than_the_model_said(world: World) -> None:
    """Also where the ledgers are gone."""
    costs = msgspec.structs.replace(USAGE, cost_usd_ticks=5)
    world.chat = Chat(conversation="c", tenant="acme", forgotten=True)
    world.change(**{it: getattr(Left(), it) for it in Left.__struct_fields__})
    world.lives, world.replies = {}, {}
    world.requests = [request(0, reported=costs)]
    world.spend = [Spend(tenant="acme", agent="", model="m", calls=1, usage=costs)]
    assert world.violations() == []

    world.spend *= 2

    assert [it.what for it in world.violations()] == ["10 ticks spent, the model told of 5"]


def test_a_third_call_that_ends_in_the_same_unusable_reply_is_named(world: World) -> None:
    """Two are allowed, and any number of refusals."""
    first = world.left.calls
    vain = [
        call(n, state="estimated", usage=Usage(), abandoned=True, error="malformed_stream")
        for n in (0, 0, 0)
    ]
    found = {
        times: [what for _, what in check_spending(Left(calls=(*vain[:times], *first)), ())]
        for times in (2, 3)
    }

    assert not any("ended as malformed_stream" in what for what in found[2])
    assert any("3 calls ended as malformed_stream" in what for what in found[3])


@pytest.mark.parametrize(("most", "is_passed"), [(5, True), (4, False)])
def test_a_turn_that_passed_its_budget_is_named(most: int, is_passed: bool) -> None:
    """By more than one call, whatever the clocks of its workers say."""
    used = Usage(total_tokens=5)
    calls = [
        call(0, attempt=2, usage=used, started_at_ms=1),
        call(0, attempt=1, usage=Usage(total_tokens=4), started_at_ms=2),
    ]

    found = [what for _, what in check_spending(Left(calls=tuple(calls)), (), most)]

    assert any("the budget is" in what for what in found) is not is_passed


@pytest.mark.parametrize(
    ("kind", "worker", "from_ms", "is_reason"),
    [
        ("kill", "worker-1", 50.0, True),
        ("kill", "worker-2", 50.0, False),
        ("kill", "worker-1", 5_000.0, False),
        ("redis-kill", "", 50.0, True),
        ("flush", "", 50.0, False),
        ("term", "worker-1", 50.0, False),
        ("term", "worker-1", -10_000.0, True),
    ],
)
def test_only_what_happened_to_its_worker_explains_another_attempt(
    world: World, kind: Any, worker: str, from_ms: float, *, is_reason: bool
) -> None:
    """SIGTERM is a reason only when the grace period is over."""
    world.again()
    world.disturbances.append(
        Disturbance(kind=kind, worker=worker, from_ms=from_ms, to_ms=from_ms + 11_000)
    )

    assert world.columns() == (set() if is_reason else {"run twice"})


@pytest.mark.parametrize("number", [1, 48])
def test_what_happened_to_a_shard_that_it_was_in_explains_another_attempt(
    world: World, number: int
) -> None:
    """Of a fleet that was resharded; other shards explain nothing."""
    world.again()
    world.layout = Layout(48, 0, (1,))
    own, other = shard_of("c", number), 47 - shard_of("c", 48)
    cut = Disturbance(kind="cut", from_ms=50, to_ms=60, shards=frozenset({other}))
    world.disturbances.append(cut)
    assert world.columns() == {"run twice"}

    world.disturbances.append(msgspec.structs.replace(cut, shards=frozenset({own})))

    assert world.columns() == set()


def test_any_trace_of_a_forgotten_conversation_leaks(world: World) -> None:
    """Its keys, its replies, its dead letters; the rest of it is not looked at."""
    world.chat.forgotten = True
    world.dead = [("c", "c.0", "safety")]
    world.change(inbox=7)

    assert [violation.column for violation in world.violations()] == ["leaked"] * 3


def test_failures_are_dead_letters_and_explained(world: World) -> None:
    """Once each; a failure that no fault explains is a defect."""
    end = TurnFailed(conversation_id="c", turn_id="c.1", code="safety")
    world.events(*turn_events(0), msgspec.structs.replace(end, event_id="1020-0"))
    world.change(
        records={**world.left.records, "c.1": record(end)},
        context=world.left.context[:2],
        calls=(call(0), call(1, state="unknown", abandoned=True, usage=Usage())),
        totals=Totals(turns=2, calls=2, reported_calls=1, unknown_calls=1, usage=USAGE),
    )
    world.requests[1] = request(1, reported=None)
    assert world.columns() == {"lost"}
    world.dead = [("c", "c.1", "safety")]
    assert world.violations() == []
    unexplained = msgspec.structs.replace(end, code="defect")
    world.change(records={**world.left.records, "c.1": record(unexplained)})
    world.events(*turn_events(0), msgspec.structs.replace(unexplained, event_id="1020-0"))

    assert world.columns() == {"broken"}


@pytest.mark.parametrize(
    ("faults", "columns"),
    [((), {"broken"}), (("context-length",), {"broken"}), (("context-length", "fin"), set[str]())],
)
def test_a_refusal_whose_words_were_cut_off_is_explained(
    world: World, faults: tuple[str, ...], columns: set[str]
) -> None:
    """One that came whole has its own code."""
    end = TurnFailed(conversation_id="c", turn_id="c.1", code="bad_request")
    world.events(*turn_events(0), msgspec.structs.replace(end, event_id="1020-0"))
    world.change(
        records={**world.left.records, "c.1": record(end)},
        context=world.left.context[:2],
        calls=(call(0), call(1, state="unknown", abandoned=True, usage=Usage())),
        totals=Totals(turns=2, calls=2, reported_calls=1, unknown_calls=1, usage=USAGE),
    )
    world.requests[1] = msgspec.structs.replace(request(1, reported=None), faults=faults)
    world.dead = [("c", "c.1", "bad_request")]

    assert world.columns() == columns


def test_what_a_failed_turn_had_absorbed_is_a_dead_letter_too(world: World) -> None:
    """Its words are in no context either."""
    absorb(world, act="rollback")
    end = TurnFailed(conversation_id="c", turn_id="c.1", code="safety")
    world.events(world.left.events[0], msgspec.structs.replace(end, event_id="1020-0"))
    world.change(
        records={**world.left.records, "c.1": record(end)},
        context=(),
        calls=(call(1, state="unknown", abandoned=True, usage=Usage()),),
        totals=Totals(turns=1, calls=1, unknown_calls=1),
    )
    world.requests[0] = msgspec.structs.replace(world.requests[0], reported=None)
    world.dead = [("c", "c.1", "safety")]
    assert world.columns() == {"lost"}
    world.dead.append(("c", "c.0", "safety"))

    assert world.violations() == []


def test_a_turn_interrupted_by_nobody_is_named(world: World) -> None:
    """An interrupt was accepted behind every interrupted turn."""
    end = TurnInterrupted(conversation_id="c", turn_id="c.1", text=reply(1), usage=USAGE)
    world.change(records={**world.left.records, "c.1": record(end)})
    world.events(*turn_events(0), msgspec.structs.replace(end, event_id="1020-0"))

    assert world.columns() == {"broken"}
