"""How a run of a conversation ends, seen from the queue."""

from typing import Literal, NamedTuple


class Done(NamedTuple):
    """Nothing more to do now; whatever waits is due at once."""


class Parked(NamedTuple):
    """The conversation waits without a slot."""

    defer_ms: int
    """Until it is due again, at the latest."""
    why: Literal["input", "backoff"]
    """`input`: a new message ends the wait; `backoff`: only time does (or an interrupt)."""
    seen: str = ""
    """The last entry of the inbox that was looked at: with a later one there is no wait."""


Outcome = Done | Parked
