"""How a run of a conversation ends, seen from the queue."""

from typing import Literal, NamedTuple

Why = Literal["input", "backoff", "defect", "limit"]


class Done(NamedTuple):
    """Nothing more to do now; whatever waits is due at once."""


class Parked(NamedTuple):
    """The conversation waits without a slot."""

    defer_ms: int
    """Until it is due again, at the latest."""
    why: Why
    """`input`: a new message ends the wait; `backoff`: only time does (or an interrupt); `defect`:
    as `backoff`, and the attempt counts as crashed; `limit`: as `backoff`, and the attempt does not
    count."""
    last_entry_id: str = ""
    """The last inbox entry that this run has read. If a newer one would end the wait, the
    conversation is not parked but due at once."""


Outcome = Done | Parked
