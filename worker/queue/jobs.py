"""The ARQ functions. Thin: what a job is about is decided elsewhere."""

from typing import TypedDict

from turnline.worker.lease import Lease
from turnline.worker.outcome import Outcome
from turnline.worker.turn.driver import ConversationDriver


class JobContext(TypedDict):
    """What ARQ hands to a function here."""

    driver: ConversationDriver
    lease: Lease


async def run_conversation(ctx: JobContext, conversation_id: str) -> Outcome:
    """Run what waits in one conversation. Started at least once; each turn takes effect once."""
    lease = ctx["lease"]
    assert lease.conversation_id == conversation_id
    return await ctx["driver"].run(lease)
