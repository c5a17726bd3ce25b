"""What a producer may be told: one error per thing it can do about it.

TurnlineError
├── InvalidMessage(field, expected)   mend the message; nothing was accepted
├── InvalidCursor(expected)           a reader's position is none; begin without one
├── Refused(retry_after_s)            nothing was accepted; the same message may be sent again later
│   ├── ConversationBusy              `when_busy="reject"` and a turn is running or waiting
│   ├── InboxFull                     too many turns wait in this conversation
│   ├── QueueFull                     too many conversations wait in this shard
│   ├── QueueLate                     conversations wait too long for a worker in this shard
│   ├── TenantFull                    too many conversations of the tenant wait in this shard
│   ├── BudgetExceeded                the conversation, its tenant or the fleet may spend no more
│   └── StoreFull                     Redis has no memory left and evicts nothing
├── TurnIdReused                      the id belongs to an earlier turn with another content
├── TurnUnknown                       no such turn: never accepted, forgotten, or past its retention
├── ResultTimeout                     the turn goes on; ask again with the same receipt
├── StoreUnavailable(retry_after_s)   no Redis takes it now; what was sent may have been carried out
├── StoreIncompatible                 the Redis at that address cannot be used as it is
├── WrongEventLoop                    make one client per event loop and process
└── InvalidAddress(expected)          mend the address of Redis; nothing was opened
"""

from typing import Final


class TurnlineError(Exception):
    """Base of all errors that Turnline raises to producers and readers."""


class InvalidMessage(TurnlineError, ValueError):
    """A message breaks the contract. Names the field and what it takes, never its content."""

    def __init__(self, field: str, expected: str) -> None:
        """Build the error from a JSON path such as `content[0].text`, and what belongs there."""
        super().__init__(f"{field}: {expected}")
        self.field = field
        self.expected = expected


class InvalidCursor(TurnlineError, ValueError):
    """A position in an event stream is none. Says what belongs there and repeats nothing of it."""

    def __init__(self, expected: str) -> None:
        """Build the error from what belongs there."""
        super().__init__(expected)
        self.expected = expected


class Refused(TurnlineError):
    """Nothing was accepted. The same message may be sent again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """Say why, and when it is worth trying again (seconds)."""
        super().__init__(f"{message}; try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class ConversationBusy(Refused):
    """The message asked to be rejected while another turn is running or waiting."""


class InboxFull(Refused):
    """As many turns as allowed already wait in this conversation."""


class QueueFull(Refused):
    """As many conversations as allowed already wait in this shard."""


class TenantFull(Refused):
    """As many conversations of this tenant as it may have already wait to begin in this shard."""


class QueueLate(Refused):
    """A conversation has waited for longer than allowed: workers do not keep up, or none runs."""


class BudgetExceeded(Refused):
    """What the conversation, its tenant or the fleet may spend is spent."""

    code: Final = "budget_exceeded"
    """Of turns that end for the same reason."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        budget: str,
        unit: str,
        spent: float,
        limit: float,
    ) -> None:
        """Say which budget.

        Args:
            message: In words.
            retry_after_s: When the day is over, or a larger limit may have been set.
            budget: `conversation`, `tenant` or `fleet`; the latter two are those of a day (UTC).
            unit: `usd` or `tokens`.
            spent: How many of them, when a worker last looked.
            limit: How many may be.
        """
        super().__init__(message, retry_after_s=retry_after_s)
        self.budget = budget
        self.unit = unit
        self.spent = spent
        self.limit = limit


class StoreFull(Refused):
    """Redis has no memory left and, as it should, evicts nothing."""


class TurnIdReused(TurnlineError):
    """This turn id was accepted before with another content: choose a new id."""


class TurnUnknown(TurnlineError):
    """No record of this turn: it was never accepted, was forgotten, or is past its retention."""


class ResultTimeout(TurnlineError):
    """The turn has not ended within the time given. It goes on; ask again."""


class StoreUnavailable(TurnlineError):
    """No Redis answered, or took a write, for as long as the client waits; it may pass by itself.

    What was sent may have been carried out all the same. Send it again under the same id.
    """

    def __init__(self, reason: str, *, retry_after_s: float) -> None:
        """Say what the server says or does, and when it is worth trying again (seconds)."""
        super().__init__(f"Redis is not available: {reason}; try again in {retry_after_s:g} s")
        self.reason = reason
        self.retry_after_s = retry_after_s


class StoreIncompatible(TurnlineError):
    """The Redis at this address cannot be used as it is; the text says what to change."""


class WrongEventLoop(TurnlineError, RuntimeError):
    """A client is used outside the event loop, or the process, in which it was used first."""


class InvalidAddress(TurnlineError, ValueError):
    """The address of a server is none. Says what belongs there and repeats nothing of it."""

    def __init__(self, expected: str) -> None:
        """Build the error from what belongs there."""
        super().__init__(expected)
        self.expected = expected


CLOSED: Final = "the client is closed: open another"
"""Text of the `RuntimeError` for whoever uses, or waits in, a client that was closed."""
