"""What crosses the wire between producers, workers and readers. Light to import.

It needs msgspec and redis-py, and nothing of workers or tools.
"""

import logging

from turnline.contracts.blocking_client import SyncTurnClient
from turnline.contracts.client import TurnClient
from turnline.contracts.daily_spend import Spend
from turnline.contracts.errors import (
    BudgetExceeded,
    ConversationBusy,
    InboxFull,
    InvalidAddress,
    InvalidCursor,
    InvalidMessage,
    QueueFull,
    QueueLate,
    Refused,
    ResultTimeout,
    StoreFull,
    StoreIncompatible,
    StoreUnavailable,
    TenantFull,
    TurnIdReused,
    TurnlineError,
    TurnUnknown,
    WrongEventLoop,
)
from turnline.contracts.messages import (
    Configure,
    ContextAppend,
    ContextReplace,
    Feedback,
    Interrupt,
    ToolResult,
    Transcription,
    UserMessage,
    UserStartedSpeaking,
    UserStoppedSpeaking,
)
from turnline.contracts.protocol import Limits
from turnline.contracts.replies import (
    ConversationPage,
    FoundConversation,
    FoundTurn,
    Rating,
    Receipt,
    TextDelta,
    ToolRequest,
    TurnAbsorbed,
    TurnCompleted,
    TurnFailed,
    TurnInterrupted,
    TurnPage,
    TurnStarted,
)

__all__ = [
    "BudgetExceeded",
    "Configure",
    "ContextAppend",
    "ContextReplace",
    "ConversationBusy",
    "ConversationPage",
    "Feedback",
    "FoundConversation",
    "FoundTurn",
    "InboxFull",
    "Interrupt",
    "InvalidAddress",
    "InvalidCursor",
    "InvalidMessage",
    "Limits",
    "QueueFull",
    "QueueLate",
    "Rating",
    "Receipt",
    "Refused",
    "ResultTimeout",
    "Spend",
    "StoreFull",
    "StoreIncompatible",
    "StoreUnavailable",
    "SyncTurnClient",
    "TenantFull",
    "TextDelta",
    "ToolRequest",
    "ToolResult",
    "Transcription",
    "TurnAbsorbed",
    "TurnClient",
    "TurnCompleted",
    "TurnFailed",
    "TurnIdReused",
    "TurnInterrupted",
    "TurnPage",
    "TurnStarted",
    "TurnUnknown",
    "TurnlineError",
    "UserMessage",
    "UserStartedSpeaking",
    "UserStoppedSpeaking",
    "WrongEventLoop",
]

# A library's log is its user's: without a handler, Python would print bare names of events.
logging.getLogger("turnline").addHandler(logging.NullHandler())
