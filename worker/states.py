"""The states of a turn, of a queue entry and of a lease: which event leads from which to which.

Everything that decides about states is in these tables. The theory:

- A **turn** and a **queue entry** live in Redis. Their states are not stored under these names: a
  turn's is in its record and in the state hash, an entry's is its score, the in-progress key and
  `parked`. Only scripts change them, each script is one event, and the server runs one at a time.
- A **lease** here is what its holder knows of it. The server decides; the holder learns of it by
  answers and by heartbeats, which may cross. So the answer to a script that may give the lease up
  counts more than a heartbeat that misses the lease while that script is under way.
- An event that a table does not have is refused: the script answers so and writes nothing, and
  `advance` raises. Where an event changes nothing but is no mistake, the table says so.
- From a terminal state no event of the table leads anywhere else.

Source: docs/adr/0022-states-stand-in-one-table.md
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class TurnState(StrEnum):
    """Where a turn stands."""

    UNKNOWN = "unknown"
    ACCEPTED = "accepted"
    RUNNING = "running"
    """An attempt at it has begun, and nobody has ended it."""
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    ABSORBED = "absorbed"


class TurnEvent(StrEnum):
    """What happens to a turn; each is a script under the conversation's lease, but for `submit`."""

    SUBMIT = "submit"
    LOAD = "load"
    EMIT = "emit"
    COMPLETE = "commit: completed"
    FAIL = "commit: failed"
    INTERRUPT = "commit: interrupted"
    ABSORB = "commit: absorbed"
    FORGET = "forget"


T, _E = TurnState, TurnEvent
_ENDS: Final = {
    _E.COMPLETE: T.COMPLETED,
    _E.FAIL: T.FAILED,
    _E.INTERRUPT: T.INTERRUPTED,
    _E.ABSORB: T.ABSORBED,
}
TURN: Final[Mapping[tuple[TurnState, TurnEvent], TurnState]] = {
    (T.UNKNOWN, _E.SUBMIT): T.ACCEPTED,
    (T.ACCEPTED, _E.LOAD): T.RUNNING,
    (T.RUNNING, _E.LOAD): T.RUNNING,  # another attempt
    (T.RUNNING, _E.EMIT): T.RUNNING,
    **{(T.ACCEPTED, event): end for event, end in _ENDS.items()},  # behind the first: absorbed
    **{(T.RUNNING, event): end for event, end in _ENDS.items()},
    **{(state, _E.FORGET): T.UNKNOWN for state in T},
}


class EntryState(StrEnum):
    """Where a conversation's entry in the queue stands."""

    IDLE = "idle"
    """There is none, and the inbox is empty; nothing is delayed."""
    DUE = "due"
    LEASED = "leased"
    PARKED_INPUT = "parked: input"
    PARKED_BACKOFF = "parked: backoff"
    PARKED_LATER = "parked: later"
    """The inbox is empty; it is due with the first delayed message."""


class EntryEvent(StrEnum):
    """What happens to an entry. All but the first four and the last two need the lease."""

    SUBMIT = "submit"
    SUBMIT_LATER = "submit: delayed"
    INTERRUPT = "submit: interrupt"
    CLAIM = "claim"
    RENEW = "renew"
    COMMIT_AND_KEEP = "commit: go on"
    COMMIT_AND_YIELD = "commit: yield"
    COMMIT_THE_LAST = "commit: inbox empty"
    COMMIT_ALL_BUT_DELAYED = "commit: only delayed left"
    RELEASE = "release"
    PARK_FOR_INPUT = "release: input"
    PARK_FOR_BACKOFF = "release: backoff"
    LAPSE = "time passes"
    FORGET = "forget"


