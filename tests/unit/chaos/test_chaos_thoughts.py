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
from turnline.contracts.replies import TurnCompleted
from turnline.ops.chaos.evidence import Left, Request
from turnline.ops.chaos.thoughts import Answered, check_thoughts, repairs
from turnline.ops.simulator.request_ledger import Continuity

THOUGHTS = [
    b'{"type":"reasoning","summary":[],"encrypted_content":"%d"}' % number for number in range(3)
]


def said(role: str, number: int) -> bytes:
    return b'{"role":"%b","content":"%d"}' % (role.encode(), number)


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
    later = (*world.requests[1].items, THOUGHTS[1], said("assistant", 1), said("user", 2))
    world.change(2, items=later)
    bare = msgspec.structs.replace(world.left.context[1], reply_items=None)
    world.left = msgspec.structs.replace(
        world.left, context=(world.left.context[0], bare, *world.left.context[2:])
    )

    assert (world.columns(), repairs(world.left)) == ([], 1)
    world.change(2, items=world.requests[1].items)
    assert world.columns() == ["lost reasoning"]
