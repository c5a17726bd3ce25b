"""A conversation whose model calls a tool of the worker; see order_tools.py."""

import asyncio
import os

from turnline.contracts import TurnClient, UserMessage
from turnline.contracts.replies import ToolCallFinished, ToolCallStarted

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")


async def main() -> None:
    """Show what happens in the turn, event by event."""
    async with TurnClient.connect(REDIS_URL) as client:
        receipt = await client.submit(
            UserMessage(conversation_id="frida", text="Where is my order number 7?")
        )
        async for event in client.events(receipt):
            match event:
                case ToolCallStarted():
                    print("calls", event.name)
                case ToolCallFinished():
                    print("has the result of", event.name)
                case _:
                    print(type(event).__name__)


if __name__ == "__main__":
    asyncio.run(main())
