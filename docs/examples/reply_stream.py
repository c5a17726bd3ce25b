"""Fan-in: the ends of many conversations' turns in one stream, shared by a group of consumers.

An event is acknowledged when the next one is asked for. What a consumer took and did not
acknowledge comes again: handle each turn id once.
"""

import asyncio
import os

from turnline.contracts import TurnClient, UserMessage

REDIS_URL = os.environ.get("TURNLINE_REDIS_URL", "redis://127.0.0.1:6379/0")
NAMES = ("hanna", "igor", "judith")


async def main() -> None:
    """Send to three conversations, and take their ends from one place."""
    async with TurnClient.connect(REDIS_URL) as client:
        for name in NAMES:
            await client.submit(UserMessage(conversation_id=name, text="Hello!", reply_to="mail"))
        waiting = set(NAMES)
        async for event in client.replies("mail", group="senders", consumer="sender-1"):
            print(event.conversation_id, type(event).__name__)
            waiting.discard(event.conversation_id)
            if not waiting:
                return


if __name__ == "__main__":
    asyncio.run(main())
