"""What producers sent and what readers were shown, in their own records."""

from typing import Literal

import msgspec

Kind = Literal["user", "fragment", "note", "speech", "setting", "interrupt", "rating"]
"""`note` only appends to the context, `speech` is an event of the user's voice."""
Act = Literal["", "interrupt", "rollback", "reject"]
"""What a message does to the turn that runs."""
Outcome = Literal["unanswered", "accepted", "refused"]


class Sent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One message as its producer knows it."""

    turn: str
    kind: Kind
    text: str = ""
    """What it adds to the context. It begins with a mark of its own."""
    act: Act = ""
    rates: tuple[str, str] | None = None
    """The turn that it rates, and under which name."""
    replies: bool = False
    """Whether its end was also wanted in the reply stream."""
    outcome: Outcome = "unanswered"
    accepts: int = 0
    """How many submissions of it were answered `accepted`."""
    is_unsafe: bool = False
    """Whether its producer waited for replicas, and each receipt said that too few have it."""
    due_ms: int = 0
    """When it is to take its place, if it is delayed."""
    begun_ms: float = 0.0
    """Producer's clock, ms since the Unix epoch: before the first submission."""
    answered_ms: float = 0.0
    """When the first answer came; 0 if none did."""
    slowest_from_ms: float = 0.0
    """When the call to the client began that took longest."""
    slowest_ms: float = 0.0
    """How long it took."""


class Shown(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one reader was shown of one turn, over all its connections."""

    turn: str
    by: Literal["events", "text", "result"]
    ids: list[str] = []
    """Ids of the events, in the order shown; only of a reader by `events`."""
    text: str = ""
    """The text on its screen at the end."""
    ended: str = ""
    """Kind of the terminal event; empty if none came."""
    resumed: int = 0
    """Times it connected again."""


class Chat(msgspec.Struct, kw_only=True):
    """One conversation as its producers and readers know it."""

    conversation: str
    tenant: str | None = None
    """Whose its spend is; None: nobody looks."""
    sent: list[Sent] = []
    shown: list[Shown] = []
    followed: list[str] = []
    """Ids of all events, as a follower of the whole conversation saw them."""
    followed_ends: list[str] = []
    """Those of them that ended a turn."""
    followed_to_end: bool = False
    resumed: int = 0
    """Times the follower connected again."""
    forgotten: bool = False
    forgotten_at_ms: float = 0.0
    """When that was answered; 0 if it was not."""


class ClientError(msgspec.Struct, frozen=True, kw_only=True):
    """An error that a producer or a reader was told instead of an answer."""

    conversation: str
    verb: str
    """Of the client, such as `submit`."""
    at_ms: float
    """Wall clock, ms since the Unix epoch."""
    took_ms: float
    what: str


class Journal(msgspec.Struct, kw_only=True):
    """Everything that one traffic process noted."""

    chats: list[Chat] = []
    errors: list[ClientError] = []
    """What the clients gave up."""
    defects: list[str] = []
    """Errors of clients that no producer or reader should ever see."""


encode_journal = msgspec.json.Encoder().encode
decode_journal = msgspec.json.Decoder(Journal).decode
