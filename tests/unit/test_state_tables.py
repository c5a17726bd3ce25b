"""The tables of states: the lease follows its own, and the documents show them."""

from itertools import product

import pytest

from tests.support.state_diagrams import PAGE, written
from turnline.worker.lease import Lease
from turnline.worker.states import (
    ENTRY,
    LEASE,
    TURN,
    EntryEvent,
    EntryState,
    IllegalTransition,
    LeaseEvent,
    LeaseState,
    TurnEvent,
    TurnState,
)

WAYS = {
    LeaseState.HELD: [],
    LeaseState.RELEASING: [LeaseEvent.SEND],
    LeaseState.RELEASED: [LeaseEvent.SEND, LeaseEvent.GIVEN_UP],
    LeaseState.LOST: [LeaseEvent.MISSED],
}


@pytest.mark.promise("P4")
@pytest.mark.parametrize(("state", "event"), [*product(LeaseState, LeaseEvent)])
def test_a_lease_changes_only_as_its_table_says(state: LeaseState, event: LeaseEvent) -> None:
    """Every pair; an event that is not there raises, and nothing happens."""
    lease = Lease("{s0}", "c", "1 w")
    for step in WAYS[state]:
        lease.advance(step)
    assert lease.state == state

    if (state, event) in LEASE:
        lease.advance(event)
        assert lease.state == LEASE[state, event]
    else:
        with pytest.raises(IllegalTransition):
            lease.advance(event)
        assert lease.state == state
    assert (lease.lost, lease.released) == (
        lease.state == LeaseState.LOST,
        lease.state == LeaseState.RELEASED,
    )


def test_a_lost_lease_stays_lost() -> None:
    """Nor does one that was given up come back; the answer decides while a script is under way."""
    assert {LEASE[LeaseState.LOST, event] for event in LeaseEvent} == {LeaseState.LOST}
    assert {after for (before, _), after in LEASE.items() if before == LeaseState.RELEASED} == {
        LeaseState.RELEASED
    }


def test_what_ended_is_only_forgotten() -> None:
    """The four ends of a turn have no other way out, and every state has a way in."""
    running = {TurnState.UNKNOWN, TurnState.ACCEPTED, TurnState.RUNNING}
    for state in set(TurnState) - running:
        assert {event for before, event in TURN if before == state} == {TurnEvent.FORGET}
    assert set(TURN.values()) == set(TurnState)
    assert set(ENTRY.values()) == set(EntryState)
    assert {event for _, event in ENTRY} == set(EntryEvent)


def test_the_diagrams_are_those_of_the_tables() -> None:
    """After a change: `ops/run python -m tests.support.state_diagrams`."""
    page = PAGE.read_text()

    assert written(page) == page
    assert page.count("stateDiagram-v2") == 3