S, E = EntryState, EntryEvent
ENTRY: Final[Mapping[tuple[EntryState, EntryEvent], EntryState]] = {
    (S.IDLE, E.SUBMIT): S.DUE,
    (S.IDLE, E.INTERRUPT): S.DUE,
    (S.IDLE, E.SUBMIT_LATER): S.PARKED_LATER,
    # Where more waits, it is looked at when that is over.
    **{(state, E.SUBMIT_LATER): state for state in S if state != S.IDLE},
    (S.DUE, E.SUBMIT): S.DUE,
    (S.DUE, E.INTERRUPT): S.DUE,
    (S.DUE, E.CLAIM): S.LEASED,
    (S.DUE, E.LAPSE): S.DUE,  # it waits for a worker
    (S.LEASED, E.SUBMIT): S.LEASED,  # its holder is notified
    (S.LEASED, E.INTERRUPT): S.LEASED,
    (S.LEASED, E.RENEW): S.LEASED,
    (S.LEASED, E.COMMIT_AND_KEEP): S.LEASED,
    (S.LEASED, E.COMMIT_AND_YIELD): S.DUE,
    (S.LEASED, E.COMMIT_THE_LAST): S.IDLE,
    (S.LEASED, E.COMMIT_ALL_BUT_DELAYED): S.PARKED_LATER,
    (S.LEASED, E.RELEASE): S.DUE,
    (S.LEASED, E.PARK_FOR_INPUT): S.PARKED_INPUT,
    (S.LEASED, E.PARK_FOR_BACKOFF): S.PARKED_BACKOFF,
    (S.LEASED, E.LAPSE): S.DUE,  # no sweeper: a lapsed lease is simply due again
    (S.PARKED_INPUT, E.SUBMIT): S.DUE,
    (S.PARKED_INPUT, E.INTERRUPT): S.DUE,
    (S.PARKED_INPUT, E.LAPSE): S.DUE,
    (S.PARKED_BACKOFF, E.SUBMIT): S.PARKED_BACKOFF,  # only an interrupt ends this wait early
    (S.PARKED_BACKOFF, E.INTERRUPT): S.DUE,
    (S.PARKED_BACKOFF, E.LAPSE): S.DUE,
    (S.PARKED_LATER, E.SUBMIT): S.DUE,
    (S.PARKED_LATER, E.INTERRUPT): S.DUE,
    (S.PARKED_LATER, E.LAPSE): S.DUE,
    **{(state, E.FORGET): S.IDLE for state in S},
}


class LeaseState(StrEnum):
    """What a holder knows of its lease."""

    HELD = "held"
    RELEASING = "releasing"
    """A commit or release is under way, whose answer tells what became of the lease."""
    RELEASED = "released"
    LOST = "lost"


class LeaseEvent(StrEnum):
    """What a holder learns of its lease, or does with it."""

    SEND = "commit or release sent"
    KEPT = "answer: still held"
    GIVEN_UP = "answer: given up"
    FENCED = "answer: fenced"
    MISSED = "heartbeat misses it"


L, _L = LeaseState, LeaseEvent
LEASE: Final[Mapping[tuple[LeaseState, LeaseEvent], LeaseState]] = {
    (L.HELD, _L.SEND): L.RELEASING,
    (L.HELD, _L.FENCED): L.LOST,
    (L.HELD, _L.MISSED): L.LOST,
    (L.RELEASING, _L.SEND): L.RELEASING,  # the one before was not answered
    (L.RELEASING, _L.KEPT): L.HELD,
    (L.RELEASING, _L.GIVEN_UP): L.RELEASED,
    (L.RELEASING, _L.FENCED): L.LOST,
    (L.RELEASING, _L.MISSED): L.RELEASING,  # the answer decides
    (L.RELEASED, _L.FENCED): L.RELEASED,  # an event that was still under way
    (L.RELEASED, _L.MISSED): L.RELEASED,
    **{(L.LOST, event): L.LOST for event in _L},  # whatever is still under way is refused
}


class IllegalTransition(AssertionError):
    """An event in a state whose table does not have it: a defect."""


def advance(state: LeaseState, event: LeaseEvent) -> LeaseState:
    """Return the lease's next state.

    Raises:
        IllegalTransition: The table does not have it.
    """
    try:
        return LEASE[state, event]
    except KeyError:
        raise IllegalTransition(f"{event} in state {state}") from None
