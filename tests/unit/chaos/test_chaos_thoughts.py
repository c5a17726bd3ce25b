"""The checker of `turnline chaos` names reasoning that the model did not get back, and why not."""

from typing import Any

import msgspec
import pytest

from turnline.contracts.conversation import (
    AssistantEntry,
    CallEntry,
    PlacedItem,
    ReplyItems,
    UserEntry,
)
from turnline.contracts.replies import TurnAbsorbed, TurnCompleted, TurnRecord, encode_event
from turnline.ops.chaos.evidence import Left, Request
from turnline.ops.chaos.thoughts import Answered, check_thoughts, repairs
from turnline.ops.simulator.request_ledger import Continuity

THOUGHTS = [
    b'{"type":"reasoning","summary":[],"encrypted_content":"%d"}' % number for number in range(3)
]


def said(role: str, number: int) -> bytes:
    return b'{"role":"%b","content":"%d"}' % (role.encode(), number)


def absorbed(turn: str, into: str) -> TurnRecord:
    end = TurnAbsorbed(conversation_id="c", turn_id=turn, into=into)
    return TurnRecord(state="absorbed", accepted_at_ms=1, event=msgspec.Raw(encode_event(end)))


class World:
    """Three turns with a thought each, all well; tests spoil one thing."""

    def __init__(self) -> None:
        context: list[Any] = []
        for number, thought in enumerate(THOUGHTS):
            placed = PlacedItem(item=msgspec.Raw(thought))
            items = ReplyItems(model="grok", items=(placed,))
            context += [
                UserEntry(content=f"{number}"),
                AssistantEntry(content=f"{number}", reply_items=items),
            ]
        self.left = Left(context=tuple(context))
        self.requests = [
            Request(
                messages=(("user", f"{number}"),),
                seq=number + 1,
                wire="responses",
                items=(*self.before(number), said("user", number)),
                continuity=Continuity(previous_seq=number or None),
                from_ms=1.0,
                outcome="whole",
                tokens_streamed=4,
                reported=None,
            )
            for number in range(3)
        ]

    @staticmethod
    def before(number: int) -> list[bytes]:
        return [
            it for n in range(number) for it in (said("user", n), THOUGHTS[n], said("assistant", n))
        ]

    def change(self, number: int, **fields: Any) -> None:
        self.requests[number] = msgspec.structs.replace(self.requests[number], **fields)

    def refuse(self, number: int) -> None:
        """Enter a call whose earlier reasoning was refused, and a request without any."""
        call = CallEntry(
            call_id="x",
            turn_id=f"t{number}",
            attempt=1,
            model="grok",
            state="unknown",
            error="reasoning_refused",
        )
        self.left = msgspec.structs.replace(self.left, calls=(call,))
        bare = tuple(it for it in self.requests[number].items if b'"role"' in it)
        self.change(number, items=bare, continuity=Continuity(previous_seq=1, lost_reasoning=1))

    def forget(self, number: int) -> None:
        """Take the thought of an answer out of the context, and out of the requests behind it."""
        context = list(self.left.context)
        context[2 * number + 1] = msgspec.structs.replace(context[2 * number + 1], reply_items=None)
        self.left = msgspec.structs.replace(self.left, context=tuple(context))
        for later in range(number + 1, 3):
            items = self.requests[later].items
            self.change(later, items=tuple(it for it in items if it != THOUGHTS[number]))

    def columns(self) -> list[str]:
        answered = [
            Answered(
                f"t{n}", TurnCompleted(conversation_id="c", turn_id=f"t{n}"), request, 2 * n + 1
            )
            for n, request in enumerate(self.requests)
        ]
        return sorted({column for column, _, _ in check_thoughts(self.left, answered)})


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_said_where_all_came_back(world: World) -> None:
    """Thoughts stand where they stood, and each request begins with the one before."""
    assert world.columns() == []


def test_a_thought_that_is_not_sent_is_named(world: World) -> None:
    """Left out, changed, or in another order."""
    first, thought, *rest = world.requests[2].items
    for items in (
        (first, *rest),
        (first, thought.replace(b'"0"', b'"9"'), *rest),
        (first, *rest[:1], thought, *rest[1:]),
    ):
        world.change(2, items=items)
        assert "lost reasoning" in world.columns()


def test_a_thought_that_the_model_misses_is_named(world: World) -> None:
    """What was committed is sent, but that is not what the model gave."""
    world.change(2, continuity=Continuity(previous_seq=2, lost_reasoning=1))

    assert world.columns() == ["lost reasoning"]


def test_thoughts_of_uncommitted_answers_may_be_lost(world: World) -> None:
    """The worker died before the commit; or the model never sealed them."""
    world.change(2, continuity=Continuity(previous_seq=77, lost_reasoning=1))
    assert world.columns() == []
    world.change(2, continuity=Continuity(previous_seq=2, lost_reasoning=1))
    world.change(1, faults=("encrypted",))

    assert world.columns() == []


def test_a_request_that_does_not_begin_with_the_one_before_is_named(world: World) -> None:
    """So is one with other tools; requests on the other wire are compared among themselves."""
    world.change(1, items=(b'{"role":"system","content":"x"}', *world.requests[1].items))
    assert "broken prefix" in world.columns()
    world = World()
    world.change(2, continuity=Continuity(previous_seq=2, head_kept=False))
    assert world.columns() == ["broken prefix"]
    world = World()
    world.change(1, wire="chat", items=(said("user", 0), said("assistant", 0), said("user", 1)))
    assert world.columns() == []


def test_a_repair_is_excused_and_counted(world: World) -> None:
    """From the refusal on the context has no reasoning of before."""
    world.refuse(1)
    world.forget(0)

    assert (world.columns(), repairs(world.left)) == ([], 1)
    world.change(2, items=world.requests[1].items)
    assert world.columns() == ["lost reasoning"]


def test_a_repair_that_is_forgotten_is_named(world: World) -> None:
    """The turn was answered without reasoning, and the next request holds it again."""
    world.refuse(1)

    assert world.columns() == ["broken prefix"]


def test_a_refused_request_is_nothing_to_begin_with(world: World) -> None:
    """The turn was interrupted before it asked again; any other request that failed is."""
    whole = world.requests[1]
    world.refuse(1)
    world.forget(0)
    world.change(1, items=whole.items, continuity=whole.continuity, outcome="error")
    assert world.columns() == []
    world.change(1, outcome="cut")

    assert world.columns() == ["broken prefix"]


def test_a_repair_stays_where_its_turn_is_rolled_back(world: World) -> None:
    """The turn that its message became part of repairs the context, in the end; others do not."""
    whole = world.requests[1]
    world.refuse(2)
    world.forget(0)
    world.forget(1)
    world.requests[1] = whole
    (call,) = world.left.calls
    calls = (msgspec.structs.replace(call, turn_id="a"),)
    for last, columns in (("t2", []), ("t0", ["broken prefix", "lost reasoning"])):
        records = {"a": absorbed("a", "b"), "b": absorbed("b", last)}
        world.left = msgspec.structs.replace(world.left, calls=calls, records=records)

        assert world.columns() == columns
